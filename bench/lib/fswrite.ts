// Compiles and calls fswrite.c. Mounts are touched by this child process alone, never by the bench.
import { execFile, execFileSync } from 'node:child_process';
import { mkdirSync, statSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import type { LoopResult } from './fsbench.ts';

const run = promisify(execFile);

/** Path of the compiled program; compiled where it is missing or older than its source. */
export function buildFswrite(): string {
  const source = fileURLToPath(new URL('./fswrite.c', import.meta.url));
  const directory = fileURLToPath(new URL('../../.cache/bench/', import.meta.url));
  const program = `${directory}fswrite`;
  mkdirSync(directory, { recursive: true });
  const built = statSync(program, { throwIfNoEntry: false });
  if (built === undefined || built.mtimeMs < statSync(source).mtimeMs) {
    execFileSync('gcc', ['-O2', '-Wall', '-o', program, source]);
  }
  return program;
}

/** The loops, by name. */
export class Fswrite {
  readonly program = buildFswrite();

  async #call(...args: string[]): Promise<LoopResult> {
    const { stdout } = await run(this.program, args);
    return JSON.parse(stdout) as LoopResult;
  }

  /** Microseconds of one create+write+close+unlink. */
  async create(directory: string, count: number, bytes: number): Promise<number> {
    const { ns, ops } = await this.#call('create', directory, String(count), String(bytes));
    return ns / 1000 / ops;
  }

  /** MB/s of a new file that is written from beginning to end. */
  async large(file: string, megabytes: number): Promise<number> {
    const { ns, bytes } = await this.#call('large', file, String(megabytes));
    return bytes / 1e6 / (ns / 1e9);
  }

  /** Microseconds of one open+append+close of a file that nobody has written to before. */
  async append(root: string, list: string): Promise<number> {
    const { ns, ops } = await this.#call('append', root, list);
    return ns / 1000 / ops;
  }
}
