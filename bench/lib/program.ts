// The program under test, as a person runs it: bin/firstlight.js with the pinned Node, a delta server
// and one daemon of its own for each worker root. What does not live here: what is measured.
import { type ChildProcess, execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync } from 'node:fs';
import { connect } from 'node:net';
import { createInterface } from 'node:readline';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import type { ControlLine, ControlRequest, MountStatus } from '../../src/daemon/control.ts';
import { socketPath } from '../../src/daemon/paths.ts';
import type { Workspace } from './workspace.ts';

const run = promisify(execFile);

/** The pinned interpreter itself, without a wrapper. */
export const NODE = fileURLToPath(new URL('../../node_modules/node/bin/node', import.meta.url));
/** The program's entry. */
export const ENTRY = fileURLToPath(new URL('../../bin/firstlight.js', import.meta.url));

/** Turns a command line into one that runs elsewhere, such as in another network namespace. */
export type Within = (command: string, args: string[]) => [string, string[]];

/** Fails early, and says what to do, where a part is missing that the benches need. */
export function checkBuilt(): void {
  const addon = fileURLToPath(new URL('../../native/build/firstlight.node', import.meta.url));
  for (const path of [NODE, ENTRY, addon]) {
    if (!existsSync(path)) throw new Error(`${path} is missing: run "make setup" first`);
  }
}

/** A delta server that listens. */
export interface BenchServer {
  url: string;
  process: ChildProcess;
}

const here: Within = (command, args) => [command, args];

/**
 * Starts a delta server, on a port of its own where none is named.
 * @param options  more of `serve`, such as `['--rate', '100mbit']`
 */
export async function openServer(
  space: Workspace,
  data: string,
  options: string[] = [],
  place: { listen?: string; within?: Within } = {},
): Promise<BenchServer> {
  const { listen = '127.0.0.1:0', within = here } = place;
  const where = ['serve', '--data', data, '--listen', listen];
  const process = space.start(...within(NODE, [ENTRY, ...where, ...options]));
  return { url: await firstMatch(process, /listening on (http:\/\/\S+)/), process };
}

/** Starts a delta server on a port of its own and resolves to its URL. */
export async function startServer(space: Workspace, data: string): Promise<string> {
  return (await openServer(space, data)).url;
}

/** First match of a pattern in what a child prints; rejects with its output when it ends before. */
async function firstMatch(child: ChildProcess, pattern: RegExp): Promise<string> {
  let seen = '';
  return new Promise((resolve, reject) => {
    for (const stream of [child.stdout!, child.stderr!]) {
      createInterface({ input: stream }).on('line', (line) => {
        seen += `${line}\n`;
        const match = pattern.exec(line);
        if (match !== null) resolve(match[1]!);
      });
    }
    child.once('exit', (code) => reject(new Error(`the server ended with ${code}: ${seen}`)));
  });
}

/** One worker: a root with a daemon in the foreground, so that its process id is known. */
export class Worker {
  readonly root: string;
  readonly server: string;
  readonly #space: Workspace;
  readonly #env: NodeJS.ProcessEnv;
  readonly #within: Within;
  #daemon: ChildProcess | undefined;
  #printed = '';

  private constructor(space: Workspace, root: string, server: string, within: Within) {
    this.root = root;
    this.server = server;
    this.#space = space;
    this.#within = within;
    this.#env = { ...process.env, FIRSTLIGHT_ROOT: root, FIRSTLIGHT_SERVER: server };
  }

  /**
   * Starts the daemon of a root and waits until it answers.
   * @param options  `nodeArgs` are given to Node before the program, such as `--cpu-prof`; `within` says
   * where the daemon and the commands run; `env` is more of the daemon's environment
   */
  static async start(
    space: Workspace,
    root: string,
    server: string,
    options: { nodeArgs?: string[]; within?: Within; env?: NodeJS.ProcessEnv } = {},
  ): Promise<Worker> {
    const { nodeArgs = [], within = here, env = {} } = options;
    const worker = new Worker(space, root, server, within);
    const child = space.start(...within(NODE, [...nodeArgs, ENTRY, 'daemon']), {
      ...worker.#env,
      ...env,
    });
    worker.#daemon = child;
    for (const stream of [child.stdout!, child.stderr!]) {
      stream.setEncoding('utf8').on('data', (text: string) => {
        worker.#printed = (worker.#printed + text).slice(-4096);
      });
    }
    // A machine at work takes its time.
    const end = Date.now() + 60_000;
    for (;;) {
      try {
        await worker.request({ op: 'ping' });
        return worker;
      } catch (error) {
        // It does not listen yet; only the last failure counts.
        if (child.exitCode !== null || Date.now() > end) {
          throw new Error(`the daemon does not answer: ${worker.printed}`, { cause: error });
        }
        await sleep(10);
      }
    }
  }

  /** The end of what the daemon has printed, for whoever finds that something is wrong. */
  get printed(): string {
    const { exitCode, signalCode } = this.#daemon!;
    const ended =
      exitCode === null && signalCode === null ? '' : `it ended: ${exitCode ?? signalCode}`;
    return `${this.#printed}${ended}`;
  }

  /** Process id of the daemon. */
  get pid(): number {
    return this.#daemon!.pid!;
  }

  /** Runs one command and gives its standard output; rejects with its error line. */
  async run(...args: string[]): Promise<string> {
    const options = { env: this.#env, maxBuffer: 64 << 20 };
    const { stdout } = await run(...this.#within(NODE, [ENTRY, ...args]), options);
    return stdout;
  }

  /** Starts one command, which goes on until it ends by itself or by the bench's end. */
  spawn(...args: string[]): ChildProcess {
    return this.#space.start(...this.#within(NODE, [ENTRY, ...args]), this.#env);
  }

  /** Milliseconds of one command, from the start of the process to its end. */
  async time(...args: string[]): Promise<number> {
    const start = performance.now();
    const child = spawn(...this.#within(NODE, [ENTRY, ...args]), {
      env: this.#env,
      stdio: 'ignore',
    });
    const [code] = (await once(child, 'exit')) as [number | null];
    const ms = performance.now() - start;
    if (code !== 0) throw new Error(`firstlight ${args.join(' ')}: exit ${code}`);
    return ms;
  }

  /** Asks the daemon over its control socket, without the start of a program. */
  async request<T>(request: ControlRequest): Promise<T> {
    const socket = connect(socketPath(this.root));
    try {
      await once(socket, 'connect');
      socket.write(`${JSON.stringify(request)}\n`);
      for await (const text of createInterface({ input: socket })) {
        const line = JSON.parse(text) as ControlLine;
        if ('error' in line) throw new Error(line.error.message);
        if ('result' in line) return line.result as T;
      }
      throw new Error('the daemon ended the connection');
    } finally {
      socket.destroy();
    }
  }

  /** Status of the mount at `directory`. */
  async mountStatus(directory: string): Promise<MountStatus> {
    const { mounts } = JSON.parse(await this.run('status', '--json')) as { mounts: MountStatus[] };
    const found = mounts.find((m) => m.directory === directory);
    if (found === undefined) throw new Error(`nothing of firstlight is mounted at ${directory}`);
    return found;
  }

  /** Ends the daemon, which unmounts what it has mounted. */
  async stop(): Promise<void> {
    const daemon = this.#daemon!;
    if (daemon.exitCode !== null || daemon.signalCode !== null) return;
    await this.#space.end(daemon);
  }
}
