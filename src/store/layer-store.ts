// The worker's store: images by digest and name, and their contents. One process owns a root. What
// does not live here: fetching (receive/), mounts (tree/), and how contents reach the disk
// (contents.ts). Collection and verification are in gc.ts and verify.ts.
//
// Order of changes: an image enters by a rename and then a database row, and leaves by its row
// first and then its files. A crash between the two is mended at the next start: a directory
// without a row is taken in by what its `state` says, a row without a directory is dropped.
import { randomBytes } from 'node:crypto';
import { readdir, readFile, statfs } from 'node:fs/promises';
import { join } from 'node:path';
import { FirstlightError } from '../errors/errors.ts';
import type { Logger } from '../log/log.ts';
import { ContentStore, eachOf } from './contents.ts';
import { collect, type GcReport } from './gc.ts';
import { type NewImage, StoredImage, writeImage } from './image.ts';
import { diskIo, replaceFile, type StoreIo } from './io.ts';
import { HEX64, hexOf, isDigest, Layout, PARTIAL, partialPrefix } from './layout.ts';
import { MetaDb } from './meta.ts';
import { detachStaleMounts } from './mounts.ts';
import { type VerifyOptions, type VerifyReport, verifyStore } from './verify.ts';

/** An image as listings show it. */
export interface StoredImageInfo {
  digest: string;
  names: string[];
  platform: string;
  complete: boolean;
  /** Kept by gc although it has no name. */
  pinned: boolean;
  /** Mounts and transfers that use it now. */
  users: number;
  /** Names in its tree, unique contents, and their bytes. */
  entries: number;
  contents: number;
  bytes: number;
  /** ms since 1970. */
  createdAt: number;
  lastUsedAt: number;
}

/** How a store is opened. */
export interface StoreOptions {
  log: Logger;
  /** What changes the disk; tests put faults in. */
  io?: StoreIo;
}

/** The store below one root. */
export class LayerStore {
  readonly root: string;
  readonly layout: Layout;
  readonly io: StoreIo;
  readonly log: Logger;
  readonly contents: ContentStore;
  readonly #db: MetaDb;
  readonly #images = new Map<string, StoredImage>();
  readonly #users = new Map<string, number>();
  /** Changes under way that a collection must see the end of. */
  readonly #guarded = new Set<Promise<unknown>>();
  readonly #damageListeners = new Set<(hexes: string[]) => Promise<void>>();
  readonly #closers: (() => Promise<void>)[] = [];
  /** Images whose files are being removed. */
  readonly #dropping = new Map<string, Promise<void>>();
  #collecting: Promise<unknown> = Promise.resolve();
  #closing: Promise<void> | undefined;

  private constructor(layout: Layout, db: MetaDb, options: Required<StoreOptions>) {
    this.root = layout.root;
    this.layout = layout;
    this.io = options.io;
    this.log = options.log;
    this.#db = db;
    this.contents = new ContentStore(options.io, layout, options.log);
  }

  /**
   * Opens a store, made where there is none, and mends what a crash has left.
   * @throws FirstlightError 'busy' naming the process that has it open
   */
  static async open(root: string, options: StoreOptions): Promise<LayerStore> {
    const layout = new Layout(root);
    const io = options.io ?? diskIo;
    await io.makeDirectory(root);
    const db = await openLocked(layout);
    try {
      const store = new LayerStore(layout, db, { log: options.log, io });
      await replaceFile(io, layout.owner, Buffer.from(`${process.pid}\n`));
      await store.#makeDirectories();
      await detachStaleMounts(layout.snapshots, options.log);
      await store.#loadImages();
      const { kept, dropped } = await store.contents.load();
      await store.#cleanIncoming();
      if (kept + dropped > 0) {
        options.log.info({ kept, dropped }, 'contents of an interrupted transfer were checked');
      }
      return store;
    } catch (error) {
      db.close();
      throw error;
    }
  }

  async #makeDirectories(): Promise<void> {
    const { content, incoming, images, snapshots, traces } = this.layout;
    for (const path of [content, incoming, images, snapshots, traces]) {
      await this.io.makeDirectory(path);
    }
    const there = new Set(await readdir(content));
    const shards = Array.from({ length: 256 }, (_, i) => i.toString(16).padStart(2, '0'));
    const missing = shards.filter((shard) => !there.has(shard));
    await eachOf(missing, 8, (shard) => this.io.makeDirectory(join(content, shard)));
    if (missing.length > 0) await this.io.syncDirectory(content);
  }

  /** Reads images/, and makes the database agree with it. */
  async #loadImages(): Promise<void> {
    const names = await readdir(this.layout.images);
    for (const name of names) {
      const directory = join(this.layout.images, name);
      if (!HEX64.test(name)) {
        await this.io.remove(directory);
        continue;
      }
      try {
        this.#images.set(
          `sha256:${name}`,
          await StoredImage.load(this.io, `sha256:${name}`, directory),
        );
      } catch (error) {
        if (!(error instanceof FirstlightError && error.kind === 'corrupt')) throw error;
        this.log.error({ err: error, directory }, 'an image is damaged and is put aside');
        await this.#putAside(directory, name);
      }
    }
    this.#db.transaction(() => {
      const rows = new Set(this.#db.images().map((row) => row.digest));
      for (const digest of rows) if (!this.#images.has(digest)) this.#db.removeImage(digest);
      for (const [digest, { state }] of this.#images) {
        if (rows.has(digest)) continue;
        this.#db.addImage(digest, state.platform, Date.now());
        if (state.name !== '') this.#db.setName(state.name, state.platform, digest);
      }
    });
  }

  async #putAside(directory: string, name: string): Promise<void> {
    await this.io.makeDirectory(this.layout.quarantine);
    const suffix = randomBytes(4).toString('hex');
    await this.io.rename(directory, join(this.layout.quarantine, `image-${name}.${suffix}`));
  }

  /** Removes from incoming/ all but contents and the partial files of images that still arrive. */
  async #cleanIncoming(): Promise<void> {
    const arriving = new Set<string>();
    for (const image of this.#images.values()) {
      if (!image.complete) arriving.add(partialPrefix(image.digest));
    }
    for (const name of await readdir(this.layout.incoming)) {
      const partial = PARTIAL.exec(name);
      if (HEX64.test(name) || (partial !== null && arriving.has(partial[1]!))) continue;
      await this.io.remove(join(this.layout.incoming, name));
    }
  }

  /** Every image, oldest first. */
  images(): StoredImageInfo[] {
    const names = this.#db.names();
    return this.#db.images().flatMap((row) => {
      const image = this.#images.get(row.digest);
      if (image === undefined) return [];
      return {
        digest: row.digest,
        names: names.filter((name) => name.digest === row.digest).map((name) => name.name),
        platform: row.platform,
        complete: image.complete,
        pinned: row.pinned,
        users: this.#users.get(row.digest) ?? 0,
        entries: image.counts.rows,
        contents: image.counts.contents,
        bytes: image.counts.totalBytes,
        createdAt: row.createdAt,
        lastUsedAt: row.lastUsedAt,
      };
    });
  }

  /**
   * The image of a name or digest, or undefined.
   * @param platform  os/arch[/variant] that a name must be for; any where undefined
   */
  findImage(nameOrDigest: string, platform?: string): StoredImage | undefined {
    if (isDigest(nameOrDigest)) return this.#images.get(nameOrDigest);
    const row = this.#db
      .names()
      .find((r) => r.name === nameOrDigest && (platform === undefined || r.platform === platform));
    return row === undefined ? undefined : this.#images.get(row.digest);
  }

  /**
   * Takes in a new image; one that is there already is left as it is, and gets the name.
   * Durable when it resolves.
   */
  async registerImage(image: NewImage): Promise<StoredImage> {
    const { digest, state } = image;
    // Its files have the names that ours will have. An error is told to who removes it.
    await this.#dropping.get(digest)?.catch(() => undefined);
    let stored = this.#images.get(digest);
    if (stored === undefined) {
      const suffix = randomBytes(4).toString('hex');
      const aside = join(this.layout.incoming, `image.${hexOf(digest)}.${suffix}`);
      const directory = this.layout.imageDirectory(digest);
      try {
        await writeImage(this.io, aside, image);
        await this.io.rename(aside, directory);
      } catch (error) {
        // The start-up removes what this cannot.
        await this.io.remove(aside).catch(() => undefined);
        throw error;
      }
      await this.io.syncDirectory(this.layout.images);
      stored = await StoredImage.load(this.io, digest, directory);
      this.#images.set(digest, stored);
    }
    this.#db.transaction(() => {
      this.#db.addImage(digest, state.platform, Date.now());
      if (state.name !== '') this.#db.setName(state.name, state.platform, digest);
    });
    return stored;
  }

  /** Makes a name mean an image that the store has. */
  setName(name: string, platform: string, digest: string): void {
    this.#db.transaction(() => this.#db.setName(name, platform, digest));
  }

  /** Keeps an image from gc although it has no name, or no longer. */
  setPinned(digest: string, pinned: boolean): void {
    this.#db.transaction(() => this.#db.setPinned(digest, pinned));
  }

  /**
   * Says that an image is in use (mounted, or being received) until the returned function is called.
   */
  use(digest: string): () => void {
    this.#users.set(digest, (this.#users.get(digest) ?? 0) + 1);
    try {
      this.#db.touch(digest, Date.now());
    } catch (error) {
      // Only the order of listings and bases hangs on it: on a full disk, mounts must go on.
      this.log.warn({ err: error, image: digest }, 'when the image was last used is not noted');
    }
    let released = false;
    return () => {
      if (released) return;
      released = true;
      const left = (this.#users.get(digest) ?? 1) - 1;
      if (left === 0) this.#users.delete(digest);
      else this.#users.set(digest, left);
    };
  }

  /**
   * Drops a name, or all names of a digest. The image goes with its last name, unless it is in use:
   * then gc removes it later. Contents are gc's.
   * @returns whether the image itself is gone
   * @throws FirstlightError 'not-found'
   */
  async removeImage(nameOrDigest: string): Promise<{ digest: string; removed: boolean }> {
    const image = this.findImage(nameOrDigest);
    if (image === undefined) {
      throw new FirstlightError('not-found', `the store has no image ${nameOrDigest}`, {
        hint: '"firstlight ls" lists what it has',
      });
    }
    const { digest } = image;
    this.#db.transaction(() => {
      for (const row of this.#db.names()) {
        if (row.digest !== digest) continue;
        if (isDigest(nameOrDigest) || row.name === nameOrDigest)
          this.#db.removeName(row.name, digest);
      }
    });
    const named = this.#db.names().some((row) => row.digest === digest);
    if (named || this.#users.has(digest)) return { digest, removed: false };
    await this.dropImage(digest);
    return { digest, removed: true };
  }

  /** Removes an image that is not in use: its row, its directory, its partial files. */
  async dropImage(digest: string): Promise<void> {
    const image = this.#images.get(digest);
    if (image === undefined || this.#users.has(digest)) return;
    this.#db.transaction(() => this.#db.removeImage(digest));
    this.#images.delete(digest);
    const dropping = this.#removeFiles(image).finally(() => this.#dropping.delete(digest));
    this.#dropping.set(digest, dropping);
    await dropping;
  }

  async #removeFiles({ digest, directory }: StoredImage): Promise<void> {
    // Out of images/ in one step: a crash leaves no half an image, only something to clean.
    const suffix = randomBytes(4).toString('hex');
    const aside = join(this.layout.incoming, `image.${hexOf(digest)}.${suffix}`);
    await this.io.rename(directory, aside);
    await this.io.remove(aside);
    await this.removePartials(digest);
  }

  /** Removes the partial files of an image. */
  async removePartials(digest: string): Promise<void> {
    const prefix = partialPrefix(digest);
    for (const name of await readdir(this.layout.incoming)) {
      if (PARTIAL.exec(name)?.[1] === prefix) {
        await this.io.remove(join(this.layout.incoming, name));
      }
    }
  }

  /**
   * Runs a change that first uses contents and then writes down who uses them. A collection that
   * begins meanwhile waits for its end.
   */
  async guard<T>(change: () => Promise<T>): Promise<T> {
    const running = change();
    this.#guarded.add(running);
    try {
      return await running;
    } finally {
      this.#guarded.delete(running);
    }
  }

  /** Waits for the guarded changes that are under way now. */
  async guardedSettled(): Promise<void> {
    // Their errors go to who started them.
    await Promise.allSettled(this.#guarded);
  }

  /** Removes images that have no name and no user, and contents that no image uses. */
  gc(): Promise<GcReport> {
    return this.#alone(() => collect(this));
  }

  /** Hashes every content again; damaged ones are put aside and fetched again when wanted. */
  verify(options: VerifyOptions = {}): Promise<VerifyReport> {
    return this.#alone(() => verifyStore(this, options));
  }

  /** Collection and verification one after the other. */
  #alone<T>(work: () => Promise<T>): Promise<T> {
    const running = this.#collecting.then(work);
    this.#collecting = running.catch(() => undefined);
    return running;
  }

  /** Calls `listener` with the digests (hex) of contents found damaged or missing, until released. */
  onDamage(listener: (hexes: string[]) => Promise<void>): () => void {
    this.#damageListeners.add(listener);
    return () => this.#damageListeners.delete(listener);
  }

  /** Tells those who use contents that these are gone. */
  async reportDamage(hexes: string[]): Promise<void> {
    await Promise.all([...this.#damageListeners].map((listener) => listener(hexes)));
  }

  /** Bytes and number of contents, and what the filesystem has left. */
  async usage(): Promise<{ contents: number; bytes: number; freeBytes: number }> {
    let bytes = 0;
    let contents = 0;
    await eachOf(this.contents.names(), 8, async (hex) => {
      const size = await this.contents.sizeOf(hex);
      bytes += size;
      contents++;
    });
    const filesystem = await statfs(this.root);
    return { contents, bytes, freeBytes: filesystem.bavail * filesystem.bsize };
  }

  /** Something to end before the store does, in the reverse order of registration. */
  onClose(closer: () => Promise<void>): void {
    this.#closers.push(closer);
  }

  /** Makes everything durable and gives the root back. Idempotent. */
  close(): Promise<void> {
    this.#closing ??= this.#close();
    return this.#closing;
  }

  async #close(): Promise<void> {
    try {
      for (const closer of this.#closers.reverse()) await closer();
      await this.#collecting;
      await this.guardedSettled();
      await this.contents.close();
    } finally {
      await this.io.remove(this.layout.owner).catch((error: unknown) => {
        // Only the text of a message hangs on this file.
        this.log.warn({ err: error }, 'the owner file stays');
      });
      this.#db.close();
    }
  }
}

/** Opens the database, which is the lock; the error names the process that has it. */
async function openLocked(layout: Layout): Promise<MetaDb> {
  try {
    return new MetaDb(layout.database);
  } catch (error) {
    if (!(error instanceof FirstlightError && error.kind === 'busy')) throw error;
    // The owner may not have written its file yet; then the message goes without a number.
    const pid = await readFile(layout.owner, 'utf8').catch(() => '');
    const who = /^\d+$/.test(pid.trim()) ? `process ${pid.trim()}` : 'another process';
    throw new FirstlightError('busy', `the store ${layout.root} is in use by ${who}`, {
      hint: 'stop that daemon, or choose another --root',
      cause: error,
    });
  }
}
