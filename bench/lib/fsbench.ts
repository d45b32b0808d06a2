// Compiles and calls fsbench.c. Mounts are touched by this child process alone, never by the bench.
import { execFile } from 'node:child_process';
import { writeFileSync } from 'node:fs';
import { promisify } from 'node:util';
import { compiled } from './compile.ts';

const run = promisify(execFile);

/** What a loop took. */
export interface LoopResult {
  ops: number;
  bytes: number;
  ns: number;
}

/** Path of the compiled program. */
export function buildFsbench(): string {
  return compiled(new URL('./fsbench.c', import.meta.url), [new URL('./loops.h', import.meta.url)]);
}

/** The loops, by name; paths are byte strings (latin1) as everywhere in the project. */
export class Fsbench {
  readonly program = buildFsbench();

  async #call(...args: string[]): Promise<LoopResult> {
    const { stdout } = await run(this.program, args);
    return JSON.parse(stdout) as LoopResult;
  }

  /** Nanoseconds of one cached lstat. */
  async lstat(root: string, list: string, rounds: number): Promise<number> {
    const { ns, ops } = await this.#call('lstat', root, list, String(rounds));
    return ns / ops;
  }

  /** Nanoseconds of one open+read+close. */
  async open(root: string, list: string, rounds: number): Promise<number> {
    const { ns, ops } = await this.#call('open', root, list, String(rounds));
    return ns / ops;
  }

  /** One walk: how many names were seen, and milliseconds. */
  async walk(root: string): Promise<{ names: number; ms: number }> {
    const { ns, ops } = await this.#call('walk', root);
    return { names: ops, ms: ns / 1e6 };
  }

  /** One walk that reads every regular file: what was seen, and milliseconds. */
  async walkRead(root: string): Promise<{ names: number; bytes: number; ms: number }> {
    const { ns, ops, bytes } = await this.#call('walk-read', root);
    return { names: ops, bytes, ms: ns / 1e6 };
  }

  /** Bytes a second of sequential reads, in MB/s. */
  async read(file: string, rounds: number): Promise<number> {
    const { ns, bytes } = await this.#call('read', file, String(rounds));
    return bytes / 1e6 / (ns / 1e9);
  }
}

/** Writes a list as the program reads it. */
export function writeList(path: string, entries: string[]): void {
  writeFileSync(path, Buffer.from(`${entries.join('\0')}\0`, 'latin1'));
}
