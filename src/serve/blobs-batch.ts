// One intake's contents on their way into a DirectoryBlobStore. Small contents are hashed in memory
// and written behind the caller's back, a bounded number of bytes at a time, so that reading the
// next one does not wait for the disk; large ones go to a file as they come.
import { createHash } from 'node:crypto';
import { createWriteStream } from 'node:fs';
import { chmod, mkdir, rename, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import type { Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { FirstlightError } from '../errors/errors.ts';
import { type BlobBatch, IMAGE_DOCUMENTS, type ImageDocument } from './blobs.ts';
import type { DirectoryBlobStore } from './blobs-directory.ts';

/** Contents up to this size pass through memory. */
const SMALL_BYTES = 1 << 20;
/** At most this many bytes wait to be written. */
const WRITES_MAX_BYTES = 16 << 20;
const WRITES_MAX = 32;

function wrongLength(found: number, wanted: number): FirstlightError {
  return new FirstlightError('corrupt', `a content ends after ${found} of ${wanted} bytes`);
}

/** See {@link BlobBatch}. */
export class DirectoryBatch implements BlobBatch {
  readonly #store: DirectoryBlobStore;
  readonly #directory: string;
  readonly #staged = new Set<string>();
  readonly #writes = new Set<Promise<void>>();
  #writingBytes = 0;
  #large = 0;
  #error: unknown;

  constructor(store: DirectoryBlobStore, directory: string) {
    this.#store = store;
    this.#directory = directory;
  }

  async put(content: Readable, bytes: number): Promise<string> {
    if (this.#error !== undefined) throw this.#error;
    return bytes <= SMALL_BYTES ? this.#putSmall(content, bytes) : this.#putLarge(content, bytes);
  }

  /** Claims a content for this batch; false where it needs no writing. */
  async #claim(hex: string): Promise<boolean> {
    if (this.#staged.has(hex)) return false;
    this.#staged.add(hex);
    if (!(await this.#store.hasContent(hex))) return true;
    this.#staged.delete(hex);
    return false;
  }

  async #putSmall(content: Readable, bytes: number): Promise<string> {
    const chunks: Buffer[] = [];
    let length = 0;
    for await (const chunk of content as AsyncIterable<Buffer>) {
      length += chunk.length;
      if (length > bytes) break;
      chunks.push(chunk);
    }
    if (length !== bytes) throw wrongLength(length, bytes);
    const data = chunks.length === 1 ? chunks[0]! : Buffer.concat(chunks);
    const hex = createHash('sha256').update(data).digest('hex');
    if (!(await this.#claim(hex))) return hex;
    while (this.#writingBytes > WRITES_MAX_BYTES || this.#writes.size >= WRITES_MAX) {
      await Promise.race(this.#writes);
    }
    if (this.#error !== undefined) throw this.#error;
    this.#writingBytes += bytes;
    const write: Promise<void> = writeFile(join(this.#directory, hex), data, {
      flag: 'wx',
      mode: 0o444,
    })
      .catch((error: unknown) => {
        this.#error ??= error;
      })
      .finally(() => {
        this.#writingBytes -= bytes;
        this.#writes.delete(write);
      });
    this.#writes.add(write);
    return hex;
  }

  async #putLarge(content: Readable, bytes: number): Promise<string> {
    const path = join(this.#directory, `large.${this.#large++}`);
    const hash = createHash('sha256');
    let length = 0;
    await pipeline(
      content,
      async function* (source: AsyncIterable<Buffer>) {
        for await (const chunk of source) {
          length += chunk.length;
          if (length > bytes) throw wrongLength(length, bytes);
          hash.update(chunk);
          yield chunk;
        }
      },
      createWriteStream(path, { flags: 'wx', highWaterMark: 1 << 20 }),
    );
    if (length !== bytes) throw wrongLength(length, bytes);
    const hex = hash.digest('hex');
    if (await this.#claim(hex)) {
      await chmod(path, 0o444);
      await rename(path, join(this.#directory, hex));
    } else {
      await rm(path);
    }
    return hex;
  }

  async commit(imageDigest: string, documents: Record<ImageDocument, Buffer>): Promise<void> {
    await Promise.all(this.#writes);
    if (this.#error !== undefined) throw this.#error;
    const store = this.#store;
    const image = join(this.#directory, 'image');
    await mkdir(image);
    for (const name of IMAGE_DOCUMENTS) await writeFile(join(image, name), documents[name]);
    const staged = [...this.#staged];
    await store.sync(
      store.root,
      [
        ...staged.map((hex) => join(this.#directory, hex)),
        ...IMAGE_DOCUMENTS.map((name) => join(image, name)),
      ],
      [image],
    );
    // Data first, then names: a name never points to bytes that a power cut can take back.
    for (const hex of staged) await rename(join(this.#directory, hex), store.contentPath(hex));
    // A directory of this name is one that a crash left without its catalog row; it is the same.
    await store.removeImage(imageDigest);
    await rename(image, store.path('images', imageDigest.slice('sha256:'.length)));
    const shards = new Set(staged.map((hex) => join(store.contentDir, hex.slice(0, 2))));
    await store.sync(store.root, [], [...shards, store.path('images')]);
  }

  async abort(): Promise<void> {
    // Writes that are under way would make the directory again not empty while it is being removed.
    await Promise.all(this.#writes);
    await this.#store.dropScratch(this.#directory);
  }
}
