// firstlight's own daemon and `firstlight run`, with bundles in tree order or in traced order, over a
// connection that is made for the run or one that the daemon has had before. What does not live
// here: the servers (delta-site.ts).
import { execFile } from 'node:child_process';
import { rm } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { promisify } from 'node:util';
import type { MountStatus } from '../../src/daemon/control.ts';
import { dropCaches } from '../lib/measure.ts';
import { type Within, Worker } from '../lib/program.ts';
import type { Workspace } from '../lib/workspace.ts';
import type { Wan } from '../wan/wan.ts';
import type { DeltaSite, Order } from './delta-site.ts';
import { RUNC } from './path.ts';
import type { Breakdown, Mode, PreparedService, Start, System } from './system.ts';

const run = promisify(execFile);
/** After these the daemon's connections are there, and have had their first exchange. */
const CONNECT_ROUND_TRIPS = 4;
/** Longer than any retransmission timeout: the kernel takes the connections for idle. */
const IDLE_MS = 3000;

export interface FirstlightVariant {
  name: string;
  order: Order;
  modes: readonly Mode[];
  /** Whether the daemon has its connections to the server from before: open, and never used. */
  kept: boolean;
  /**
   * Whether the daemon itself has brought the old version over the link before, so that its connections have
   * grown, and the server lets idle ones stay so (net.ipv4.tcp_slow_start_after_idle=0). For `update`.
   */
  warm?: boolean;
}

export class FirstlightSystem implements System {
  readonly name: string;
  readonly modes: readonly Mode[];
  readonly #variant: FirstlightVariant;
  readonly #space: Workspace;
  readonly #wan: Wan;
  readonly #site: DeltaSite;
  #worker: Worker | undefined;
  #root: string | undefined;
  #runs = 0;

  constructor(space: Workspace, wan: Wan, site: DeltaSite, variant: FirstlightVariant) {
    this.name = variant.name;
    this.modes = variant.modes;
    this.#variant = variant;
    this.#space = space;
    this.#wan = wan;
    this.#site = site;
  }

  version(): string {
    return 'firstlight of this checkout';
  }

  publish(services: PreparedService[]): Promise<void> {
    return this.#site.publish(services);
  }

  async prepare(service: PreparedService, mode: Mode): Promise<void> {
    await this.#end();
    const root = join(this.#space.makeDirectory('workers'), `${this.name}-${++this.#runs}`);
    if (mode === 'deploy' || this.#variant.warm === true)
      this.#space.makeDirectory('workers', `${this.name}-${this.#runs}`);
    else {
      const from = await this.#site.settledRoot(service, mode === 'update' ? 'old' : 'new');
      await copyRoot(from, root);
    }
    this.#root = root;
  }

  async warmUp(service: PreparedService, mode: Mode): Promise<void> {
    const { order, kept } = this.#variant;
    const url = this.#site.url(order);
    if (mode !== 'local') {
      const from = mode === 'update' ? 'old' : 'nothing';
      await this.#site.touch(this.#site.bundleUrl(order, service, from));
    }
    const within: Within = (command, args) => this.#wan.atClient(command, args);
    // A daemon that is told its server connects at once; one that is not, with the first command.
    const env = kept ? { FIRSTLIGHT_SERVER: url } : { FIRSTLIGHT_SERVER: '' };
    this.#worker = await Worker.start(this.#space, this.#root!, url, { within, env });
    if (kept) await sleep(CONNECT_ROUND_TRIPS * this.#wan.spec.rttMs);
    if (this.#variant.warm === true) await this.#useConnections(service);
    await this.#worker.run('--version');
    await run('runc', ['--version']);
  }

  async start(service: PreparedService, mode: Mode): Promise<Start> {
    const image =
      mode === 'local' ? this.#site.digest(service, 'new') : this.#site.imageName(service, 'new');
    const startedAt = Date.now();
    const child = this.#worker!.spawn('run', image, '--runtime', RUNC);
    return { child, startedAt };
  }

  /** Brings the old version in over the link; then all rests, and caches are dropped, as for the others. */
  async #useConnections(service: PreparedService): Promise<void> {
    await this.#slowStartAfterIdle(0);
    const mountPoint = this.#space.makeDirectory('warm');
    await this.#worker!.run('mount', this.#site.imageName(service, 'old'), mountPoint, '--wait');
    await this.#worker!.run('umount', mountPoint);
    await dropCaches('all');
    await this.#site.touch(this.#site.bundleUrl(this.#variant.order, service, 'old'));
    await sleep(IDLE_MS);
  }

  async #slowStartAfterIdle(value: 0 | 1): Promise<void> {
    const setting = `net.ipv4.tcp_slow_start_after_idle=${value}`;
    await run(...this.#wan.atServer('sysctl', ['-qw', setting]));
  }

  /** What the daemon has noted of its one mount. */
  async breakdown({ startedAt }: Start): Promise<Breakdown> {
    const [mount] = await this.#worker!.request<MountStatus[]>({ op: 'status' });
    if (mount === undefined) return {};
    const times: [string, number | null][] = [
      ['header', mount.headerAt],
      ['mounted', mount.mountedAt],
      ['first_frame', mount.firstFrameAt],
      ['first_read', mount.firstReadAt],
    ];
    const known = times.filter((entry): entry is [string, number] => entry[1] !== null);
    return {
      ...Object.fromEntries(known.map(([name, at]) => [name, at - startedAt])),
      header_bytes: mount.headerBytes,
      out_of_order: (mount.transfer as { outOfOrder?: number }).outOfOrder ?? 0,
    };
  }

  async stop(): Promise<void> {
    await this.#end();
    if (this.#variant.warm === true) await this.#slowStartAfterIdle(1);
  }

  /** The daemon takes its mount, the container and the transfer along. */
  async #end(): Promise<void> {
    await this.#worker?.stop();
    this.#worker = undefined;
    if (this.#root !== undefined) await rm(this.#root, { recursive: true, force: true });
    this.#root = undefined;
  }
}

/** Copies a worker's root. Contents are never written to again: they are linked. */
async function copyRoot(from: string, to: string): Promise<void> {
  const script =
    'mkdir "$2" && for each in "$1"/*; do case $each in */content) cp -al "$each" "$2"/;; *) cp -a "$each" "$2"/;; esac; done';
  await run('bash', ['-euc', script, 'bash', from, to]);
}
