// Copies of file contents from the store into work/, made on the thread pool while the operations that
// need them wait. What does not live here: what becomes of a copy (promote.ts).
import { O_RDWR } from './abi.ts';
import type { Core } from './core.ts';
import type { FileNode } from './node.ts';
import { Wait } from './operations.ts';

/** Copies that are ready and that nobody has come back for (a caller that was killed): so many stay, */
const UNCLAIMED_MAX = 16;
/** and for so long; who waits comes back as soon as the copy is there. */
export const UNCLAIMED_MS = 10_000;

interface Job {
  /** Name in work/. */
  readonly name: string;
  state: 'copying' | 'ready' | 'failed';
  error: unknown;
  done: Promise<void>;
  /** From its end on, until somebody takes it. */
  timer: NodeJS.Timeout | undefined;
}

export class CopyJobs {
  readonly #core: Core;
  readonly #unclaimedMs: number;
  readonly #jobs = new Map<FileNode, Job>();
  #closed = false;

  constructor(core: Core, unclaimedMs = UNCLAIMED_MS) {
    this.#core = core;
    this.#unclaimedMs = unclaimedMs;
  }

  /**
   * The name in work/ of a whole, durable copy of a template's file, which the caller takes over.
   * @param dress  gives the copy its attributes, before it is made durable
   * @throws Wait until it is there; the error of the copy, once, where it failed
   */
  take(file: FileNode, dress: (name: string) => void): string {
    const job = this.#jobs.get(file) ?? this.#start(file, dress);
    if (job.state === 'copying') throw new Wait({ done: job.done });
    clearTimeout(job.timer);
    this.#jobs.delete(file);
    if (job.state === 'failed') throw job.error;
    return job.name;
  }

  #start(file: FileNode, dress: (name: string) => void): Job {
    const { toc, io, work, openContent } = this.#core;
    const content = toc.content(file.row);
    const from = openContent(content);
    if (from === undefined) throw new Wait({ content });
    let to: number;
    const name = this.#core.workName();
    try {
      const owner = { uid: toc.uid(file.row), gid: toc.gid(file.row) };
      to = io.createFile(work, name, O_RDWR, 0o600, owner);
    } catch (error) {
      io.close(from);
      throw error;
    }
    const job: Job = {
      name,
      state: 'copying',
      error: undefined,
      done: Promise.resolve(),
      timer: undefined,
    };
    job.done = this.#run(job, from, to, toc.size(file.row), dress).then(() => {
      if (this.#closed) return;
      job.timer = setTimeout(() => this.#drop(file, job), this.#unclaimedMs).unref();
    });
    this.#dropUnclaimed();
    this.#jobs.set(file, job);
    return job;
  }

  async #run(
    job: Job,
    from: number,
    to: number,
    bytes: number,
    dress: (name: string) => void,
  ): Promise<void> {
    const { io } = this.#core;
    try {
      await io.copyFile(from, to, bytes);
      if (this.#closed) return;
      dress(job.name);
      await io.fsync(to, false);
      job.state = 'ready';
    } catch (error) {
      job.state = 'failed';
      job.error = error;
      if (!this.#closed) discard(this.#core, job.name);
    } finally {
      io.close(from);
      io.close(to);
    }
  }

  #dropUnclaimed(): void {
    const ready = [...this.#jobs].filter(([, job]) => job.state === 'ready');
    for (const [file, job] of ready.slice(0, Math.max(0, ready.length - UNCLAIMED_MAX)))
      this.#drop(file, job);
  }

  /** Nobody comes for it: neither for the copy, nor for the error, which may be long out of date. */
  #drop(file: FileNode, job: Job): void {
    clearTimeout(job.timer);
    this.#jobs.delete(file);
    if (job.state === 'ready') discard(this.#core, job.name);
  }

  /** Copies that are under way end by themselves and are left in work/, which the next start empties. */
  close(): void {
    this.#closed = true;
    for (const { timer } of this.#jobs.values()) clearTimeout(timer);
    this.#jobs.clear();
  }
}

/** Takes something out of work/. Where it cannot, the next start of the tree does. */
export function discard(core: Core, name: string, directory = false): void {
  try {
    if (directory) core.io.rmdir(core.work, name);
    else core.io.unlink(core.work, name);
  } catch (error) {
    core.log.warn({ name, error: String(error) }, 'work/ keeps a file until the next mount');
  }
}
