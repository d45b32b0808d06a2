// The server's images without HTTP: open, add, list, inspect, remove, find a bundle. The HTTP server
// (server.ts) and `firstlight image --data DIR` (withStore) are two faces of it. How an image comes in
// is intake.ts; what bundles are made of and kept is bundle-cache.ts.
import { mkdir } from 'node:fs/promises';
import { resolve } from 'node:path';
import PQueue from 'p-queue';
import type { ImageDetail, ImageOrder, ImageSummary } from '../delta/protocol.ts';
import { FirstlightError } from '../errors/errors.ts';
import {
  formatPlatform,
  noSuchPlatform,
  parsePlatform,
  platformDistance,
} from '../image/platform.ts';
import type { Logger } from '../log/log.ts';
import type { BlobStore } from './blobs.ts';
import { DirectoryBlobStore } from './blobs-directory.ts';
import { BundleCache, type BundleCacheOptions } from './bundle-cache.ts';
import type { BundleRecord, Catalog, NamedImage } from './catalog.ts';
import { SqliteCatalog } from './catalog-sqlite.ts';
import { Chains } from './chains.ts';
import { Gate } from './gate.ts';
import { Intake, type IntakeOptions } from './intake.ts';
import { parseCatalogRef } from './names.ts';
import { Patches } from './patches.ts';
import { sweepAll, sweepSome } from './sweep.ts';
import { Traces, type TracesOptions } from './traces.ts';

/** Bounds of a store; every one has a default. */
export interface ImageStoreLimits {
  /** How long a bundle is kept after its last use: 24 hours. */
  bundleKeepMs: number;
  /** Bytes that all bundles may take: 64 GiB. */
  bundlesMaxBytes: number;
  /** Bundles computed, and images taken in, at the same time. */
  encodesAtOnce: number;
  intakesAtOnce: number;
  /** Bundles with patches that wait to be computed because somebody has asked for them: 256. */
  patchesWaitingMost: number;
  /** Reported traces that are kept of each image: 32, the newest. */
  tracesPerImage: number;
  /** Bytes that all traces may take, compressed: 1 GiB. */
  tracesMaxBytes: number;
  /** Time until an order is tried again that the state of the disk did not allow: 60 s. */
  reorderRetryMs: number;
}

export const DEFAULT_LIMITS: ImageStoreLimits = {
  bundleKeepMs: 24 * 3600 * 1000,
  bundlesMaxBytes: 64 * 2 ** 30,
  encodesAtOnce: 2,
  intakesAtOnce: 2,
  patchesWaitingMost: 256,
  tracesPerImage: 32,
  tracesMaxBytes: 2 ** 30,
  reorderRetryMs: 60_000,
};

export interface ImageStoreOptions {
  dataDir: string;
  log: Logger;
  limits?: Partial<ImageStoreLimits>;
  onEncoded?: BundleCacheOptions['onEncoded'];
  onPatchRefused?: BundleCacheOptions['onPatchRefused'];
  onReordered?: TracesOptions['onReordered'];
}

/** A row of the catalog as the interface shows it. */
export function summaryOf(image: NamedImage): ImageSummary {
  return {
    name: image.name ?? image.digest,
    digest: image.digest,
    platform: image.platform,
    entries: image.entries,
    bytes: image.bytes,
    layers: image.layers,
    added: new Date(image.addedAt).toISOString(),
  };
}

export class ImageStore {
  readonly catalog: Catalog;
  readonly blobs: BlobStore;
  readonly bundles: BundleCache;
  readonly traces: Traces;
  readonly patches: Patches;
  readonly chains: Chains;
  readonly log: Logger;
  readonly #gate = new Gate();
  readonly #intake: Intake;
  readonly #intakes: PQueue;
  /** Removals of files that wait for their moment. */
  readonly #removals = new Set<Promise<void>>();
  readonly #ending = new AbortController();

  private constructor(catalog: Catalog, blobs: BlobStore, options: ImageStoreOptions) {
    const limits = { ...DEFAULT_LIMITS, ...options.limits };
    this.catalog = catalog;
    this.blobs = blobs;
    this.log = options.log;
    this.chains = new Chains(catalog, blobs, this.#gate, options.log);
    this.bundles = new BundleCache({
      catalog,
      blobs,
      gate: this.#gate,
      log: options.log,
      keepMs: limits.bundleKeepMs,
      maxBytes: limits.bundlesMaxBytes,
      encodesAtOnce: limits.encodesAtOnce,
      patchesWaitingMost: limits.patchesWaitingMost,
      ...(options.onEncoded === undefined ? {} : { onEncoded: options.onEncoded }),
      ...(options.onPatchRefused === undefined ? {} : { onPatchRefused: options.onPatchRefused }),
      onRefreshed: (image) => this.patches.note(image),
    });
    this.patches = new Patches({ catalog, bundles: this.bundles, log: options.log });
    this.traces = new Traces({
      catalog,
      blobs,
      bundles: this.bundles,
      gate: this.#gate,
      log: options.log,
      bounds: limits,
      retryMs: limits.reorderRetryMs,
      ...(options.onReordered === undefined ? {} : { onReordered: options.onReordered }),
    });
    this.#intake = new Intake({
      catalog,
      blobs,
      bundles: this.bundles,
      gate: this.#gate,
      log: options.log,
      rank: (...image) => this.traces.rankNew(...image),
      onNamed: (image) => this.traces.note(image),
      onAdded: (image, before) => this.patches.note(image, before),
      onLeftovers: (change, contents, image) =>
        this.#removeLater(() => sweepSome(this, change, contents, [image])),
    });
    this.#intakes = new PQueue({ concurrency: limits.intakesAtOnce });
  }

  /**
   * Opens the store of a data directory, made new where there is none, and mends what a crash left.
   * @throws 'busy' where another process has it
   */
  static async open(options: ImageStoreOptions): Promise<ImageStore> {
    const dataDir = resolve(options.dataDir);
    await mkdir(dataDir, { recursive: true });
    // First the lock: what follows clears away the work of a process that must no longer be there.
    const catalog = await SqliteCatalog.open(dataDir);
    try {
      const blobs = await DirectoryBlobStore.open(dataDir);
      const store = new ImageStore(catalog, blobs, options);
      if ((await catalog.openChanges()) > 0) {
        const removed = await sweepAll(store);
        options.log.info(removed, 'the last process ended in the middle of a change; cleared up');
      }
      await store.bundles.shelf.recover();
      return store;
    } catch (error) {
      await catalog.close();
      throw error;
    }
  }

  /**
   * Takes an image in. Nothing of it is visible before all of it is, its first bundle included.
   * @throws whatever is wrong with the source; 'no-space'; the reason of `signal`
   */
  async add(options: IntakeOptions): Promise<ImageSummary> {
    const signal = AbortSignal.any(
      options.signal === undefined ? [this.#ending.signal] : [options.signal, this.#ending.signal],
    );
    const image = await this.#intakes.add(() => this.#intake.run({ ...options, signal }), {
      signal,
    });
    return summaryOf(image);
  }

  async list(): Promise<ImageSummary[]> {
    return (await this.catalog.listImages()).map(summaryOf);
  }

  /**
   * The image that a reference means.
   * @param platform  may be left out where the name has only one
   * @throws 'not-found'; 'platform', naming those there are; 'usage' where a platform must be said
   */
  async find(ref: string, platform: string | undefined): Promise<NamedImage> {
    const parsed = parseCatalogRef(ref);
    const wanted = platform === undefined ? undefined : parsePlatform(platform);
    const found =
      parsed.by === 'name'
        ? await this.catalog.findByName(parsed.name)
        : [await this.catalog.findByDigest(parsed.digest)].filter((image) => image !== undefined);
    const shown = parsed.by === 'name' ? parsed.name : parsed.digest;
    if (found.length === 0) {
      throw new FirstlightError('not-found', `there is no image ${shown} on this server`, {
        hint: 'add it with "firstlight image add", or see "firstlight image ls"',
      });
    }
    if (wanted === undefined) {
      if (found.length === 1) return found[0]!;
      const has = found.map((image) => image.platform).join(', ');
      throw new FirstlightError('usage', `${shown} has several platforms: ${has}`, {
        hint: 'choose one with --platform',
      });
    }
    const fitting = found
      .map((image) => ({
        image,
        distance: platformDistance(wanted, parsePlatform(image.platform)),
      }))
      .filter((fit) => fit.distance !== undefined)
      .sort((a, b) => a.distance! - b.distance!);
    if (fitting.length > 0) return fitting[0]!.image;
    throw noSuchPlatform(
      shown,
      wanted,
      found.map((image) => parsePlatform(image.platform)),
    );
  }

  async inspect(ref: string, platform: string | undefined): Promise<ImageDetail> {
    return this.#gate.use(async () => {
      const image = await this.find(ref, platform);
      const [manifest, config, bundle, order, patches] = await Promise.all([
        this.blobs.readDocument(image.digest, 'manifest.json'),
        this.blobs.readDocument(image.digest, 'config.json'),
        this.catalog.freshBundle(image.digest),
        this.#orderOf(image.digest),
        this.patches.statusOf(image.digest),
      ]);
      return {
        ...summaryOf(image),
        manifest: JSON.parse(manifest.toString()),
        config: JSON.parse(config.toString()),
        ...(bundle === undefined
          ? {}
          : { bundleBytes: bundle.bytes, headerBytes: bundle.headerBytes }),
        order,
        patches,
      };
    });
  }

  async #orderOf(image: string): Promise<ImageOrder> {
    const [ranks, reordering] = await Promise.all([
      this.catalog.ranksOf(image),
      this.catalog.isReordering(image),
    ]);
    return { runs: ranks?.runs ?? 0, ranked: ranks?.count ?? 0, settled: !reordering };
  }

  /**
   * Drops a name, or all names of a digest; the image goes with its last name, and its contents with their last
   * image. Resolves when nothing of it can be found any more; the files follow when nobody uses them.
   */
  async remove(ref: string, platform: string | undefined): Promise<void> {
    const parsed = parseCatalogRef(ref);
    const exact = platform === undefined ? undefined : formatPlatform(parsePlatform(platform));
    const contentsOf = new Map<string, Buffer>();
    const { change, removed } = await this.#gate.use(async () => {
      const touched = await this.#toRemove(ref, exact);
      for (const { digest } of touched) {
        contentsOf.set(digest, await this.blobs.readDocument(digest, 'contents'));
      }
      const which = parsed.by === 'name' ? { name: parsed.name, platform: exact } : parsed;
      const change = await this.catalog.openChange();
      try {
        return { change, removed: await this.catalog.removeImages(which, contentsOf) };
      } catch (error) {
        await this.catalog.closeChange(change);
        throw error;
      }
    });
    this.log.info({ names: removed.names, images: removed.images }, 'image removed');
    await this.bundles.shelf.retired(removed.bundles);
    const contents = removed.images.map((digest) => contentsOf.get(digest)!);
    this.#removeLater(() => sweepSome(this, change, Buffer.concat(contents), removed.images));
  }

  /** The images whose name or names go; the error of `find` where there are none. */
  async #toRemove(ref: string, platform: string | undefined): Promise<NamedImage[]> {
    const parsed = parseCatalogRef(ref);
    if (parsed.by === 'name') {
      const named = await this.catalog.findByName(parsed.name);
      const touched = named.filter((i) => platform === undefined || i.platform === platform);
      if (touched.length > 0) return touched;
    }
    return [await this.find(ref, platform)];
  }

  /**
   * The bundle that makes an image on a worker which has `bases`, and can take patches or not.
   * @param gone  aborts with its connection
   */
  async bundleFor(
    image: NamedImage,
    bases: readonly string[],
    patches = false,
    gone?: AbortSignal,
  ): Promise<BundleRecord> {
    return this.bundles.find(image.digest, bases, patches, gone);
  }

  #removeLater(work: () => Promise<void>): void {
    const removal = this.#gate
      .remove(work)
      .catch((error: unknown) => {
        // The note of the change stays, so the next start does it.
        this.log.error({ error }, 'files of a removed image stay until the next start');
      })
      .finally(() => this.#removals.delete(removal));
    this.#removals.add(removal);
  }

  /** The periodic clean-up of bundles. */
  async clean(): Promise<void> {
    await this.patches.keep();
    await this.bundles.shelf.clean();
  }

  /** Resolves when all removals so far have taken their files away. */
  async settled(): Promise<void> {
    while (this.#removals.size > 0) await Promise.all(this.#removals);
  }

  /** Stops what is under way, then closes everything and gives the lock back. */
  async close(): Promise<void> {
    this.#ending.abort(new FirstlightError('unreachable', 'the server is shutting down'));
    const patches = this.patches.close();
    await this.bundles.close();
    await patches;
    await this.traces.close();
    await this.#intakes.onIdle();
    await this.settled();
    await this.catalog.close();
  }
}

/**
 * Runs `work` on the store of a data directory that no server has open, and closes it.
 * @throws 'busy' where a server has it
 */
export async function withStore<T>(
  options: ImageStoreOptions,
  work: (store: ImageStore) => Promise<T>,
): Promise<T> {
  const store = await ImageStore.open(options);
  try {
    return await work(store);
  } finally {
    await store.settled();
    await store.close();
  }
}
