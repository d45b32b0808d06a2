// The blob store in a directory:
//
//   content/<2>/<62>    file contents by sha256, mode 0444
//   images/<hex>/       manifest.json, config.json, toc, contents (32 bytes each, in TOC order)
//   bundles/<id>
//   uploads/            everything that is being written; emptied at start
//
// What stands outside uploads/ is whole and durable: it was written in uploads/, synced and renamed.
import {
  access,
  chmod,
  type FileHandle,
  mkdir,
  mkdtemp,
  open,
  opendir,
  readdir,
  readFile,
  rename,
  rm,
  unlink,
  writeFile,
} from 'node:fs/promises';
import { join } from 'node:path';
import type { BlobStore, BundleReader, ImageDocument } from './blobs.ts';
import { DirectoryBatch } from './blobs-batch.ts';
import { chooseSync, type Sync } from './durable.ts';

/** Ignores that a file is not there; any other error goes on. */
function absent(error: unknown): undefined {
  if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error;
  return undefined;
}

const hexOf = (digest: string) => digest.slice(digest.indexOf(':') + 1);

class FileReader implements BundleReader {
  readonly bytes: number;
  readonly #handle: FileHandle;

  constructor(handle: FileHandle, bytes: number) {
    this.#handle = handle;
    this.bytes = bytes;
  }

  async read(position: number, bytes: number): Promise<Buffer> {
    const buffer = Buffer.allocUnsafe(Math.max(0, Math.min(bytes, this.bytes - position)));
    let filled = 0;
    while (filled < buffer.length) {
      const { bytesRead } = await this.#handle.read(
        buffer,
        filled,
        buffer.length - filled,
        position + filled,
      );
      if (bytesRead === 0) throw new Error('a bundle file is shorter than it was');
      filled += bytesRead;
    }
    return buffer;
  }

  close(): Promise<void> {
    return this.#handle.close();
  }
}

/** {@link BlobStore} in `root`. */
export class DirectoryBlobStore implements BlobStore {
  readonly root: string;
  readonly contentDir: string;
  readonly sync: Sync;

  private constructor(root: string, sync: Sync) {
    this.root = root;
    this.contentDir = join(root, 'content');
    this.sync = sync;
  }

  /** Opens the store, made new where there is none. The caller holds the lock: uploads/ is emptied. */
  static async open(root: string, sync: Sync = chooseSync()): Promise<DirectoryBlobStore> {
    const store = new DirectoryBlobStore(root, sync);
    await rm(store.path('uploads'), { recursive: true, force: true });
    for (const name of ['uploads', 'images', 'bundles', 'content']) {
      await mkdir(store.path(name), { recursive: true });
    }
    const shards = Array.from({ length: 256 }, (_, i) => i.toString(16).padStart(2, '0'));
    const there = new Set(await readdir(store.contentDir));
    const missing = shards.filter((shard) => !there.has(shard));
    await Promise.all(missing.map((shard) => mkdir(join(store.contentDir, shard))));
    if (missing.length > 0) await sync(root, [], [root, store.contentDir]);
    return store;
  }

  /** A path below the root. */
  path(...names: string[]): string {
    return join(this.root, ...names);
  }

  /** Where a content stands, or will. */
  contentPath(hex: string): string {
    return join(this.contentDir, hex.slice(0, 2), hex.slice(2));
  }

  async hasContent(hex: string): Promise<boolean> {
    try {
      await access(this.contentPath(hex));
      return true;
    } catch (error) {
      absent(error);
      return false;
    }
  }

  async openBatch(): Promise<DirectoryBatch> {
    return new DirectoryBatch(this, await this.makeScratch());
  }

  makeScratch(): Promise<string> {
    return mkdtemp(this.path('uploads', 'x'));
  }

  async dropScratch(path: string): Promise<void> {
    await rm(path, { recursive: true, force: true });
  }

  readDocument(imageDigest: string, document: ImageDocument): Promise<Buffer> {
    return readFile(this.path('images', hexOf(imageDigest), document));
  }

  async removeImage(imageDigest: string): Promise<void> {
    const path = this.path('images', hexOf(imageDigest));
    const aside = await this.makeScratch();
    // One rename takes it away whole; what is removed piece by piece could be left in pieces.
    await rename(path, join(aside, 'image')).catch(absent);
    await this.dropScratch(aside);
  }

  async removeContents(hex: string[]): Promise<void> {
    for (const digest of hex) await unlink(this.contentPath(digest)).catch(absent);
  }

  async adoptBundle(id: string, path: string): Promise<void> {
    await chmod(path, 0o444);
    await this.sync(this.root, [path], []);
    await rename(path, this.path('bundles', id));
    await this.sync(this.root, [], [this.path('bundles')]);
  }

  async openBundle(id: string): Promise<BundleReader | undefined> {
    const handle = await open(this.path('bundles', id), 'r').catch(absent);
    if (handle === undefined) return undefined;
    try {
      return new FileReader(handle, (await handle.stat()).size);
    } catch (error) {
      await handle.close();
      throw error;
    }
  }

  async removeBundle(id: string): Promise<void> {
    await unlink(this.path('bundles', id)).catch(absent);
  }

  async *listContents(): AsyncIterable<string> {
    for (const shard of await readdir(this.contentDir)) {
      for await (const entry of await opendir(join(this.contentDir, shard))) {
        yield shard + entry.name;
      }
    }
  }

  async listImages(): Promise<string[]> {
    return (await readdir(this.path('images'))).map((hex) => `sha256:${hex}`);
  }

  listBundles(): Promise<string[]> {
    return readdir(this.path('bundles'));
  }

  async check(): Promise<void> {
    const aside = await this.makeScratch();
    try {
      // More than an inode can hold inline, so that a full disk shows.
      await writeFile(join(aside, 'check'), Buffer.alloc(4096, 1), { flush: true });
    } finally {
      await this.dropScratch(aside);
    }
  }
}
