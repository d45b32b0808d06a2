// Bundles: which one a worker gets, and that it is computed once. What does not live here: those that are there
// (bundle-shelf.ts), their bytes (delta/), which image a request means (image-store.ts), HTTP.
//
// A bundle is looked up by its key: the image, the bases that really save something, and the version
// of the image's order. Two workers with different images that share the same contents get the same
// bundle. Where only a bundle in an older order is there, it is the answer, and the newer one is
// computed behind it: a new order never delays anybody.
//
// Nor do patches. A bundle with patches has a key of its own and is computed behind everything else
// (patch-queue.ts); until it is there, the one without is the answer.
import { createHash } from 'node:crypto';
import { join } from 'node:path';
import PQueue from 'p-queue';
import { BUNDLE_VERSION } from '../delta/bundle.ts';
import { Toc } from '../delta/toc.ts';
import { FirstlightError } from '../errors/errors.ts';
import { BaseChoice } from './base-choice.ts';
import { BundleShelf, type ShelfOptions } from './bundle-shelf.ts';
import type { BundleRecord, RanksRecord } from './catalog.ts';
import { DamagedContents } from './damaged.ts';
import { encode } from './encode.ts';
import type { Gate } from './gate.ts';
import { type MakeBundle, PatchQueue } from './patch-queue.ts';

/** Documents of an image as the encoder wants them. */
export interface LoadedImage {
  digest: string;
  manifest: Buffer;
  config: Buffer;
  toc: Toc;
  /** sha256 of each content, 32 bytes each, in TOC order. */
  digests: Buffer;
}

export interface BundleCacheOptions extends ShelfOptions {
  gate: Gate;
  /** Bundles computed at the same time. */
  encodesAtOnce: number;
  /** Bundles with patches that have been asked for and wait to be computed; beyond them none is begun. */
  patchesWaitingMost: number;
  /** Called after each computation. */
  onEncoded?(seconds: number, record: BundleRecord, patches: boolean): void;
  /** Called when a bundle with patches is asked for, and too many wait already. */
  onPatchRefused?(): void;
  /** Called when the bundle of an image in the order of now is there. */
  onRefreshed?(image: string): Promise<void>;
}

function gone(image: string): FirstlightError {
  return new FirstlightError('not-found', `image ${image} has just been removed`);
}

/** See the head of this file. */
export class BundleCache {
  readonly #o: BundleCacheOptions;
  readonly #queue: PQueue;
  readonly #patches: PatchQueue;
  readonly #damaged: DamagedContents;
  /** Computations under way, by key: whoever wants the same waits for the same. */
  readonly #running = new Map<string, Promise<BundleRecord | undefined>>();
  readonly #choice: BaseChoice;
  /** Those that are there. */
  readonly shelf: BundleShelf;
  readonly #ending = new AbortController();

  constructor(options: BundleCacheOptions) {
    this.#o = options;
    this.#choice = new BaseChoice(options.catalog, options.blobs);
    this.shelf = new BundleShelf(options);
    this.#damaged = new DamagedContents(options.log);
    this.#patches = new PatchQueue(options.patchesWaitingMost, () => options.onPatchRefused?.());
    this.#queue = new PQueue({ concurrency: options.encodesAtOnce });
  }

  /** Reads an image's documents; to be called inside the gate. */
  async load(digest: string): Promise<LoadedImage> {
    const { blobs } = this.#o;
    const [manifest, config, toc, digests] = await Promise.all([
      blobs.readDocument(digest, 'manifest.json'),
      blobs.readDocument(digest, 'config.json'),
      blobs.readDocument(digest, 'toc'),
      blobs.readDocument(digest, 'contents'),
    ]);
    return { digest, manifest, config, toc: new Toc(toc), digests };
  }

  /**
   * Key and family of the bundle that makes `image` from `bases` (sorted).
   * @param order  version of the image's order, empty where it is that of the tree
   */
  keysOf(
    image: string,
    bases: readonly string[],
    order: string,
    patches = false,
  ): { key: string; family: string } {
    const name = (ranks: string | number) => {
      const inputs = { format: BUNDLE_VERSION, image, bases, ranks, ...(patches && { patches }) };
      return createHash('sha256').update(JSON.stringify(inputs)).digest('hex');
    };
    const family = name(0);
    return { key: order === '' ? family : name(order), family };
  }

  /**
   * The bundle that makes `image` on a worker that holds `candidates`; computed where it is not there yet.
   * @param candidates  manifest digests; those that the catalog does not know are ignored
   * @param patches     whether the worker can take patches against them
   * @param gone        aborts with its connection: nothing is computed for later on its account from then on
   */
  async find(
    image: string,
    candidates: readonly string[],
    patches = false,
    gone?: AbortSignal,
  ): Promise<BundleRecord> {
    const { catalog } = this.#o;
    const bases = await this.#chooseBases(image, candidates);
    if (patches && bases.length > 0) {
      const patched = await this.#findPatched(image, bases, gone);
      if (patched !== undefined) return patched;
    }
    const order = await catalog.orderOf(image);
    const { key, family } = this.keysOf(image, bases, order);
    const known = await catalog.findBundle(key);
    if (known !== undefined) return known;
    const running = this.#run(key, image, bases, order);
    const before = await catalog.newestOfFamily(family);
    if (before !== undefined) {
      // Its failure is in the log, and the next request tries again.
      running.catch(() => {});
      return before;
    }
    const made = await running;
    if (made !== undefined) return made;
    // A base has been removed since it was chosen, or the order has changed: what is now decides again.
    return this.find(image, bases);
  }

  /**
   * The bundle with patches that is there for a worker with these bases: the one in the order of now, one in an older
   * order, or one that makes use of a single base, unless that without patches is there and smaller. The first of them is
   * computed where it is not there.
   */
  async #findPatched(
    image: string,
    bases: string[],
    gone: AbortSignal | undefined,
  ): Promise<BundleRecord | undefined> {
    const { catalog } = this.#o;
    const order = await catalog.orderOf(image);
    const { key, family } = this.keysOf(image, bases, order, true);
    const known = await catalog.findBundle(key);
    if (known !== undefined) return known;
    // Its failure is in the log, and the next request tries again.
    this.#patches.want(key, this.#maker(image, bases, order, true), gone).catch(() => {});
    const before = await catalog.newestOfFamily(family);
    if (before !== undefined || bases.length === 1) return before;
    const others = await Promise.all([
      // What the other bases give whole may be more than what patches against one of them save.
      catalog.newestOfFamily(this.keysOf(image, bases, '').family),
      ...bases.map((base) => catalog.newestOfFamily(this.keysOf(image, [base], '', true).family)),
    ]);
    return others.reduce(
      (a, b) => (b === undefined || (a && a.bytes <= b.bytes) ? a : b),
      undefined,
    );
  }

  /**
   * The bundle with patches that makes `image` from `base` in the order of now.
   * @param compute  whether it is computed, behind all others, where it is not there
   * @returns undefined where it is not there or would have no patches
   */
  async patched(image: string, base: string, compute: boolean): Promise<BundleRecord | undefined> {
    const { catalog } = this.#o;
    const bases = await this.#chooseBases(image, [base]);
    if (bases.length === 0) return undefined;
    const order = await catalog.orderOf(image);
    const { key } = this.keysOf(image, bases, order, true);
    const known = await catalog.findBundle(key);
    if (known !== undefined || !compute) return known;
    return this.#patches.ahead(key, this.#maker(image, bases, order, true));
  }

  /** Computes the bundle for a worker without images in the order of now, where it is not there. */
  async refresh(image: string): Promise<void> {
    const { catalog } = this.#o;
    const order = await catalog.orderOf(image);
    const { key } = this.keysOf(image, [], order);
    const known = await catalog.findBundle(key);
    if (known === undefined) await this.#run(key, image, [], order);
    // An order that comes back finds its bundle, which is then the one to keep.
    else if (!known.fresh) await catalog.addBundle({ ...known, fresh: true });
    await this.#o.onRefreshed?.(image);
  }

  /** The computation of a bundle, new or under way; undefined where its inputs have changed meanwhile. */
  #run(
    key: string,
    image: string,
    bases: string[],
    order: string,
  ): Promise<BundleRecord | undefined> {
    const running = this.#running.get(key);
    if (running !== undefined) return running;
    const started = this.#queue
      .add(this.#maker(image, bases, order, false))
      .finally(() => this.#running.delete(key));
    // Whoever waits for it hears of its failure, which may come before they begin to.
    started.catch(() => undefined);
    this.#running.set(key, started);
    return started;
  }

  /** What computes a bundle when its turn comes. */
  #maker(image: string, bases: string[], order: string, patches: boolean): MakeBundle {
    // Not a queue's own signal: it would reject while the work goes on, and `close` would not see its end.
    return async () => {
      this.#ending.signal.throwIfAborted();
      return await this.#o.gate.use(() => this.#make(image, bases, order, patches));
    };
  }

  /**
   * Computes and keeps a bundle; undefined where one of the bases has gone, or the order is no longer this one, or
   * there is nothing to patch.
   */
  async #make(
    image: string,
    bases: string[],
    order: string,
    patches: boolean,
  ): Promise<BundleRecord | undefined> {
    const { catalog } = this.#o;
    if ((await catalog.findByDigest(image)) === undefined) throw gone(image);
    for (const base of bases) {
      if ((await catalog.findByDigest(base)) === undefined) return undefined;
    }
    const ranks = await catalog.ranksOf(image);
    if ((ranks?.version ?? '') !== order) return undefined;
    const [wanted, ...others] = await Promise.all([image, ...bases].map((d) => this.load(d)));
    const made = await this.compute(wanted!, others, ranks, this.#ending.signal, patches);
    try {
      if (patches && made.patches === 0) {
        this.#patches.hasNone(made.record.key);
        return undefined;
      }
      await this.shelf.keep(made, async () => {
        if (!(await catalog.addBundle(made.record))) throw gone(image);
      });
      return made.record;
    } finally {
      await made.drop();
    }
  }

  /** Bases worth counting on; see base-choice.ts. */
  #chooseBases(image: string, candidates: readonly string[]): Promise<string[]> {
    if (candidates.length === 0) return Promise.resolve([]);
    return this.#o.gate.use(() => this.#choice.choose(image, candidates));
  }

  /** Computes a bundle aside; to be called inside the gate. `keep` makes it visible, `drop` cleans up. */
  async compute(
    image: LoadedImage,
    bases: LoadedImage[],
    ranks: RanksRecord | undefined,
    signal: AbortSignal,
    patched = false,
  ): Promise<{ record: BundleRecord; patches: number; path: string; drop(): Promise<void> }> {
    const { blobs, log } = this.#o;
    const scratch = await blobs.makeScratch();
    const path = join(scratch, 'bundle');
    const drop = () => blobs.dropScratch(scratch);
    const started = performance.now();
    try {
      const { id, bytes, headerBytes, patches, damagedOlds } = await encode(
        { image, bases, ranks: ranks?.data, contentDir: blobs.contentDir, patches: patched },
        path,
        AbortSignal.any([signal, this.#ending.signal]),
      );
      this.#damaged.tell(damagedOlds);
      const now = Date.now();
      const record: BundleRecord = {
        id,
        ...this.keysOf(
          image.digest,
          bases.map((base) => base.digest).sort(),
          ranks?.version ?? '',
          patched,
        ),
        image: image.digest,
        bytes,
        headerBytes,
        fresh: bases.length === 0,
        createdAt: now,
        usedAt: now,
      };
      const seconds = (performance.now() - started) / 1000;
      this.#o.onEncoded?.(seconds, record, patched);
      const line = { id, image: image.digest, bases: bases.length, bytes, patches, seconds };
      log.info(line, 'bundle computed');
      return { record, patches, path, drop };
    } catch (error) {
      await drop();
      if (!signal.aborted && !this.#ending.signal.aborted) {
        log.error({ image: image.digest, error }, 'a bundle cannot be computed');
      }
      throw error;
    }
  }

  /** Bundles with patches that are being computed, or wait for it. */
  get patching(): number {
    return this.#patches.waiting;
  }

  /** Stops computations; those who wait for one get an error. */
  async close(): Promise<void> {
    this.#ending.abort(new FirstlightError('unreachable', 'the server is shutting down'));
    await Promise.allSettled([...this.#running.values(), this.#patches.settled()]);
    await this.shelf.settled();
  }
}
