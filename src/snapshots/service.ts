// The snapshotter as the daemon runs it: its parts made and joined, in order and in reverse. What does not
// live here: settings, the daemon's own mounts, and what any part does.
import { join } from 'node:path';
import { mayOpenAlone, type OpensChoice } from '../fuse/opens.ts';
import { layersOf } from '../image/chain.ts';
import type { Logger } from '../log/log.ts';
import { deltaClientOf, type Receiver } from '../receive/receiver.ts';
import type { LayerStore } from '../store/layer-store.ts';
import { Claims } from './claims.ts';
import { Directories } from './directories.ts';
import { Keeper } from './keeper.ts';
import { keeperSocket } from './keeper-socket.ts';
import { lowerTrees } from './lower-trees.ts';
import type { SnapshotMetrics } from './metrics.ts';
import { Records } from './records.ts';
import { RpcServer } from './rpc.ts';
import { Snapshotter } from './snapshotter.ts';
import { type TreeStatus, Trees } from './trees.ts';
import { KIND } from './types.ts';

export interface SnapshotServiceOptions {
  store: LayerStore;
  /** Socket that containerd connects to. */
  socket: string;
  /** Delta server; undefined: every image is pulled in the ordinary way. */
  server: string | undefined;
  /** os/arch[/variant] of this machine. */
  platform: string;
  /** Where registries' mirrors and certificates are looked for (hosts.toml); nowhere where absent. */
  hostsDirs?: readonly string[] | undefined;
  /** How long the delta server may take to say that it has an image, ms. */
  prepareTimeoutMs: number;
  /** How long the connections to the delta server are kept open after a pull, ms; 0: not at all. */
  keepWarmMs: number;
  waitTimeoutMs: number;
  threads: number;
  passthrough: boolean;
  /** Whether the kernel may come to open files alone. */
  opens: OpensChoice;
  /** Opens an image; `release` gives it back. */
  open(ref: string, signal?: AbortSignal): Promise<Receiver>;
  release(receiver: Receiver): Promise<void>;
  /** Gives one back whose transfer nobody wants to go on. */
  close(receiver: Receiver): Promise<void>;
  metrics: SnapshotMetrics;
  log: Logger;
}

/** An image that containerd has pulled through this snapshotter. */
export interface PulledImage {
  /** As the client calls it; null where it did not say. */
  ref: string | null;
  /** Manifest digest of one that comes lazily, else the chain id of its last layer. */
  digest: string;
  way: 'lazy' | 'ordinary';
  /** Why it was pulled in the ordinary way; null where nobody asked for more. */
  reason: string | null;
  /** Containers and the like that stand on it now. */
  users: number;
  createdAt: number;
}

export class SnapshotService {
  readonly #records: Records;
  readonly #trees: Trees;
  readonly #keeper: Keeper;
  readonly #rpc: RpcServer;
  readonly #metrics: SnapshotMetrics;

  private constructor(
    records: Records,
    trees: Trees,
    keeper: Keeper,
    rpc: RpcServer,
    metrics: SnapshotMetrics,
  ) {
    this.#metrics = metrics;
    this.#records = records;
    this.#trees = trees;
    this.#keeper = keeper;
    this.#rpc = rpc;
  }

  /**
   * Opens the records, repairs what a crash left, and listens.
   * @throws FirstlightError `busy`, `usage`, `unsupported`
   */
  static async start(options: SnapshotServiceOptions): Promise<SnapshotService> {
    const { store, log, metrics, server } = options;
    const directories = await Directories.open(join(store.root, 'containerd'), log);
    const records = await Records.open(directories.records, directories.snapshots);
    try {
      const client = server === undefined ? undefined : deltaClientOf(store, server);
      // The first pull finds connections, too.
      client?.keepOpen(options.keepWarmMs);
      const keeper = new Keeper({
        socket: keeperSocket(directories.base),
        logFile: join(directories.base, 'keeper.log'),
        threads: options.threads,
        passthrough: options.passthrough,
        unseenOpens: mayOpenAlone(options.opens),
        log,
      });
      const trees = new Trees({
        store,
        directory: directories.images,
        open: options.open,
        release: options.release,
        close: options.close,
        instance: { makeSession: keeper.sessions, waitTimeoutMs: options.waitTimeoutMs },
        onWaited: (seconds) => metrics.waitSeconds.observe(seconds),
        isUsed: (digest) => records.call('isMounted', digest),
        log,
      });
      const open = (digest: string, signal: AbortSignal) => {
        client?.keepOpen();
        return options.open(digest, signal);
      };
      const keep = (receiver: Receiver) => {
        countSaved(receiver, metrics);
        trees.keep(receiver);
      };
      const claims = new Claims({
        open,
        keep,
        release: options.close,
        chains: client === undefined ? undefined : (id, ms) => client.chains(id, ms),
        ping: async (ms) => client?.ping(ms),
        platform: options.platform,
        timeoutMs: options.prepareTimeoutMs,
        log,
      });
      const makeTree = lowerTrees({ ...options, hostsDirs: options.hostsDirs ?? [], client });
      const parts = { records, directories, trees, claims, store, metrics, makeTree, log };
      const snapshotter = new Snapshotter(parts);
      await snapshotter.recover();
      await adopt(keeper, trees);
      const rpc = await RpcServer.listen({ socket: options.socket, snapshotter, metrics, log });
      goOn(options, await snapshotter.unfinished());
      const service = new SnapshotService(records, trees, keeper, rpc, metrics);
      metrics.count = () => service.counts();
      return service;
    } catch (error) {
      await records.close();
      throw error;
    }
  }

  /** Images that are mounted for containerd now. */
  mounts(): TreeStatus[] {
    return this.#trees.list();
  }

  /** Images that containerd has, as far as their last layers show. */
  async images(): Promise<PulledImage[]> {
    const snapshots = await this.#records.call('list');
    const committed = snapshots.filter(({ kind }) => kind === KIND.Committed);
    const lower = new Set(
      snapshots.filter(({ kind }) => kind === KIND.Committed).map(({ parentId }) => parentId),
    );
    const users = (id: number) =>
      snapshots.filter(({ kind, parentId }) => kind !== KIND.Committed && parentId === id).length;
    return committed
      .filter(({ id, lazy }) => !lower.has(id) || (lazy !== null && lazy.tree === lazy.image))
      .map(({ id, key, lazy, fallback, labels, createdAt }) => ({
        ref: lazy?.ref ?? labels['containerd.io/snapshot/cri.image-ref'] ?? null,
        digest: lazy?.image ?? key.replace(/^.*(?=sha256:)/, ''),
        way: lazy === null ? 'ordinary' : 'lazy',
        reason: lazy === null ? fallback : null,
        users: users(id),
        createdAt,
      }));
  }

  /** Number of snapshots by kind, for the metrics. */
  async counts(): Promise<Record<'view' | 'active' | 'committed' | 'lazy', number>> {
    const counts = { view: 0, active: 0, committed: 0, lazy: 0 };
    for (const { kind, lazy } of await this.#records.call('list')) {
      if (kind === KIND.View) counts.view++;
      else if (kind === KIND.Active) counts.active++;
      else if (lazy !== null) counts.lazy++;
      else counts.committed++;
    }
    return counts;
  }

  /** No new calls. */
  async stopListening(): Promise<void> {
    this.#metrics.count = undefined;
    await this.#rpc.close();
  }

  /** Unmounts what no container stands on and closes the records; after `stopListening`. */
  async close(): Promise<void> {
    await this.#trees.endAll();
    await this.#keeper.close();
    await this.#records.close();
  }
}

/** Goes on with what an earlier daemon has left mounted. */
async function adopt(keeper: Keeper, trees: Trees): Promise<void> {
  const mounts = new Map((await keeper.find()).map((each) => [each.image, each.mountPoint]));
  await trees.clearStrays(new Set(mounts.keys()));
  // Not waited for: each image is ready as soon as it is open, and what needs it waits for that.
  void trees.adopt([...mounts.keys()], (digest) =>
    keeper.unmount(digest, mounts.get(digest) ?? '', true),
  );
}

/** Images that were asked for before a restart go on arriving. */
function goOn(options: SnapshotServiceOptions, digests: string[]): void {
  for (const digest of digests) {
    options.open(digest).then(
      (receiver) => options.release(receiver),
      (error: unknown) => {
        options.log.warn({ err: error, image: digest }, 'an image does not go on arriving');
      },
    );
  }
}

/** When all of an image is there, what it has saved is known. */
function countSaved(receiver: Receiver, metrics: SnapshotMetrics): void {
  receiver.complete.then(
    () => {
      const { headerBytes, receivedBytes } = receiver.progress();
      const { bytes } = layersOf(receiver.manifest, receiver.config);
      metrics.savedBytes.inc(Math.max(0, bytes - headerBytes - receivedBytes));
    },
    // One that does not arrive has saved nothing.
    () => undefined,
  );
}
