// Drives a Python program that evaluates one expression for each line, and answers with one line of
// JSON: for operations that Node.js has no call for (fallocate, copy_file_range, shared mappings), step by
// step. Descriptors live in the program.
import type { Fixture, Running } from './fixture.ts';
import { until } from './fixture.ts';

const PROGRAM = `
import ctypes, fcntl, json, mmap, os, stat, sys
libc = ctypes.CDLL(None, use_errno=True)
def fallocate(fd, mode, offset, length):
    if libc.fallocate(fd, mode, ctypes.c_long(offset), ctypes.c_long(length)) != 0:
        raise OSError(ctypes.get_errno(), 'fallocate')
def text(value):
    return value.decode('latin1') if isinstance(value, (bytes, bytearray)) else value
kept = {}
def keep(name, value):
    kept[name] = value
    return name
print(json.dumps('ready'), flush=True)
for line in iter(sys.stdin.readline, ''):
    try:
        answer = text(eval(line, globals()))
        print(json.dumps(answer if isinstance(answer, (str, int, list, type(None))) else str(answer)), flush=True)
    except OSError as error:
        print(json.dumps({'errno': error.errno}), flush=True)
    except Exception as error:
        print(json.dumps({'error': repr(error)}), flush=True)
`;

export class Snake {
  readonly program: Running;
  #answers = 0;

  private constructor(program: Running) {
    this.program = program;
  }

  /** @param uid  user and group that it runs as, without other groups */
  static async start(fixture: Fixture, uid = 0): Promise<Snake> {
    const as = uid === 0 ? [] : ['--reuid', `${uid}`, '--regid', `${uid}`, '--clear-groups'];
    const snake = new Snake(
      fixture.start('setpriv', ...as, '/usr/bin/python3', '-u', '-c', PROGRAM),
    );
    await snake.answer();
    return snake;
  }

  get pid(): number {
    return this.program.child.pid!;
  }

  tell(expression: string): void {
    this.program.child.stdin!.write(`${expression}\n`);
  }

  async answer(): Promise<unknown> {
    const lines = () => this.program.out.split('\n');
    await until(
      () => `an answer (${this.program.err})`,
      async () => lines().length - 1 > this.#answers || !this.program.running,
    );
    // Its last words may still be under way.
    if (!this.program.running) await this.program.end;
    const line = lines()[this.#answers++];
    if (line === undefined || line === '') throw new Error(`it has ended: ${this.program.err}`);
    return JSON.parse(line);
  }

  ask(expression: string): Promise<unknown> {
    this.tell(expression);
    return this.answer();
  }

  /** True while no answer has come. */
  get silent(): boolean {
    return this.program.out.split('\n').length - 1 === this.#answers;
  }
}
