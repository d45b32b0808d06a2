// One end-to-end test's world: a temporary directory with a server's data, a worker's root and mount
// points; the command line run in it; and a teardown that leaves nothing and checks that nothing
// is left. The test's own process never touches a mount: whatever looks into one is a child.
import { mkdir, mkdtemp, readdir, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { ExecutionContext } from 'ava';
import type { DaemonStatus, MountStatus } from '../../src/daemon/control.ts';
import { runtimeDir } from '../../src/daemon/paths.ts';
import { REPOSITORY } from './images.ts';
import { mountsBelow, processesOf, STAGE_MARK, unmountBelow } from './leaks.ts';
import { Background, type Ended, must, type RunOptions, run, until } from './proc.ts';

const NODE = join(REPOSITORY, 'node_modules/.bin/node');
const PROGRAM = join(REPOSITORY, 'bin/firstlight.js');

/** A `firstlight serve` process. */
export interface Server {
  url: string;
  process: Background;
}

export class Stage {
  readonly dir: string;
  /** A worker's root (--root) and a server's data (--data). */
  readonly root: string;
  readonly data: string;
  readonly env: NodeJS.ProcessEnv;
  #cleanups: (() => Promise<void>)[] = [];

  readonly #detached: boolean;

  private constructor(dir: string, detached: boolean) {
    this.dir = dir;
    this.#detached = detached;
    this.root = join(dir, 'root');
    this.data = join(dir, 'data');
    this.env = {
      ...process.env,
      [STAGE_MARK]: dir,
      FIRSTLIGHT_ROOT: this.root,
      // A machine's own configuration must not decide what a test sees.
      XDG_CONFIG_HOME: join(dir, 'config'),
      FIRSTLIGHT_HOSTS_DIR: join(dir, 'certs.d'),
      FIRSTLIGHT_SERVER: '',
    };
    delete this.env.FIRSTLIGHT_SERVER;
    delete this.env.NODE_OPTIONS;
  }

  /**
   * A new stage; whoever makes it closes it. With `detached`, its processes are no part of the
   * terminal's process group: Ctrl-C reaches only this one, which ends the others in order.
   */
  static async create(options: { name?: string; detached?: boolean } = {}): Promise<Stage> {
    const { name = 'e2e', detached = false } = options;
    return new Stage(await mkdtemp(join(tmpdir(), `firstlight-${name}-`)), detached);
  }

  /** A new stage, torn down when the test ends. A leak fails the test. */
  static async open(t: ExecutionContext<unknown>): Promise<Stage> {
    const stage = await Stage.create();
    t.teardown(async () => {
      if (!t.passed) t.log(await stage.evidence());
      await stage.close();
    });
    return stage;
  }

  /** Runs before processes and mounts are looked for, the latest first. */
  onClose(cleanup: () => Promise<void>): void {
    this.#cleanups.push(cleanup);
  }

  /** Starts `firstlight ARGS` in the background. */
  start(args: string[], options: { env?: NodeJS.ProcessEnv; cwd?: string } = {}): Background {
    return new Background(NODE, [PROGRAM, ...args], {
      cwd: options.cwd ?? this.dir,
      env: { ...this.env, ...options.env },
      detached: this.#detached,
    });
  }

  /** Runs `firstlight ARGS` to its end, whatever that is. */
  async run(args: string[], options: RunOptions = {}): Promise<Ended> {
    return run(NODE, [PROGRAM, ...args], {
      cwd: this.dir,
      detached: this.#detached,
      ...options,
      env: { ...this.env, ...options.env },
    });
  }

  /** Runs `firstlight ARGS`, which must succeed; its standard output. */
  async must(args: string[], options: RunOptions = {}): Promise<string> {
    return must(NODE, [PROGRAM, ...args], {
      cwd: this.dir,
      detached: this.#detached,
      ...options,
      env: { ...this.env, ...options.env },
    });
  }

  /** `firstlight ARGS --json`, which must succeed, parsed. */
  async json<T>(args: string[], options: RunOptions = {}): Promise<T> {
    return JSON.parse(await this.must([...args, '--json'], options)) as T;
  }

  /** Starts a server on this stage's data and makes it the default of later commands. */
  async serve(
    options: { rate?: string; listen?: string; data?: string; use?: boolean } = {},
  ): Promise<Server> {
    const { rate, listen = '127.0.0.1:0', data = this.data, use = true } = options;
    const args = ['serve', '--data', data, '--listen', listen];
    const process = this.start(rate === undefined ? args : [...args, '--rate', rate]);
    const url = await until('the server listens', () => {
      if (!process.running) throw new Error(`the server ended: ${process.stderr}`);
      return /listening on (\S+)/.exec(process.stdout)?.[1];
    });
    if (use) this.env.FIRSTLIGHT_SERVER = url;
    return { url, process };
  }

  /** Adds an image by name; SOURCE as on the command line. */
  async addImage(source: string, name: string): Promise<void> {
    await this.must(['image', 'add', source, '--name', name], { timeoutMs: 300_000 });
  }

  /** A new, empty directory for a mount. */
  async mountPoint(name = 'mnt'): Promise<string> {
    const dir = join(this.dir, name);
    await mkdir(dir, { recursive: true });
    return dir;
  }

  /** What `status --json` says; `daemon` is null where none runs. */
  async status(): Promise<{ daemon: DaemonStatus | null; mounts: MountStatus[] }> {
    return this.json(['status']);
  }

  /** The status of the one mount at `dir`. */
  async mountStatus(dir: string): Promise<MountStatus> {
    const { mounts } = await this.status();
    const mount = mounts.find((each) => each.directory === dir);
    if (mount === undefined) throw new Error(`nothing is mounted at ${dir}`);
    return mount;
  }

  /** Process id of the worker's daemon, which must be running. */
  async daemonPid(): Promise<number> {
    const { daemon } = await this.status();
    if (daemon === null) throw new Error('no daemon is running');
    return daemon.pid;
  }

  /** Waits until no daemon runs: one that is just ending says so, and is still there. */
  async daemonEnded(): Promise<void> {
    await until('the daemon has ended', async () => {
      const { code, stdout, stderr } = await this.run(['status', '--json']);
      if (code === 6 && stderr.includes('the daemon is ending')) return false;
      if (code !== 0) throw new Error(`status ended with ${code}: ${stderr}`);
      return (
        (JSON.parse(stdout.toString('utf8')) as { daemon: DaemonStatus | null }).daemon === null
      );
    });
  }

  /** Mounts an image; its directory. */
  async mount(image: string, options: string[] = [], name = 'mnt'): Promise<string> {
    const dir = await this.mountPoint(name);
    await this.must(['mount', image, dir, ...options]);
    return dir;
  }

  /** What helps to understand a failure: the end of the daemon's log. */
  async evidence(): Promise<string> {
    const log = await readFile(join(this.root, 'daemon.log'), 'utf8').catch(() => '(none)');
    const mounts = await mountsBelow(this.dir);
    const processes = await processesOf(this.dir);
    return [
      `daemon.log: ${log.slice(-6000)}`,
      `mounts: ${JSON.stringify(mounts)}`,
      `processes: ${JSON.stringify(processes)}`,
    ].join('\n');
  }

  /**
   * Ends everything, removes everything, and throws where something had to be forced.
   * @param graceMs  how long processes may take to end after SIGTERM
   */
  async close(graceMs = 90_000): Promise<void> {
    const problems: string[] = [];
    for (const cleanup of this.#cleanups.reverse()) {
      await cleanup().catch((error: unknown) => problems.push(String(error)));
    }
    problems.push(...(await this.#endProcesses(graceMs)));
    // A daemon that ends on SIGTERM takes its mounts along, and its directory of what is running.
    const runtime = runtimeDir(this.root, this.env);
    for (const dir of [this.dir, runtime]) {
      for (const mount of await mountsBelow(dir)) {
        problems.push(`still mounted: ${mount.mountPoint} (${mount.type})`);
      }
      await unmountBelow(dir);
    }
    const left = await readdir(runtime, { recursive: true }).catch(() => undefined);
    if (left !== undefined) problems.push(`${runtime} is left with: ${left.join(', ')}`);
    // Nothing is removed while something is mounted: rm would go through it.
    if (problems.length === 0) await rm(this.dir, { recursive: true, force: true });
    if (problems.length > 0) throw new Error(`the stage leaves: ${problems.join('; ')}`);
  }

  /** SIGTERM, the grace, SIGKILL; a process that needs the latter is a problem. */
  async #endProcesses(graceMs: number): Promise<string[]> {
    for (const { pid } of await processesOf(this.dir)) signal(pid, 'SIGTERM');
    const none = async () => (await processesOf(this.dir)).length === 0;
    try {
      await until('all processes end', none, { timeoutMs: graceMs, everyMs: 50 });
      return [];
    } catch {
      // What is still there is named, then killed.
      const left = await processesOf(this.dir);
      for (const { pid } of left) signal(pid, 'SIGKILL');
      await until('killed processes end', none).catch(() => undefined);
      return left.map(({ pid, command }) => `process ${pid} did not end on SIGTERM: ${command}`);
    }
  }
}

function signal(pid: number, name: NodeJS.Signals): void {
  try {
    process.kill(pid, name);
  } catch (error) {
    // It has ended by itself in the meantime.
    if ((error as NodeJS.ErrnoException).code !== 'ESRCH') throw error;
  }
}
