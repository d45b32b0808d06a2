// Bundles that are there: taken in, opened, and taken away when nobody wants them. What does not live here: which of
// them is wanted, and computing them (bundle-cache.ts).
import { LRUCache } from 'lru-cache';
import type { Logger } from '../log/log.ts';
import type { BlobStore, BundleReader } from './blobs.ts';
import type { BundleRecord, Catalog } from './catalog.ts';

/** A bundle open for sending; `close` says that this transfer is over. */
export interface OpenBundle {
  record: BundleRecord;
  reader: BundleReader;
  close(): Promise<void>;
}

export interface ShelfOptions {
  catalog: Catalog;
  blobs: BlobStore;
  log: Logger;
  /** A bundle goes when nobody has asked for it for this long. Those for workers without images stay. */
  keepMs: number;
  /** Bundles go, least recently used first, while all of them are larger than this. */
  maxBytes: number;
}

/** The time of last use is written down when it is this much older. */
const TOUCH_MS = 60_000;

/** See the head of this file. */
export class BundleShelf {
  readonly #o: ShelfOptions;
  readonly #readers = new Map<string, number>();
  readonly #touched = new LRUCache<string, number>({ max: 100_000 });
  /** Files and rows of bundles change together, one change at a time. */
  #change: Promise<unknown> = Promise.resolve();

  constructor(options: ShelfOptions) {
    this.#o = options;
  }

  /** After a crash: bundles without a row, rows without a bundle, and retired ones go. */
  async recover(): Promise<void> {
    const { catalog, blobs } = this.#o;
    const files = new Set(await blobs.listBundles());
    for (const id of await catalog.bundleIds()) {
      if (files.delete(id)) continue;
      await catalog.retireBundle(id);
      await catalog.dropBundle(id);
    }
    for (const id of files) await blobs.removeBundle(id);
    await this.retired(await catalog.retiredBundles());
  }

  /**
   * Takes a computed bundle in: its file, then, by `record`, its row. Where the row cannot be written the file goes,
   * unless an equal bundle has a row already.
   */
  async keep(
    made: { record: BundleRecord; path: string },
    record: () => Promise<void>,
  ): Promise<void> {
    const { blobs, catalog } = this.#o;
    const { id } = made.record;
    await this.#alone(async () => {
      const known = await catalog.bundleById(id);
      await blobs.adoptBundle(id, made.path);
      try {
        await record();
      } catch (error) {
        if (known === undefined) await blobs.removeBundle(id);
        throw error;
      }
    });
  }

  /** Opens a bundle by id; undefined where there is none. */
  async open(id: string): Promise<OpenBundle | undefined> {
    const { catalog, blobs } = this.#o;
    // Counted before the first wait, so that no removal comes in between.
    this.#readers.set(id, (this.#readers.get(id) ?? 0) + 1);
    try {
      const record = await catalog.bundleById(id);
      const reader = record === undefined ? undefined : await blobs.openBundle(id);
      if (record !== undefined && reader !== undefined) {
        await this.#touch(id);
        return { record, reader, close: () => this.#close(id, reader) };
      }
      if (record !== undefined) {
        this.#o.log.warn({ id }, 'the file of a bundle is missing; it will be computed again');
        await catalog.retireBundle(id);
      }
    } catch (error) {
      await this.#release(id);
      throw error;
    }
    await this.#release(id);
    return undefined;
  }

  async #close(id: string, reader: BundleReader): Promise<void> {
    try {
      await reader.close();
      await this.#touch(id);
    } finally {
      await this.#release(id);
    }
  }

  async #release(id: string): Promise<void> {
    const readers = this.#readers.get(id)! - 1;
    if (readers > 0) this.#readers.set(id, readers);
    else {
      this.#readers.delete(id);
      await this.retired([id]);
    }
  }

  async #touch(id: string): Promise<void> {
    const now = Date.now();
    if (now - (this.#touched.get(id) ?? 0) < TOUCH_MS) return;
    this.#touched.set(id, now);
    await this.#o.catalog.touchBundle(id, now);
  }

  /** Removes those of these bundles that are retired and that nobody is reading; for the others their last reader does it. */
  async retired(ids: readonly string[]): Promise<void> {
    for (const id of ids) {
      await this.#alone(async () => {
        if (this.#readers.has(id)) return;
        if (await this.#o.catalog.dropBundle(id)) await this.#o.blobs.removeBundle(id);
      });
    }
  }

  /** The periodic clean-up: what is too old, then what is too much. */
  async clean(now = Date.now()): Promise<string[]> {
    const { catalog, keepMs, maxBytes, log } = this.#o;
    const bundles = (await catalog.listBundles()).filter((b) => !this.#readers.has(b.id));
    const going = bundles.filter((b) => !b.fresh && b.usedAt < now - keepMs);
    const staying = bundles.filter((b) => !going.includes(b));
    let bytes = staying.reduce((sum, b) => sum + b.bytes, 0);
    // What a first mount needs goes last.
    for (const b of [...staying.filter((s) => !s.fresh), ...staying.filter((s) => s.fresh)]) {
      if (bytes <= maxBytes) break;
      going.push(b);
      bytes -= b.bytes;
    }
    const ids = going.map((b) => b.id);
    for (const id of ids) await catalog.retireBundle(id);
    await this.retired(ids);
    if (ids.length > 0) log.info({ bundles: ids.length }, 'unused bundles removed');
    return ids;
  }

  /** Resolves when no change is under way. */
  async settled(): Promise<void> {
    await this.#change;
  }

  #alone<T>(work: () => Promise<T>): Promise<T> {
    const turn = this.#change.then(work);
    // The chain goes on whatever came of this turn; its caller hears of an error by `turn`.
    this.#change = turn.catch(() => {});
    return turn;
  }
}
