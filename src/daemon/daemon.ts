// The daemon of one root: owns its store, its transfers and its mounts, and answers the control
// socket. It never looks at a path that may lie below one of its own mounts: the clients resolve
// directories, and what is known about mounts comes from /proc/self/mountinfo.
import { readlink, rmdir } from 'node:fs/promises';
import { join } from 'node:path';
import { FirstlightError } from '../errors/errors.ts';
import type { OpensChoice } from '../fuse/opens.ts';
import { type Logger, makeLogger } from '../log/log.ts';
import { deltaClientOf, type Receiver, useConnections, useTokenFile } from '../receive/receiver.ts';
import { SnapshotMetrics } from '../snapshots/metrics.ts';
import { SnapshotService } from '../snapshots/service.ts';
import { LayerStore } from '../store/layer-store.ts';
import { recoverJournals } from '../trace/recover.ts';
import type {
  ControlRequest,
  DaemonStatus,
  GcResult,
  PulledStatus,
  StoredImage,
  VerifyResult,
} from './control.ts';
import { ControlServer, type Exchange } from './control-server.ts';
import { IdleTimer } from './idle.ts';
import { type CountedMount, DaemonMetrics, type MetricsServer, serveMetrics } from './metrics.ts';
import { MountTable } from './mount-table.ts';
import { Notes } from './notes.ts';
import { runtimeDir, socketPath } from './paths.ts';
import { parseRequest } from './requests.ts';
import { Transfers } from './transfers.ts';

/** How a daemon is started. */
export interface DaemonOptions {
  root: string;
  version: string;
  /** It ends after this time with nothing to do; infinite: never. */
  idleMs: number;
  /** Ends it. */
  signal: AbortSignal;
  /** containerd's snapshotter; undefined: it is none. */
  snapshotter?: SnapshotterOptions | undefined;
  /** Connections that a bundle comes over at once. */
  connections: number;
  /** Delta server to which these connections are made at once and kept; undefined: with the first bundle. */
  keepServer?: string | undefined;
  /** File with the token for a server: what it is shown, from the start. */
  token?: { server: string; path: string } | undefined;
  /** How long they are kept open after the last bundle, ms; 0: not at all. */
  keepWarmMs: number;
  /** HOST:PORT at which metrics are read; undefined: nowhere. */
  metrics?: string | undefined;
}

/** How the daemon serves containerd. */
export interface SnapshotterOptions {
  /** Absolute path of the socket. */
  socket: string;
  /** Delta server. */
  server: string;
  platform: string;
  /** Where registries' mirrors and certificates are looked for (hosts.toml); nowhere where absent. */
  hostsDirs?: readonly string[] | undefined;
  /** How long the delta server may take to say that it has an image, ms. */
  prepareTimeoutMs: number;
  waitTimeoutMs: number;
  threads: number;
  passthrough: boolean;
  opens: OpensChoice;
}

/** How often a `--follow` or `--wait` hears where things stand. */
const FOLLOW_MS = 200;

export class Daemon {
  readonly #options: DaemonOptions;
  readonly #log: Logger;
  readonly #store: LayerStore;
  readonly #transfers: Transfers;
  readonly #mounts: MountTable;
  readonly #idle: IdleTimer;
  readonly #startedAt = Date.now();
  readonly #namespace: string;
  #control: ControlServer | undefined;
  readonly #snapshotMetrics = new SnapshotMetrics();
  #snapshots: SnapshotService | undefined;
  #metrics: MetricsServer | undefined;
  #ending = false;
  #finish: (() => void) | undefined;
  /** Resolves when everything is unmounted and closed. */
  readonly ended: Promise<void>;

  private constructor(
    options: DaemonOptions,
    store: LayerStore,
    notes: Notes,
    namespace: string,
    log: Logger,
  ) {
    this.#namespace = namespace;
    this.#options = options;
    this.#store = store;
    this.#log = log;
    this.#idle = new IdleTimer(options.idleMs, () => {
      log.info('nothing to do: ending');
      void this.end();
    });
    this.#transfers = new Transfers(store, this.#idle, log);
    this.#mounts = new MountTable({
      store,
      transfers: this.#transfers,
      notes,
      mountPoints: join(runtimeDir(options.root), 'rootfs'),
      idle: this.#idle,
      log,
    });
    this.ended = new Promise((resolve) => {
      this.#finish = resolve;
    });
  }

  /**
   * Takes the root, clears away what a killed daemon has left, and listens.
   * @throws FirstlightError `busy` where another process has the root
   */
  static async start(options: DaemonOptions): Promise<Daemon> {
    const log = makeLogger('daemon');
    const store = await LayerStore.open(options.root, { log: makeLogger('store') });
    try {
      useConnections(store, options.connections);
      const { token } = options;
      if (token !== undefined) useTokenFile(store, token.server, token.path, log);
      const runtime = runtimeDir(options.root);
      const notes = new Notes(join(runtime, 'mounts'), store.layout.snapshots, log);
      await notes.clearAll();
      await recoverTraces(store.layout.traces, log);
      const namespace = await readlink('/proc/self/ns/mnt');
      const daemon = new Daemon(options, store, notes, namespace, log);
      daemon.#control = await ControlServer.listen(
        socketPath(options.root),
        (request, exchange) => daemon.#handle(request, exchange),
        log,
      );
      try {
        await daemon.#startFaces();
      } catch (error) {
        await daemon.#control.close();
        throw error;
      }
      const onAbort = () => void daemon.end();
      options.signal.addEventListener('abort', onAbort, { once: true });
      if (options.signal.aborted) onAbort();
      if (options.keepServer !== undefined) {
        deltaClientOf(store, options.keepServer).keepOpen(options.keepWarmMs);
      }
      log.info({ root: options.root, version: options.version }, 'ready');
      return daemon;
    } catch (error) {
      await store.close();
      throw error;
    }
  }

  /** What the foreground's daemon has beside the control socket. */
  async #startFaces(): Promise<void> {
    const { snapshotter, metrics } = this.#options;
    const counts = this.#snapshotMetrics;
    if (snapshotter !== undefined) {
      const log = makeLogger('snapshots');
      this.#snapshots = await SnapshotService.start({
        ...snapshotter,
        keepWarmMs: this.#options.keepWarmMs,
        store: this.#store,
        open: (ref, signal) => this.#openImage(snapshotter, ref, signal),
        release: (receiver) => this.#transfers.release(receiver),
        close: (receiver) => this.#transfers.close(receiver),
        metrics: counts,
        log,
      });
    }
    if (metrics === undefined) return;
    new DaemonMetrics(counts.registry, () => this.#counted(), this.#transfers);
    try {
      this.#metrics = await serveMetrics(metrics, counts.registry, this.#log);
    } catch (error) {
      await this.#snapshots?.stopListening();
      await this.#snapshots?.close();
      throw error;
    }
    this.#log.info({ url: `${this.#metrics.url}/metrics` }, 'metrics can be read');
  }

  #openImage(
    { server, platform }: SnapshotterOptions,
    ref: string,
    signal: AbortSignal | undefined,
  ): Promise<Receiver> {
    const log = this.#log;
    return this.#transfers.open({ server, ref, platform, bases: undefined, log, signal });
  }

  #counted(): CountedMount[] {
    const own = this.#mounts.list().map(({ id, instance, receiver }) => ({
      id,
      face: 'command' as const,
      stats: instance.status().stats,
      upcalls: instance.status().tree?.upcalls ?? 0,
      waiting: receiver.template.waiting(),
      image: receiver.digest,
    }));
    const images = this.#snapshots?.mounts() ?? [];
    const shared = images.map(({ digest, instance, receiver, mountedAt }) => ({
      id: `${digest} ${mountedAt}`,
      face: 'containerd' as const,
      stats: instance.status().stats,
      upcalls: instance.status().tree?.upcalls ?? 0,
      waiting: receiver.template.waiting(),
      image: digest,
    }));
    return [...own, ...shared];
  }

  /** Unmounts everything, closes everything. Idempotent. */
  async end(): Promise<void> {
    if (this.#ending) return this.ended;
    this.#ending = true;
    this.#idle.stop();
    try {
      await this.#metrics?.close();
      await this.#snapshots?.stopListening();
      await this.#mounts.endAll();
      await this.#snapshots?.close();
      await this.#transfers.endAll();
      await this.#control?.close();
      await this.#store.close();
      await removeEmpty(runtimeDir(this.#options.root));
    } catch (error) {
      this.#log.error({ err: error }, 'the end was not clean');
    }
    this.#log.info('ended');
    this.#finish?.();
    return this.ended;
  }

  async #handle(value: unknown, exchange: Exchange): Promise<unknown> {
    const request = parseRequest(value);
    if (this.#ending && request.op !== 'ping') {
      throw new FirstlightError('busy', 'the daemon is ending', { hint: 'try again' });
    }
    // Who only looks does not keep it from ending, or a monitor would keep it for ever.
    const looks = ['status', 'images', 'snapshots', 'pulls', 'ping'].includes(request.op);
    const release = looks ? () => {} : this.#idle.use();
    try {
      return await this.#dispatch(request, exchange);
    } finally {
      release();
    }
  }

  async #dispatch(request: ControlRequest, exchange: Exchange): Promise<unknown> {
    switch (request.op) {
      case 'mount':
        this.#checkNamespace(request.mountNamespace);
        return this.#mounts.mount(request, exchange);
      case 'umount':
        return this.#mounts.umount(request);
      case 'status':
        return request.follow === true
          ? this.#follow(request.directory, exchange)
          : this.#mounts.status(request.directory);
      case 'images':
        return this.#images();
      case 'snapshots':
        return this.#mounts.changes.list();
      case 'pulls':
        return this.#pulls();
      case 'gc':
        return this.#gc(request.all === true, request.snapshots === true);
      case 'trace':
        return this.#mounts.trace(request);
      case 'verify':
        return this.#verify(exchange);
      case 'ping':
        return this.#status();
      case 'stop':
        // After the answer: the connection it goes out on is closed by the end.
        setImmediate(() => void this.end());
        return { pid: process.pid };
    }
  }

  /** A mount made here is not seen in another mount namespace, and would only confuse there. */
  #checkNamespace(namespace: string | undefined): void {
    if (namespace === undefined || namespace === this.#namespace) return;
    throw new FirstlightError(
      'unsupported',
      'the daemon of this root runs in another mount namespace: its mounts are not seen here',
      { hint: 'give another --root here, or run "firstlight daemon --stop" first' },
    );
  }

  async #follow(directory: string | undefined, exchange: Exchange): Promise<unknown> {
    for (;;) {
      const mounts = await this.#mounts.status(directory);
      if (!this.#mounts.isArriving(directory) || exchange.gone.aborted || this.#ending)
        return mounts;
      exchange.send({ event: 'status', mounts });
      await new Promise((resolve) => setTimeout(resolve, FOLLOW_MS));
    }
  }

  #images(): StoredImage[] {
    return this.#store.images().map((image) => ({
      names: image.names,
      digest: image.digest,
      platform: image.platform,
      complete: image.complete,
      bytes: image.bytes,
      entries: image.entries,
      users: image.users,
      createdAt: image.createdAt,
      lastUsedAt: image.lastUsedAt,
    }));
  }

  async #pulls(): Promise<PulledStatus[]> {
    const images = (await this.#snapshots?.images()) ?? [];
    return images.map(({ ref, ...rest }) => ({ image: ref, ...rest }));
  }

  async #gc(all: boolean, keptToo: boolean): Promise<GcResult> {
    let dropped = 0;
    if (all) {
      for (const image of this.#store.images()) {
        // What containerd has goes when containerd removes it.
        if (image.users > 0 || image.pinned) continue;
        if ((await this.#store.removeImage(image.digest)).removed) dropped++;
      }
    }
    const report = await this.#store.gc();
    const snapshots = await this.#mounts.changes.removeUnused(keptToo);
    return {
      snapshots,
      images: dropped + report.images.length,
      contents: report.contents,
      bytes: report.bytes,
    };
  }

  async #verify(exchange: Exchange): Promise<VerifyResult> {
    return this.#store.verify({
      signal: exchange.gone,
      onProgress: (done, total) => exchange.send({ event: 'progress', done, total }),
    });
  }

  #status(): DaemonStatus {
    return {
      pid: process.pid,
      version: this.#options.version,
      root: this.#options.root,
      startedAt: this.#startedAt,
      rssBytes: process.memoryUsage.rss(),
      idleMs: Number.isFinite(this.#options.idleMs) ? this.#options.idleMs : null,
      snapshotter: this.#options.snapshotter?.socket ?? null,
    };
  }
}

/** Makes traces of what killed daemons were recording. Never an obstacle to the daemon's start. */
async function recoverTraces(directory: string, log: Logger): Promise<void> {
  try {
    const { traces, broken } = await recoverJournals(directory);
    for (const path of traces) log.info({ path }, 'a trace that a killed daemon recorded is saved');
    for (const { path, error } of broken) log.warn({ path, err: error }, 'a trace is lost');
  } catch (error) {
    log.error({ err: error, directory }, 'what a killed daemon recorded could not be saved yet');
  }
}

/** Removes a directory and those below it, as far as they are empty. */
async function removeEmpty(directory: string): Promise<void> {
  for (const name of ['mounts', 'rootfs', 'bundles', 'containers', '']) {
    // In use by a client that is just beginning, or not there: both are fine.
    await rmdir(join(directory, name)).catch(() => undefined);
  }
}
