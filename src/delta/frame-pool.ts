// Threads that hash and compress frames beside the one that reads contents. Each does one job at a
// time; results come back to whoever asked, so their order is the caller's.
import { Worker } from 'node:worker_threads';
import { type ErrorKind, FirstlightError } from '../errors/errors.ts';
import { type FrameJob, type MadeFrame, makeFrame } from './frame.ts';
import { Compressor } from './zstd.ts';

/** URL of a module beside this one, in the sources and in the compiled package. */
export function threadUrl(name: string): URL {
  return new URL(`./${name}${import.meta.url.endsWith('.ts') ? '.ts' : '.js'}`, import.meta.url);
}

/** An error as it crosses between threads. */
export interface ThreadError {
  kind: ErrorKind;
  message: string;
  hint: string | undefined;
}

/** The error that a thread reported. */
export function fromThread(error: ThreadError): FirstlightError {
  const { kind, message, hint } = error;
  return new FirstlightError(kind, message, hint === undefined ? {} : { hint });
}

interface Waiting {
  job: FrameJob;
  resolve(made: MadeFrame): void;
  reject(error: Error): void;
}

/** One thread and the job that it has, where it has one. */
interface Thread {
  worker: Worker;
  busy: Waiting | undefined;
}

/** Makes frames on `threads` threads, or on the calling one where that is 0. */
export class FramePool {
  readonly #queue: Waiting[] = [];
  readonly #threads: Thread[] = [];
  readonly #inline: Compressor | undefined;
  #failed: Error | undefined;

  constructor(threads: number, level: number) {
    if (threads === 0) this.#inline = new Compressor(level);
    for (let i = 0; i < threads; i++) this.#start(level);
  }

  #start(level: number): void {
    // Flags of the main thread are not for these (--input-type would even stop them).
    const options = { workerData: { level }, execArgv: [] };
    const worker = new Worker(threadUrl('frame-worker'), options);
    const thread: Thread = { worker, busy: undefined };
    this.#threads.push(thread);
    worker.on('message', (answer: { made: MadeFrame } | { error: ThreadError }) => {
      const { busy } = thread;
      thread.busy = undefined;
      if ('made' in answer) busy?.resolve(answer.made);
      else busy?.reject(fromThread(answer.error));
      this.#next();
    });
    worker.on('error', (error) => this.#fail(error));
    worker.on('exit', (code) =>
      this.#fail(new FirstlightError('internal', `a thread that compresses ended (code ${code})`)),
    );
  }

  /** Makes one frame. The job's `raw` and `base` belong to the pool from here on. */
  async make(job: FrameJob): Promise<MadeFrame> {
    if (this.#inline !== undefined) return makeFrame(job, this.#inline);
    if (this.#failed !== undefined) throw this.#failed;
    return new Promise((resolve, reject) => {
      this.#queue.push({ job, resolve, reject });
      this.#next();
    });
  }

  #next(): void {
    for (const thread of this.#threads) {
      if (thread.busy !== undefined) continue;
      const waiting = this.#queue.shift();
      if (waiting === undefined) return;
      thread.busy = waiting;
      const { raw, base } = waiting.job;
      const given = base === undefined ? [raw.buffer] : [raw.buffer, base.buffer];
      thread.worker.postMessage(waiting.job, given as ArrayBuffer[]);
    }
  }

  /** Ends everything that waits, and everything that comes later, with an error. */
  #fail(error: Error): void {
    this.#failed ??= error;
    for (const thread of this.#threads) {
      thread.busy?.reject(this.#failed);
      thread.busy = undefined;
    }
    for (const waiting of this.#queue.splice(0)) waiting.reject(this.#failed);
  }

  /** Ends the threads; jobs that are under way are rejected. */
  async close(): Promise<void> {
    this.#fail(new FirstlightError('internal', 'the frame pool is closed'));
    await Promise.all(this.#threads.map(({ worker }) => worker.terminate()));
  }
}
