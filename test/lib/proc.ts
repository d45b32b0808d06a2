// Running other programs in tests: to their end, or in the background. What does not live here:
// knowledge of firstlight's own commands (stage.ts).
import { type ChildProcess, type SpawnOptions, spawn } from 'node:child_process';
import { once } from 'node:events';
import { setTimeout as sleep } from 'node:timers/promises';

/** How a program ended. */
export interface Ended {
  code: number | null;
  signal: NodeJS.Signals | null;
  stdout: Buffer;
  stderr: string;
  /** Wall clock from start to end. */
  ms: number;
}

export interface RunOptions {
  cwd?: string;
  env?: NodeJS.ProcessEnv;
  /** The program is killed (SIGKILL) after this; the run then rejects. It guards against hanging. Default 180,000. */
  timeoutMs?: number;
  input?: string;
  /** Its own process group, which Ctrl-C does not reach. */
  detached?: boolean;
}

/** A program in the background. Its output is collected; `ended` resolves when it has ended. */
export class Background {
  readonly child: ChildProcess;
  readonly ended: Promise<Ended>;
  readonly startedAt = performance.now();
  #stdout: Buffer[] = [];
  #stderr: Buffer[] = [];

  /** Pieces of output so far. */
  get #chunks(): number {
    return this.#stdout.length + this.#stderr.length;
  }

  /** With `keepInput`, standard input is a pipe that stays open: `child.stdin`. */
  constructor(
    command: string,
    args: string[],
    options: SpawnOptions & { input?: string; keepInput?: boolean } = {},
  ) {
    const { input, keepInput = false, ...rest } = options;
    const stdin = input === undefined && !keepInput ? 'ignore' : 'pipe';
    this.child = spawn(command, args, { ...rest, stdio: [stdin, 'pipe', 'pipe'] });
    this.child.stdout!.on('data', (data: Buffer) => this.#stdout.push(data));
    this.child.stderr!.on('data', (data: Buffer) => this.#stderr.push(data));
    if (input !== undefined) this.child.stdin!.end(input);
    this.ended = this.#wait(command);
    // Whoever awaits `ended` sees the error; a test that never does must not die of it.
    this.ended.catch(() => {});
  }

  async #wait(command: string): Promise<Ended> {
    // Rejects where the program cannot be started, as `failed` does, which speaks for both.
    const closed = once(this.child, 'close').catch(() => {});
    const failed = once(this.child, 'error').then(([error]) => {
      throw new Error(`${command}: ${String(error)}`);
    });
    // 'exit' and not 'close': a daemon that the program leaves behind may hold its pipes open.
    const exited = once(this.child, 'exit') as Promise<[number | null, NodeJS.Signals | null]>;
    const [code, signal] = await Promise.race([exited, failed]);
    const ms = performance.now() - this.startedAt;
    await Promise.race([closed, sleep(200, undefined, { ref: false })]);
    // On a busy machine all that time may have passed without a look at the pipes.
    for (let seen = -1; seen !== this.#chunks; ) {
      seen = this.#chunks;
      await new Promise((looked) => setImmediate(looked));
    }
    return { code, signal, stdout: Buffer.concat(this.#stdout), stderr: this.stderr, ms };
  }

  get pid(): number {
    const { pid } = this.child;
    if (pid === undefined) throw new Error('the program did not start');
    return pid;
  }

  get stdout(): string {
    return Buffer.concat(this.#stdout).toString('utf8');
  }

  get stderr(): string {
    return Buffer.concat(this.#stderr).toString('utf8');
  }

  get running(): boolean {
    return this.child.exitCode === null && this.child.signalCode === null;
  }

  /** Sends a signal and waits for the end. */
  async kill(signal: NodeJS.Signals = 'SIGKILL'): Promise<Ended> {
    if (this.running) this.child.kill(signal);
    return this.ended;
  }
}

/** Runs a program to its end. Rejects only where it cannot be started or does not end in time. */
export async function run(
  command: string,
  args: string[],
  options: RunOptions = {},
): Promise<Ended> {
  const { timeoutMs = 180_000, ...rest } = options;
  const program = new Background(command, args, rest);
  const timer = new AbortController();
  const late = sleep(timeoutMs, true, { signal: timer.signal }).catch(() => false);
  const ended = await Promise.race([program.ended, late.then(() => undefined)]);
  timer.abort();
  if (ended !== undefined) return ended;
  program.child.kill('SIGKILL');
  throw new Error(
    `${command} ${args.join(' ')} did not end within ${timeoutMs} ms; stderr: ${program.stderr}`,
  );
}

/** Runs a program that must succeed; its standard output as text. */
export async function must(
  command: string,
  args: string[],
  options: RunOptions = {},
): Promise<string> {
  const ended = await run(command, args, options);
  if (ended.code !== 0) {
    throw new Error(
      `${command} ${args.join(' ')} ended with ${ended.code ?? ended.signal}: ${ended.stderr || ended.stdout.toString('utf8')}`,
    );
  }
  return ended.stdout.toString('utf8');
}

/**
 * Asks `question` every few milliseconds until it gives something other than undefined or false. The bound guards
 * against hanging and says nothing of how soon: a machine under load may take a minute for what takes a second.
 */
export async function until<T>(
  what: string,
  question: () => Promise<T | undefined | false> | T | undefined | false,
  options: { timeoutMs?: number; everyMs?: number } = {},
): Promise<T> {
  const { timeoutMs = 120_000, everyMs = 20 } = options;
  const end = performance.now() + timeoutMs;
  for (;;) {
    const answer = await question();
    if (answer !== undefined && answer !== false) return answer;
    if (performance.now() > end) throw new Error(`${what}: not within ${timeoutMs} ms`);
    await sleep(everyMs);
  }
}
