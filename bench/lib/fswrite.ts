// Compiles and calls fswrite.c. Mounts are touched by this child process alone, never by the bench.
import { execFile } from 'node:child_process';
import { promisify } from 'node:util';
import { compiled } from './compile.ts';
import type { LoopResult } from './fsbench.ts';

const run = promisify(execFile);

/** Path of the compiled program. */
export function buildFswrite(): string {
  return compiled(new URL('./fswrite.c', import.meta.url), [new URL('./loops.h', import.meta.url)]);
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
