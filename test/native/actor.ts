// Drives actor.c: one line to it, one line back.
import { execFile } from 'node:child_process';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import test from 'ava';
import { type Fixture, type Running, sleep, until } from './fixture.ts';

let built: Promise<string> | undefined;
let directory: string | undefined;

/** Compiles the program once for each test file. */
function build(): Promise<string> {
  built ??= (async () => {
    directory = await mkdtemp(join(tmpdir(), 'firstlight-actor-'));
    const program = join(directory, 'actor');
    const source = new URL('./actor.c', import.meta.url).pathname;
    await promisify(execFile)(process.env.CC ?? 'cc', ['-O1', '-Wall', '-o', program, source]);
    return program;
  })();
  return built;
}

test.after.always(async () => {
  if (directory !== undefined) await rm(directory, { recursive: true, force: true });
});

/** A program under the test's control. */
export class Actor {
  readonly program: Running;
  #answers = 0;

  private constructor(program: Running) {
    this.program = program;
  }

  static async start(fixture: Fixture): Promise<Actor> {
    const actor = new Actor(fixture.start(await build()));
    await actor.answer();
    return actor;
  }

  get pid(): number {
    return this.program.child.pid!;
  }

  /** Sends a line; its answer is to be had with `answer`. */
  tell(line: string): void {
    this.program.child.stdin!.write(`${line}\n`, 'latin1');
  }

  /** The next line of output. */
  async answer(): Promise<string> {
    const lines = () => this.program.out.split('\n');
    await until(
      () => `an answer of the actor (${this.program.err})`,
      async () => lines().length - 1 > this.#answers || !this.program.running,
    );
    // Its last words may still be under way.
    if (!this.program.running) await this.program.end;
    const line = lines()[this.#answers++];
    if (line === undefined || line === '') throw new Error(`it has ended: ${this.program.err}`);
    return line;
  }

  async ask(line: string): Promise<string> {
    this.tell(line);
    return this.answer();
  }

  /** True where no answer comes within `ms`. */
  async silentFor(ms: number): Promise<boolean> {
    await sleep(ms);
    return this.program.out.split('\n').length - 1 === this.#answers;
  }

  /** Opens, or throws. */
  async open(path: string): Promise<number> {
    const answer = await this.ask(`open ${path}`);
    if (!answer.startsWith('fd ')) throw new Error(`open ${path}: ${answer}`);
    return Number(answer.slice(3));
  }

  /** Bytes of a descriptor. */
  async pread(fd: number, offset: number, bytes: number): Promise<Buffer> {
    const answer = await this.ask(`pread ${fd} ${offset} ${bytes}`);
    if (!answer.startsWith('bytes ')) throw new Error(`pread: ${answer}`);
    return Buffer.from(answer.slice(6), 'hex');
  }
}
