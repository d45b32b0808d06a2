// Drives test/posix/interpreter: a child process that makes one system call for each line. The test's
// own process never touches a mount. What does not live here: what answers are expected.
import { createInterface, type Interface } from 'node:readline';
import { Background } from '../lib/proc.ts';
import { program } from './programs.ts';

/** Bound of one batch; a hang is a failure and not a wait. */
const BATCH_TIMEOUT_MS = 120_000;

/** One running interpreter. */
export class Interpreter {
  readonly #process: Background;
  readonly #lines: AsyncIterator<string>;
  readonly #reader: Interface;

  private constructor(process: Background) {
    this.#process = process;
    // Nobody awaits a write: what the program did not take shows as a missing answer.
    process.child.stdin!.on('error', () => undefined);
    this.#reader = createInterface({ input: process.child.stdout! });
    this.#lines = this.#reader[Symbol.asyncIterator]();
  }

  /** Starts one with `directory` as its working directory. */
  static async start(directory: string): Promise<Interpreter> {
    const path = await program('interpreter');
    // /proc/self/fd and paths are all it needs of its environment.
    return new Interpreter(new Background(path, [directory], { keepInput: true }));
  }

  /**
   * Runs commands, one after the other, and gives one answer for each.
   * @throws where the program ends, which a wrong command makes it do, or does not answer in time
   */
  async run(commands: string[]): Promise<string[]> {
    const answers: string[] = [];
    const timer = setTimeout(() => this.#process.child.kill('SIGKILL'), BATCH_TIMEOUT_MS);
    try {
      this.#process.child.stdin!.write(commands.map((line) => `${line}\n`).join(''), 'latin1');
      for (const command of commands) answers.push(await this.#answer(command));
      return answers;
    } finally {
      clearTimeout(timer);
    }
  }

  /** Runs one command. */
  async one(command: string): Promise<string> {
    return (await this.run([command]))[0]!;
  }

  /** Runs commands of which each must succeed. */
  async must(commands: string[]): Promise<string[]> {
    const answers = await this.run(commands);
    const failed = answers.findIndex((answer) => !/^(ok|lines)\b/.test(answer));
    if (failed >= 0) throw new Error(`${commands[failed]}: ${answers[failed]}`);
    return answers;
  }

  /** Everything that can be seen below a directory; equal where two trees are. */
  async tree(path = '.', options = ''): Promise<string[]> {
    const answer = await this.one(`tree ${path} ${options}`.trim());
    const lines = answer.split('\n');
    if (lines[0] !== 'lines') throw new Error(`tree ${path}: ${answer}`);
    return lines.slice(1);
  }

  async #answer(command: string): Promise<string> {
    const first = await this.#line(command);
    if (first !== 'lines') return first;
    const lines = [first];
    for (;;) {
      const line = await this.#line(command);
      if (/^end \d+$/.test(line)) return lines.join('\n');
      lines.push(line);
    }
  }

  async #line(command: string): Promise<string> {
    const { value, done } = await this.#lines.next();
    if (done !== true) return value;
    const { code, signal, stderr } = await this.#process.ended;
    throw new Error(`no answer to "${command}": ended with ${code ?? signal}: ${stderr}`);
  }

  /** Process id, for signals. */
  get pid(): number {
    return this.#process.pid;
  }

  /** Ends it, and with it its hold on the mount. */
  async close(): Promise<void> {
    this.#process.child.stdin!.end();
    const timer = setTimeout(() => this.#process.child.kill('SIGKILL'), 10_000);
    await this.#process.ended;
    clearTimeout(timer);
    this.#reader.close();
  }
}
