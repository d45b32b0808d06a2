// Reads the layers of an image in order, each once, and makes one tree of them; file contents go to
// a sink as they pass. Checks both digests of every layer. How entries act on the tree is layer.ts.
import { createHash, type Hash } from 'node:crypto';
import { Readable } from 'node:stream';
import { FirstlightError, toFirstlightError } from '../errors/errors.ts';
import { ByteReader } from './byte-reader.ts';
import { decompress } from './compression.ts';
import { mismatch, parseDigest } from './digest.ts';
import { LayerTree } from './layer.ts';
import { LAYERS_MAX } from './limits.ts';
import { overlay } from './overlay.ts';
import type { ContentSink, ImageSource, LayerBlob } from './source.ts';
import { TarReader } from './tar.ts';
import { type Inode, makeDirectory, type TreeNode } from './tree.ts';

/** A layer that has been read. */
export interface LayerDone {
  index: number;
  digest: string;
  diffId: string;
  /** Entries of the tar, whiteouts included. */
  entries: number;
  /** Bytes of its file contents, holes included. */
  contentBytes: number;
}

/** How far the reading has come; bytes are those of the blobs as stored. */
export interface MergeProgress {
  layer: number;
  layers: number;
  bytesDone: number;
  bytes: number;
}

export interface MergeOptions {
  onLayer?: (layer: LayerDone) => void;
  /** Called for chunks as they are read, at most once for each MiB. */
  onProgress?: (progress: MergeProgress) => void;
  signal?: AbortSignal;
  /** The tree that the first so many layers make: they are not read. It is changed, and must not be used afterwards. */
  base?: { root: TreeNode; layers: number };
  /**
   * How many small contents (up to 64 KiB, held in memory) the sink may be given at a time. 1, the
   * default, never calls `put` before the last one has settled.
   */
  concurrency?: number;
}

const SMALL_BYTES = 64 << 10;
const PROGRESS_BYTES = 1 << 20;

/**
 * Merges the layers of `source` into one tree and gives every non-empty file content to `sink`.
 *
 * Memory: the tree, and a few buffers; contents are not held. After an error the sink may have
 * contents that no tree uses.
 *
 * @throws FirstlightError `corrupt` (naming layer and path) for what cannot be read; what the source
 *   and the sink throw; the signal's reason
 */
export async function mergeImage(
  source: ImageSource,
  sink: ContentSink,
  options: MergeOptions = {},
): Promise<{ root: TreeNode }> {
  if (source.layers.length > LAYERS_MAX) {
    throw new FirstlightError('unsupported', `the image has ${source.layers.length} layers`);
  }
  const known = options.base?.layers ?? 0;
  let root = options.base?.root ?? makeDirectory('', 0);
  let before = 0;
  const bytes = source.layers.slice(known).reduce((sum, layer) => sum + layer.bytes, 0);
  for (const [index, layer] of source.layers.entries()) {
    if (index < known) continue;
    const what = layerName(source, index);
    const progress = (done: number) =>
      options.onProgress?.({
        layer: index,
        layers: source.layers.length,
        bytesDone: before + done,
        bytes,
      });
    const tree = new LayerTree(root, index, what);
    const done = await readLayer(layer, tree, what, sink, options, progress);
    root = overlay(root, tree.root, index);
    before += layer.bytes;
    progress(0);
    options.onLayer?.({ index, digest: layer.digest, diffId: layer.diffId, ...done });
  }
  return { root };
}

/** Names a layer in errors, counting from 1. */
function layerName(source: ImageSource, index: number): string {
  const short = source.layers[index]!.digest.replace(/^(sha\d+:[0-9a-f]{12}).*$/, '$1');
  return `layer ${index + 1} of ${source.layers.length} (${short})`;
}

async function* counted(blob: Readable, progress: (done: number) => void): AsyncGenerator<Buffer> {
  let done = 0;
  let told = 0;
  for await (const chunk of blob) {
    done += (chunk as Buffer).length;
    if (done - told >= PROGRESS_BYTES) {
      told = done;
      progress(done);
    }
    yield chunk as Buffer;
  }
}

async function* hashed(source: AsyncIterable<Buffer>, hash: Hash): AsyncGenerator<Buffer> {
  for await (const chunk of source) {
    hash.update(chunk);
    yield chunk;
  }
}

async function readLayer(
  layer: LayerBlob,
  tree: LayerTree,
  what: string,
  sink: ContentSink,
  options: MergeOptions,
  progress: (done: number) => void,
): Promise<{ entries: number; contentBytes: number }> {
  options.signal?.throwIfAborted();
  const diffId = parseDigest(layer.diffId, `diff id of ${what}`);
  const blob = await layer.open();
  const hash = createHash(diffId.algorithm);
  const puts = new Puts(sink, options.concurrency ?? 1);
  let reader: ByteReader | undefined;
  // A blob that waits for its network must hear of it too.
  const abort = () => blob.destroy(options.signal?.reason as Error);
  options.signal?.addEventListener('abort', abort);
  try {
    const { bytes } = await decompress(counted(blob, progress), what);
    reader = new ByteReader(hashed(bytes, hash));
    const done = await readEntries(new TarReader(reader), tree, puts, options.signal);
    // What stands after the archive's end belongs to the digests.
    while ((await reader.some(1 << 20)) !== undefined);
    const hex = hash.digest('hex');
    if (hex !== diffId.hex) {
      throw mismatch(`${what}, uncompressed`, layer.diffId, `${diffId.algorithm}:${hex}`);
    }
    await puts.settle();
    return done;
  } catch (error) {
    options.signal?.throwIfAborted();
    throw named(error, what);
  } finally {
    options.signal?.removeEventListener('abort', abort);
    // Nothing may run on after this: the caller closes its sink.
    await puts.drain();
    blob.destroy();
    // After an error there is nothing more to learn from the rest of the stream.
    await reader?.close().catch(() => undefined);
  }
}

/** Puts the layer's name in front of errors of the tar reader, which knows none. */
function named(error: unknown, what: string): unknown {
  if (!(error instanceof FirstlightError)) {
    const code = (error as NodeJS.ErrnoException | undefined)?.code;
    return code !== undefined && /^E[A-Z0-9]+$/.test(code) ? toFirstlightError(error) : error;
  }
  if (!error.message.startsWith('bad tar archive')) return error;
  return new FirstlightError(error.kind, `${what}: ${error.message}`, {
    hint: error.hint ?? 'the source is damaged; build the image again',
    cause: error,
  });
}

async function readEntries(
  tar: TarReader,
  tree: LayerTree,
  puts: Puts,
  signal: AbortSignal | undefined,
): Promise<{ entries: number; contentBytes: number }> {
  let entries = 0;
  let contentBytes = 0;
  for (;;) {
    signal?.throwIfAborted();
    const entry = await tar.next();
    if (entry === undefined) return { entries, contentBytes };
    entries++;
    const inode = tree.add(entry);
    if (inode === undefined) continue;
    contentBytes += inode.size;
    await puts.add(inode, tar.body());
  }
}

/** A content that is already in memory, as a stream. */
class Held extends Readable {
  #bytes: Buffer | null;
  constructor(bytes: Buffer) {
    super();
    this.#bytes = bytes;
  }
  override _read(): void {
    const bytes = this.#bytes;
    this.#bytes = null;
    if (bytes !== null) this.push(bytes);
    this.push(null);
  }
}

async function hold(body: Readable, bytes: number): Promise<Buffer> {
  const chunks: Buffer[] = [];
  for await (const chunk of body) chunks.push(chunk as Buffer);
  const all = Buffer.concat(chunks);
  if (all.length !== bytes) throw new FirstlightError('corrupt', 'bad tar archive: a short file');
  return all;
}

/** Gives contents to the sink: large ones one at a time, small ones a few at once. */
class Puts {
  readonly #sink: ContentSink;
  readonly #limit: number;
  readonly #running = new Set<Promise<void>>();
  #error: { error: unknown } | undefined;

  constructor(sink: ContentSink, limit: number) {
    this.#sink = sink;
    this.#limit = limit;
  }

  async add(inode: Inode, body: Readable): Promise<void> {
    if (this.#limit <= 1 || inode.size > SMALL_BYTES) {
      inode.digest = await this.#put(body, inode.size);
      return;
    }
    const bytes = await hold(body, inode.size);
    while (this.#running.size >= this.#limit) await Promise.race(this.#running);
    if (this.#error !== undefined) throw this.#error.error;
    const run = this.#put(new Held(bytes), bytes.length).then(
      (digest) => {
        inode.digest = digest;
      },
      (error: unknown) => {
        this.#error ??= { error };
      },
    );
    const tracked = run.finally(() => this.#running.delete(tracked));
    this.#running.add(tracked);
  }

  async #put(body: Readable, bytes: number): Promise<string> {
    // A stream that the sink gave up on must not bring the process down by a late error.
    body.on('error', () => undefined);
    try {
      const digest = await this.#sink.put(body, bytes);
      if (!/^[0-9a-f]{64}$/.test(digest)) {
        throw new FirstlightError('internal', `the content sink gave the digest '${digest}'`);
      }
      // What broke the content must not be taken for its end by a careless sink. An AbortError is
      // its own: it stopped reading.
      if (body.errored !== null && body.errored.name !== 'AbortError') throw body.errored;
      return digest;
    } finally {
      body.destroy();
    }
  }

  /** Waits for all that is under way; throws the first error. */
  async settle(): Promise<void> {
    await this.drain();
    if (this.#error !== undefined) throw this.#error.error;
  }

  /** Waits for all that is under way; errors are kept for {@link settle}. */
  async drain(): Promise<void> {
    while (this.#running.size > 0) await Promise.all(this.#running);
  }
}
