// containerd's ordinary pull, overlayfs and runc: what a container waits for today. A containerd of the
// bench's own at the client's end, docker-registry at the server's. `ctr` pulls and runs, as
// `docker run` and kubelet do: everything is fetched and unpacked, then the container starts.
import { type ChildProcess, execFile, execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { promisify } from 'node:util';
import type { Workspace } from '../lib/workspace.ts';
import type { Wan } from '../wan/wan.ts';
import { findOnPath, RUNC } from './path.ts';
import type { Breakdown, Mode, PreparedService, Start, System } from './system.ts';

const run = promisify(execFile);
const REGISTRY_PORT = 5000;
const WAIT_MS = 30_000;
/** ctr mounts an empty /run over the image's: directories that services keep their sockets in. */
const RUN_DIRECTORIES = ['postgresql', 'mysqld', 'lock', 'apache2', 'rabbitmq'];

const CONFIG = (directory: string) => `version = 2
root = "${directory}/root"
state = "${directory}/state"
disabled_plugins = [
  "io.containerd.grpc.v1.cri", "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs",
]
[grpc]
  address = "${directory}/containerd.sock"
`;

const REGISTRY_CONFIG = (directory: string, address: string) => `version: 0.1
log: { level: error, accesslog: { disabled: true } }
storage: { filesystem: { rootdirectory: ${directory} }, delete: { enabled: false } }
http: { addr: "${address}:${REGISTRY_PORT}" }
`;

async function until(what: string, child: ChildProcess, done: () => Promise<boolean>) {
  const end = Date.now() + WAIT_MS;
  while (!(await done())) {
    if (child.exitCode !== null) {
      throw new Error(`${what}: ended with ${child.exitCode}: ${printed.get(child) ?? ''}`);
    }
    if (Date.now() > end) throw new Error(`${what}: not after ${WAIT_MS} ms`);
    await sleep(20);
  }
}

export class ContainerdSystem implements System {
  readonly name = 'containerd';
  readonly modes = ['deploy', 'update', 'local'] as const;
  readonly #space: Workspace;
  readonly #wan: Wan;
  /** Kept between runs of the bench: what skopeo has pushed once need not be pushed again. */
  readonly #registry: string;
  readonly #directory: string;
  #containers = 0;
  /** What the worker holds now. */
  #has: string | undefined;

  constructor(space: Workspace, wan: Wan, registryDirectory: string) {
    this.#space = space;
    this.#wan = wan;
    this.#registry = registryDirectory;
    this.#directory = space.makeDirectory('containerd');
  }

  /** Which program it lacks. */
  static missing(): string | undefined {
    return ['containerd', 'ctr', 'runc', 'docker-registry', 'skopeo'].find(
      (name) => findOnPath(name) === undefined,
    );
  }

  version(): string {
    return execFileSync('containerd', ['--version'], { encoding: 'utf8' }).trim();
  }

  #reference({ service }: PreparedService, version: string): string {
    return `${this.#wan.server.address}:${REGISTRY_PORT}/${service.name}:${version}`;
  }

  async publish(services: PreparedService[]): Promise<void> {
    const { address } = this.#wan.server;
    const config = join(this.#directory, 'registry.yml');
    writeFileSync(config, REGISTRY_CONFIG(this.#registry, address));
    const registry = this.#space.start(...this.#wan.atServer('docker-registry', ['serve', config]));
    drain(registry);
    await until('docker-registry', registry, () => this.#answers(''));
    for (const prepared of services) {
      for (const version of ['old', 'new'] as const) {
        const to = `docker://${this.#reference(prepared, version)}`;
        const from = `oci:${prepared.layouts[version]}:latest`;
        const args = ['copy', '--quiet', '--insecure-policy', '--dest-tls-verify=false', from, to];
        await run(...this.#wan.atServer('skopeo', args));
      }
    }
    await this.#startDaemon();
  }

  async #answers(path: string): Promise<boolean> {
    const url = `http://${this.#wan.server.address}:${REGISTRY_PORT}/v2/${path}`;
    return run(...this.#wan.atServer('curl', ['-sf', '-o', '/dev/null', url])).then(
      () => true,
      () => false,
    );
  }

  async #startDaemon(): Promise<void> {
    const config = join(this.#directory, 'config.toml');
    writeFileSync(config, CONFIG(this.#directory));
    const daemon = this.#space.start(
      ...this.#wan.atClient('containerd', ['--config', config, '--log-level', 'error']),
    );
    drain(daemon);
    // The shims it starts outlive it: the container of an interrupted run is killed first.
    this.#space.defer(() => this.#killAll());
    await until('containerd', daemon, () =>
      this.#ctr('version').then(
        () => true,
        () => false,
      ),
    );
  }

  async #ctr(...args: string[]): Promise<string> {
    const socket = join(this.#directory, 'containerd.sock');
    const { stdout } = await run(...this.#wan.atClient('ctr', ['--address', socket, ...args]));
    return stdout;
  }

  /** Kills and removes every container; `ctr run --rm` removes its own at the same time. */
  async #killAll(): Promise<void> {
    const present = async () =>
      (await this.#ctr('containers', 'ls', '-q')).split('\n').filter(Boolean);
    for (const id of await present()) {
      // Either of the two may find that the other has been faster: what counts is looked at below.
      await this.#ctr('tasks', 'delete', '--force', id).catch(() => undefined);
      await this.#ctr('containers', 'delete', id).catch(() => undefined);
    }
    const left = await present();
    if (left.length > 0) throw new Error(`containers are left: ${left.join(', ')}`);
  }

  async prepare(service: PreparedService, mode: Mode): Promise<void> {
    const wanted = { deploy: undefined, update: 'old', local: 'new' }[mode];
    const reference = wanted === undefined ? undefined : this.#reference(service, wanted);
    if (this.#has === reference && reference !== undefined) return;
    const present = (await this.#ctr('images', 'ls', '-q')).split('\n').filter(Boolean);
    for (const image of present) {
      // Returns when contents and snapshots have been collected.
      if (image !== reference) await this.#ctr('images', 'rm', '--sync', image);
    }
    if (reference !== undefined && !present.includes(reference)) await this.#pull(reference);
    this.#has = reference;
  }

  async #pull(reference: string): Promise<void> {
    const link = this.#wan.spec;
    await this.#wan.set({ rttMs: 0.2, bitsPerSecond: 1e9 });
    try {
      await this.#ctr('images', 'pull', '--plain-http', '--snapshotter', 'overlayfs', reference);
    } finally {
      await this.#wan.set(link);
    }
  }

  async warmUp(service: PreparedService, mode: Mode): Promise<void> {
    await this.#ctr('version');
    await run('runc', ['--version']);
    if (mode === 'local') return;
    const index = JSON.parse(
      execFileSync('skopeo', ['inspect', '--raw', `oci:${service.layouts.new}:latest`], {
        encoding: 'utf8',
      }),
    ) as { layers: { digest: string }[] };
    for (const { digest } of index.layers) {
      if (!(await this.#answers(`${service.service.name}/blobs/${digest}`))) {
        throw new Error(`the registry does not give ${digest}`);
      }
    }
  }

  async start(service: PreparedService, mode: Mode): Promise<Start> {
    const socket = join(this.#directory, 'containerd.sock');
    const reference = this.#reference(service, 'new');
    const id = `bench-${process.pid}-${++this.#containers}`;
    const runDirectories = RUN_DIRECTORIES.flatMap((name) => [
      '--mount',
      `type=tmpfs,src=tmpfs,dst=/run/${name},options=mode=1777`,
    ]);
    const pull =
      'ctr --address "$1" images pull --plain-http --snapshotter overlayfs "$2" >/dev/null';
    const start =
      'ctr --address "$1" run --rm --net-host --snapshotter overlayfs --runc-binary "$4"';
    const script = `${mode === 'local' ? '' : `${pull} && `}exec ${start} "\${@:5}" "$2" "$3"`;
    const args = ['-c', script, 'bash', socket, reference, id, RUNC, ...runDirectories];
    const startedAt = Date.now();
    const child = spawn(...this.#wan.atClient('bash', args), { stdio: ['ignore', 'pipe', 'pipe'] });
    this.#space.defer(() => this.#space.end(child));
    this.#has = reference;
    return { child, startedAt };
  }

  async breakdown(): Promise<Breakdown> {
    return {};
  }

  async stop({ child }: Start): Promise<void> {
    const gone = child.exitCode === null ? once(child, 'exit') : undefined;
    await this.#killAll();
    await gone;
  }
}

/** What each child has printed last on standard error, for the text of a failure. */
const printed = new WeakMap<ChildProcess, string>();

/** Keeps the pipes of a child empty: nobody else reads them. */
function drain(child: ChildProcess): void {
  child.stdout?.resume();
  child.stderr?.on('data', (text: Buffer) => {
    printed.set(child, ((printed.get(child) ?? '') + text.toString('latin1')).slice(-2000));
  });
}
