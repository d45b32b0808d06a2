// One container under runc on a given root, and programs started in it: the same configuration on every
// side, that of `firstlight run`. What does not live here: roots (roots.ts), loads (loads.ts).
import { type ChildProcess, execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { promisify } from 'node:util';
import { makeSpec } from '../../src/cli/container/spec.ts';
import { resolveUser } from '../../src/cli/container/user.ts';
import { type Service, waitReady } from '../images/services.ts';
import type { Workspace } from '../lib/workspace.ts';
import type { ImageConfig } from './roots.ts';

const run = promisify(execFile);
const READY_MS = 120_000;
const OUTPUT_MAX = 16 << 10;
let count = 0;

export interface ContainerOptions {
  root: string;
  config: ImageConfig;
  users: { passwd: string; group: string };
  /** Instead of the image's `Cmd`. */
  command?: string[];
}

export class BenchContainer {
  readonly #state: string;
  readonly #id: string;
  readonly #child: ChildProcess;
  readonly #ended: Promise<number | null>;
  #output = '';

  constructor(space: Workspace, { root, config, users, command = [] }: ContainerOptions) {
    this.#id = `bench-${process.pid}-${++count}`;
    const bundle = space.makeDirectory('bundles', this.#id);
    this.#state = space.makeDirectory('runc');
    const spec = makeSpec({
      config,
      command,
      user: resolveUser(config.User ?? '', users.passwd, users.group),
      rootPath: root,
      readonlyRoot: false,
      hostname: this.#id,
      terminal: false,
      net: 'host',
      cgroupsPath: `/${this.#id}`,
      openFilesMax: 1024,
      binds: [],
    });
    writeFileSync(join(bundle, 'config.json'), JSON.stringify(spec));
    const args = ['--root', this.#state, 'run', '--bundle', bundle, this.#id];
    this.#child = spawn('runc', args, { stdio: ['ignore', 'pipe', 'pipe'], detached: true });
    for (const stream of [this.#child.stdout!, this.#child.stderr!]) {
      stream.on('data', (data: Buffer) => {
        this.#output = (this.#output + data.toString('latin1')).slice(-OUTPUT_MAX);
      });
    }
    this.#ended = once(this.#child, 'exit').then(([code]) => code as number | null);
    space.defer(() => this.end());
  }

  /** Waits until the service is ready by its own condition. */
  async ready(service: Service): Promise<void> {
    const { stdout, stderr } = this.#child;
    const started = { stdout: stdout!, stderr: stderr!, ended: this.#ended };
    await waitReady(service, started, { timeoutMs: READY_MS, output: () => this.#output });
  }

  /** Waits until the container is there, whatever it runs. */
  async running(): Promise<void> {
    const end = Date.now() + READY_MS;
    for (;;) {
      try {
        await this.exec(['true']);
        return;
      } catch (error) {
        // Not yet; the last failure counts.
        if (Date.now() > end || this.#child.exitCode !== null) {
          throw new Error(`the container is not there: ${this.#output}`, { cause: error });
        }
        await sleep(50);
      }
    }
  }

  /** Runs a program in the container; its standard output. */
  async exec(command: string[]): Promise<string> {
    const args = ['--root', this.#state, 'exec', this.#id, ...command];
    const { stdout } = await run('runc', args, { maxBuffer: 16 << 20 });
    return stdout;
  }

  /** Kills it and removes it. Idempotent. */
  async end(): Promise<void> {
    const args = ['--root', this.#state, 'delete', '--force', this.#id];
    // It may have ended, and been removed, by itself.
    await run('runc', args).catch(() => undefined);
    await this.#ended;
  }
}
