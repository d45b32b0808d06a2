// The server's end for firstlight: two delta servers with the same images. One knows no traces, so its
// bundles are in tree order; to the other, one run of each service has been reported. What does not
// live here: the worker's end (firstlight.ts).
import { execFile, execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { once } from 'node:events';
import { existsSync, readFileSync, renameSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { promisify } from 'node:util';
import { FRAMES_HEADER, PATCH_FRAMES } from '../../src/delta/protocol.ts';
import { formatPlatform, hostPlatform } from '../../src/image/platform.ts';
import { type BenchServer, openServer, type Within, Worker } from '../lib/program.ts';
import type { Workspace } from '../lib/workspace.ts';
import type { Wan } from '../wan/wan.ts';
import { RUNC } from './path.ts';
import { waitReady } from './ready.ts';
import type { PreparedService } from './system.ts';

const run = promisify(execFile);

/** In which order bundles bring contents. */
export type Order = 'tree' | 'traced';

const PORTS: Record<Order, number> = { tree: 7070, traced: 7071 };

/** One image of a server's catalog, as `image ls --json` lists it. */
interface Listed {
  name: string;
  digest: string;
}

/** Of `image inspect --json`: how many reported runs decide over the order of its bundles. */
interface Inspected {
  order: { runs: number };
  patches: { pending: number };
}

/** What curl has to say to be sent the bundle that a worker is sent. */
export const AS_WORKER = ['-H', `${FRAMES_HEADER}: ${PATCH_FRAMES}`];

/** Patches of a large image take a minute of one processor; those of all services wait in one line. */
const PATCHED_MS = 30 * 60_000;

export class DeltaSite {
  readonly #space: Workspace;
  readonly #wan: Wan;
  readonly #cache: string;
  readonly #digests = new Map<string, string>();
  #workers = 0;
  #published: Promise<void> | undefined;
  readonly #atServer: Within;

  /** @param cache  directory in which data is kept between runs, for these images and these sources */
  constructor(space: Workspace, wan: Wan, cache: string) {
    this.#space = space;
    this.#wan = wan;
    this.#cache = cache;
    this.#atServer = (command, args) => wan.atServer(command, args);
  }

  url(order: Order): string {
    return `http://${this.#wan.server.address}:${PORTS[order]}`;
  }

  /** Names what is in the layout: one that was built anew is another image. */
  imageName({ service, layouts }: PreparedService, version: 'old' | 'new'): string {
    const index = readFileSync(join(layouts[version], 'index.json'));
    const key = createHash('sha256').update(index).digest('hex').slice(0, 12);
    return `bench/${service.name}:${version}-${key}`;
  }

  /** Manifest digest of an image. */
  digest(service: PreparedService, version: 'old' | 'new'): string {
    return this.#digests.get(this.imageName(service, version))!;
  }

  /** Address of the bundle that a worker with nothing, or with the old version, is sent. */
  bundleUrl(order: Order, service: PreparedService, from: 'nothing' | 'old'): string {
    const query = new URLSearchParams({
      image: this.imageName(service, 'new'),
      platform: formatPlatform(hostPlatform()),
    });
    if (from === 'old') query.append('base', this.digest(service, 'old'));
    return `${this.url(order)}/v1/delta?${query}`;
  }

  /** Fetches a bundle at the server's own end: it is computed then, and in memory. */
  async touch(url: string): Promise<void> {
    await run(...this.#atServer('curl', ['-sSf', ...AS_WORKER, '-o', '/dev/null', url]));
  }

  /** Starts both servers with these images; once, whoever asks. */
  publish(services: PreparedService[]): Promise<void> {
    this.#published ??= this.#publish(services);
    return this.#published;
  }

  async #publish(services: PreparedService[]): Promise<void> {
    const data = { tree: join(this.#cache, 'tree'), traced: join(this.#cache, 'traced') };
    const first = await this.#start('tree', data.tree);
    await this.#addImages('tree', services);
    await this.#patched('tree', services);
    if (!existsSync(data.traced)) {
      // A copy is faster than computing every bundle twice. The database rests while it is copied.
      await this.#space.end(first.process);
      rmSync(`${data.traced}.partial`, { recursive: true, force: true });
      execFileSync('cp', ['-a', data.tree, `${data.traced}.partial`]);
      renameSync(`${data.traced}.partial`, data.traced);
      await this.#start('tree', data.tree);
    }
    await this.#start('traced', data.traced);
    await this.#addImages('traced', services);
    await this.#report(services);
    await this.#patched('traced', services);
    for (const service of services) {
      for (const order of ['tree', 'traced'] as const) {
        await this.touch(this.bundleUrl(order, service, 'nothing'));
        await this.touch(this.bundleUrl(order, service, 'old'));
      }
    }
  }

  #start(order: Order, data: string): Promise<BenchServer> {
    const listen = `${this.#wan.server.address}:${PORTS[order]}`;
    const within = this.#atServer;
    return openServer(this.#space, data, ['--log', 'warn'], { listen, within });
  }

  async #addImages(order: Order, services: PreparedService[]): Promise<void> {
    const worker = await this.#worker(order);
    const list = async () => JSON.parse(await worker.run('image', 'ls', '--json')) as Listed[];
    const present = new Set((await list()).map(({ name }) => name));
    for (const service of services) {
      for (const version of ['old', 'new'] as const) {
        const name = this.imageName(service, version);
        if (present.has(name)) continue;
        process.stderr.write(`taking in ${name}\n`);
        const source = `oci:${service.layouts[version]}:latest`;
        await worker.run('image', 'add', source, '--name', name);
      }
    }
    for (const { name, digest } of await list()) this.#digests.set(name, digest);
    await worker.stop();
  }

  /** Waits until the patches of the new versions are computed: a server has had the time for it long before an update. */
  async #patched(order: Order, services: PreparedService[]): Promise<void> {
    const worker = await this.#worker(order);
    const until = Date.now() + PATCHED_MS;
    for (const service of services) {
      const name = this.imageName(service, 'new');
      for (;;) {
        const out = await worker.run('image', 'inspect', name, '--json');
        if ((JSON.parse(out) as Inspected).patches.pending === 0) break;
        if (Date.now() > until) throw new Error(`the patches of ${name} do not come`);
        await sleep(500);
      }
    }
    await worker.stop();
  }

  /** A daemon at the server's end, where no link stands between it and the server. */
  async #worker(order: Order): Promise<Worker> {
    const root = this.#space.makeDirectory(`site-${order}-${++this.#workers}`);
    return Worker.start(this.#space, root, this.url(order), { within: this.#atServer });
  }

  /** Reports one run of each service for which none has been reported yet. */
  async #report(services: PreparedService[]): Promise<void> {
    const worker = await this.#worker('traced');
    let traced = 0;
    for (const service of services) {
      const name = this.imageName(service, 'new');
      const { order } = JSON.parse(
        await worker.run('image', 'inspect', name, '--json'),
      ) as Inspected;
      if (order.runs > 0) continue;
      process.stderr.write(`tracing ${service.service.name}\n`);
      await this.#trace(worker, service);
      traced++;
    }
    if (traced > 0) await worker.run('trace', 'report', '--wait');
    await worker.stop();
  }

  async #trace(worker: Worker, service: PreparedService): Promise<void> {
    const name = this.imageName(service, 'new');
    const child = worker.spawn(
      ...['run', name, '--runtime', RUNC, '--trace', service.service.name],
    );
    const ended = once(child, 'exit');
    await waitReady(service.service, { child, wan: this.#wan, at: 'server' });
    child.kill('SIGTERM');
    await ended;
  }

  /** A worker's root that holds the old (or new) version, complete and at rest. */
  async settledRoot(service: PreparedService, version: 'old' | 'new'): Promise<string> {
    const root = join(this.#space.directory, 'settled', `${service.service.name}-${version}`);
    if (existsSync(root)) return root;
    this.#space.makeDirectory('settled', `${service.service.name}-${version}.partial`);
    const partial = `${root}.partial`;
    const worker = await Worker.start(this.#space, partial, this.url('tree'), {
      within: this.#atServer,
    });
    const mountPoint = this.#space.makeDirectory('settled-mount');
    await worker.run('mount', this.imageName(service, version), mountPoint, '--wait');
    await worker.run('umount', mountPoint);
    await worker.stop();
    renameSync(partial, root);
    return root;
  }
}
