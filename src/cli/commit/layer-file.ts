// Writes a layer: tar, compressed by gzip, to a file, with both of its digests. The same entries give
// the same bytes. What does not live here: which entries (tree/diff-layer.ts).
import { createHash, type Hash } from 'node:crypto';
import { createReadStream } from 'node:fs';
import { type FileHandle, open, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { createGzip } from 'node:zlib';
import { FirstlightError } from '../../errors/errors.ts';
import { tarEnd, tarHeaders, tarPadding } from '../../image/tar-write.ts';
import { textOf } from '../../image/tree.ts';
import { native } from '../../native/index.ts';
import type { Layout } from '../../store/layout.ts';
import type { LayerItem } from '../../tree/diff-layer.ts';
import { UpperFiles } from '../../tree/upper-tree.ts';

const CHUNK_BYTES = 1 << 20;
const DIGEST_BYTES = 32;

/** A layer as it was written. */
export interface WrittenLayer {
  /** sha256:..., of the file and of the tar in it. */
  digest: string;
  diffId: string;
  bytes: number;
  entries: number;
  /** Newest time of an entry, seconds since 1970. */
  newestSec: number;
  /** Files that were shorter when they were read than when they were listed: filled up with zeros. */
  changed: string[];
}

/** Where the bytes of entries are. */
export interface ByteSources {
  /** Upper directory; undefined where no entry is of it. */
  upper: string | undefined;
  layout: Layout;
  /** `contents` of the image: 32 bytes of sha256 a content. */
  digests: Buffer;
}

/** Reads the digests of an image's contents. */
export function readDigests(imageDirectory: string): Promise<Buffer> {
  return readFile(join(imageDirectory, 'contents'));
}

class Sources {
  readonly #sources: ByteSources;
  readonly #files: UpperFiles | undefined;
  readonly changed: string[] = [];

  constructor(sources: ByteSources) {
    this.#sources = sources;
    const { upper } = sources;
    this.#files = upper === undefined ? undefined : new UpperFiles(native().upper, upper);
  }

  /** Exactly `item.size` bytes. */
  async *read(item: LayerItem): AsyncGenerator<Buffer> {
    let left = item.size;
    const stream = await this.#open(item);
    if (stream !== undefined) {
      for await (const chunk of stream) {
        const some = (chunk as Buffer).subarray(0, left);
        left -= some.length;
        yield some;
        if (left === 0) break;
      }
    }
    if (left === 0) return;
    this.changed.push(textOf(item.name));
    for (; left > 0; left -= Math.min(left, CHUNK_BYTES)) {
      yield Buffer.alloc(Math.min(left, CHUNK_BYTES));
    }
  }

  async #open({ bytes, size, name }: LayerItem): Promise<Readable | undefined> {
    if (bytes === undefined || size === 0) return undefined;
    if ('content' in bytes) return this.#openContent(bytes.content, name);
    try {
      const fd = this.#files!.openFile(bytes.upper);
      return createReadStream('', { fd, autoClose: true, start: 0, highWaterMark: CHUNK_BYTES });
    } catch (error) {
      // Removed since it was listed: as if it had become empty.
      if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined;
      throw error;
    }
  }

  async #openContent(content: number, name: string): Promise<Readable> {
    const { layout, digests } = this.#sources;
    const hex = digests.toString('hex', content * DIGEST_BYTES, (content + 1) * DIGEST_BYTES);
    for (const path of [
      layout.contentFile(hex),
      layout.incomingFile(hex),
      layout.contentFile(hex),
    ]) {
      const file = await open(path, 'r').catch((error: NodeJS.ErrnoException) => {
        if (error.code === 'ENOENT') return undefined;
        throw error;
      });
      if (file !== undefined) return file.createReadStream({ highWaterMark: CHUNK_BYTES });
    }
    throw new FirstlightError('busy', `${textOf(name)} of the image has not arrived yet`, {
      hint: 'wait until the image is complete: firstlight status --follow',
    });
  }

  close(): void {
    this.#files?.close();
  }
}

async function* tarOf(
  items: Iterable<LayerItem>,
  sources: Sources,
  written: WrittenLayer,
  signal: AbortSignal,
): AsyncGenerator<Buffer> {
  for (const item of items) {
    signal.throwIfAborted();
    written.entries++;
    if (item.mtimeSec > written.newestSec) written.newestSec = item.mtimeSec;
    yield tarHeaders(item);
    if (item.size === 0) continue;
    yield* sources.read(item);
    yield tarPadding(item.size);
  }
  yield tarEnd();
}

async function* hashed(
  source: AsyncIterable<Buffer>,
  hash: Hash,
  onBytes: (bytes: number) => void = () => undefined,
): AsyncGenerator<Buffer> {
  for await (const chunk of source) {
    hash.update(chunk);
    onBytes(chunk.length);
    yield chunk;
  }
}

/**
 * Writes a layer to a file that is there and empty.
 * @throws FirstlightError `busy` for a content that has not arrived; the disk's errors; the signal's reason
 */
export async function writeLayer(
  file: FileHandle,
  items: Iterable<LayerItem>,
  from: ByteSources,
  signal: AbortSignal,
): Promise<WrittenLayer> {
  const sources = new Sources(from);
  const { changed } = sources;
  const written = { digest: '', diffId: '', bytes: 0, entries: 0, newestSec: 0, changed };
  const plain = createHash('sha256');
  const stored = createHash('sha256');
  try {
    const tar = hashed(tarOf(items, sources, written, signal), plain);
    // zlib writes no time and no name into the header: nothing that differs between two runs.
    const gzip = createGzip({ level: 6 });
    const compressed = hashed(gzip, stored, (bytes) => {
      written.bytes += bytes;
    });
    await Promise.all([
      pipeline(Readable.from(tar), gzip, { signal }),
      (async () => {
        for await (const chunk of compressed) await writeAll(file, chunk);
      })(),
    ]);
    await file.sync();
  } finally {
    sources.close();
  }
  written.diffId = `sha256:${plain.digest('hex')}`;
  written.digest = `sha256:${stored.digest('hex')}`;
  return written;
}

async function writeAll(file: FileHandle, chunk: Buffer): Promise<void> {
  for (let at = 0; at < chunk.length; ) at += (await file.write(chunk, at)).bytesWritten;
}
