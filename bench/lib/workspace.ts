// The temporary directory of a bench run, and its teardown: whatever is mounted below it is
// unmounted, children are ended by their process ids, then the files go. Runs after errors and
// signals too. What does not live here: firstlight itself (program.ts), namespaces (enclosure.ts).
import { type ChildProcess, execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdirSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { enclosedDirectory, onRelease } from './enclosure.ts';

/** A directory of its own with everything that a bench starts and mounts. */
export class Workspace {
  readonly directory: string;
  readonly #undo: (() => Promise<void> | void)[] = [];
  #closed: Promise<void> | undefined;
  #ending = false;

  constructor(name: string) {
    if (process.getuid?.() !== 0) {
      throw new Error('the benches mount file systems and drop caches: run them as root');
    }
    this.directory =
      enclosedDirectory() ??
      mkdtempSync(join(process.env.BENCH_DIR ?? tmpdir(), `firstlight-${name}-`));
    const end = () => {
      this.#ending = true;
      void this.close().finally(() => process.exit(130));
    };
    for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.once(signal, end);
    onRelease(end);
  }

  /** Whether the bench has been told to end: what fails now fails because of that. */
  get ending(): boolean {
    return this.#ending;
  }

  /** A path below the directory, made as a directory. */
  makeDirectory(...parts: string[]): string {
    const path = join(this.directory, ...parts);
    mkdirSync(path, { recursive: true });
    return path;
  }

  /** Has `undo` run at the end; the last one added runs first. */
  defer(undo: () => Promise<void> | void): void {
    this.#undo.push(undo);
  }

  /**
   * Starts a process that ends with the bench; SIGTERM, and SIGKILL after five seconds.
   * @throws once the bench has been told to end
   */
  start(command: string, args: string[], env: NodeJS.ProcessEnv = process.env): ChildProcess {
    if (this.#ending) throw new Error(`${command} is not started: the bench is ending`);
    const child = spawn(command, args, { env, stdio: ['ignore', 'pipe', 'pipe'] });
    this.defer(() => this.end(child));
    return child;
  }

  /** Ends a process that `start` has started, before the bench ends. */
  end(child: ChildProcess): Promise<void> {
    return endProcess(child);
  }

  /** Mounts kernel overlayfs over `lower`, with an upper layer of its own, and gives the mount point. */
  mountOverlay(name: string, lower: string): string {
    const [upper, work, merged] = ['upper', 'work', 'merged'].map((part) =>
      this.makeDirectory(name, part),
    );
    const options = `lowerdir=${lower},upperdir=${upper},workdir=${work}`;
    execFileSync('mount', ['-t', 'overlay', 'overlay', '-o', options, merged!]);
    return merged!;
  }

  /** Tears everything down; once, whoever asks. */
  close(): Promise<void> {
    this.#closed ??= this.#close();
    return this.#closed;
  }

  async #close(): Promise<void> {
    for (const undo of this.#undo.reverse()) {
      try {
        await undo();
      } catch (error) {
        // The rest must still go; what stays behind is named here and by the check below.
        process.stderr.write(`teardown: ${String(error)}\n`);
      }
    }
    for (const mountPoint of mountsBelow(this.directory).reverse()) {
      execFileSync('umount', ['--lazy', mountPoint]);
    }
    const left = mountsBelow(this.directory);
    if (left.length > 0) throw new Error(`still mounted: ${left.join(', ')}`);
    rmSync(this.directory, { recursive: true, force: true });
  }
}

/** Mount points below `directory` in the order of mounting. */
export function mountsBelow(directory: string): string[] {
  if (!directory.startsWith('/') || directory === '/') throw new Error(`bad root ${directory}`);
  return readFileSync('/proc/self/mountinfo', 'utf8')
    .split('\n')
    .map((line) => line.split(' ')[4] ?? '')
    .map((path) => path.replace(/\\(\d{3})/g, (_, o) => String.fromCharCode(Number.parseInt(o, 8))))
    .filter((path) => path.startsWith(`${directory}/`));
}

/** Ends one child and waits for it. */
async function endProcess(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return;
  const gone = once(child, 'exit');
  child.kill('SIGTERM');
  const timer = setTimeout(() => child.kill('SIGKILL'), 5000);
  await gone;
  clearTimeout(timer);
}
