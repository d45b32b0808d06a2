// Writes a bundle: plans the order and the frames, reads the contents, has the frames made by
// frame-pool.ts, and puts header and body together. The same input gives the same bytes, whatever the
// number of threads. Memory is bounded: a few frames at a time, the body on disk until the header,
// which names the size and digest of each frame, can be written in front of it.
import { createHash, type Hash, randomBytes } from 'node:crypto';
import { type FileHandle, open, rename, rm } from 'node:fs/promises';
import { dirname } from 'node:path';
import { FirstlightError } from '../errors/errors.ts';
import { FRAME_KIND, PREAMBLE_BYTES } from './bundle.ts';
import {
  joinSections,
  type PackedFrame,
  type PackedHeader,
  packBases,
  packFrames,
  packHave,
  packHeader,
} from './bundle-header.ts';
import { damaged, digestTableBytes, type FrameJob, type MadeFrame } from './frame.ts';
import { DIGEST_BYTES, type FrameSpan, planFrames, tableOfParts } from './frame-plan.ts';
import { FramePool } from './frame-pool.ts';
import { readImageFacts } from './image-facts.ts';
import { type Order, packOrder, planOrder, type Rank } from './order.ts';
import { rangesFor } from './patch-plan.ts';
import { type DamagedOld, findOlds, type Have, readBases } from './patch-sources.ts';
import { type BaseRange, packRanges } from './patch-table.ts';
import type { Toc } from './toc.ts';
import { PART_BYTES } from './toc-layout.ts';
import { packToc } from './toc-pack.ts';
import { DEFAULT_LEVEL } from './zstd.ts';

/** Contents that are read at once for one frame. */
const READS_AT_ONCE = 16;
const COPY_BYTES = 1 << 20;
/**
 * Raw bytes of frames that patches are tried for, those that travel first: at a second of one processor for each MB the
 * others' patches would wait for hours behind an image of some changed gigabytes, and removals of files with them.
 */
const PATCHES_MOST_BYTES = 512 << 20;

/** An image whose contents the worker has. */
export interface EncodeBase {
  /** Manifest digest, `sha256:...`. */
  digest: string;
  toc: Toc;
  /** sha256 of each of its contents, 32 bytes each, in content order. */
  digests: Buffer;
}

/** What a bundle is made of. */
export interface EncodeInput {
  /** Raw bytes, as the registry has them. */
  manifest: Buffer;
  config: Buffer;
  /** As `buildToc` made it. */
  toc: Toc;
  /** sha256 of each content, 32 bytes each, in content order. */
  digests: Buffer;
  ranks?: readonly Rank[];
  bases: readonly EncodeBase[];
  /** Frames may be patches against contents of the bases, where that is smaller. */
  patches?: boolean;
  /** zstd level of patches; PATCH_LEVEL where absent. */
  patchLevel?: number;
  /** Raw bytes of frames that patches are tried for; PATCHES_MOST_BYTES where absent. */
  patchesMostBytes?: number;
  /** `bytes` bytes at `offset` of a content; fewer are an error. Called several times at once. */
  readContent(digestHex: string, offset: number, bytes: number): Promise<Uint8Array>;
  /** zstd level of the frames, 1 to 22; DEFAULT_LEVEL where absent. */
  level?: number;
  /** Threads that compress, 2 where absent; with 0 the calling thread does it. */
  threads?: number;
  /** Called after each frame. */
  onProgress?(framesDone: number, frames: number): void;
  signal?: AbortSignal;
}

/** A bundle that has been written. */
export interface EncodedBundle {
  /** Bytes of preamble and header: what stands before the first frame. */
  headerBytes: number;
  /** Bytes of the whole file. */
  bytes: number;
  /** Hex digest that names the bundle. */
  id: string;
  /** Number of its frames that are patches. */
  patches: number;
  /** Contents of bases that are damaged here: what could be patched against them travels as it is. */
  damagedOlds: DamagedOld[];
}

/** Finds each content in the first base that has it; bases that give nothing are left out. */
function findHave(input: EncodeInput): Have {
  const { toc, digests, bases } = input;
  const have: Have = {
    base: new Int32Array(toc.contents).fill(-1),
    content: new Uint32Array(toc.contents),
    used: [],
    olds: new Map(),
  };
  const wanted = new Map<string, number>();
  for (let c = 0; c < toc.contents; c++)
    wanted.set(digests.toString('latin1', c * DIGEST_BYTES, (c + 1) * DIGEST_BYTES), c);
  for (const base of bases) {
    let found = false;
    for (let c = 0; c < base.toc.contents; c++) {
      const key = base.digests.toString('latin1', c * DIGEST_BYTES, (c + 1) * DIGEST_BYTES);
      const content = wanted.get(key);
      if (content === undefined || have.base[content] !== -1) continue;
      have.base[content] = have.used.length;
      have.content[content] = c;
      found = true;
    }
    if (found) have.used.push(base);
  }
  return have;
}

/** Follows the contents of several parts, so that the whole of each is checked as well. */
class WholeContents {
  readonly #input: EncodeInput;
  readonly #open = new Map<number, { hash: Hash; next: number }>();
  readonly #apart = new Set<number>();

  constructor(input: EncodeInput) {
    this.#input = input;
  }

  #check(content: number, hash: Hash): void {
    const expected = contentDigest(this.#input, content);
    if (!hash.digest().equals(expected)) throw damaged(expected, 'is not what its digest says');
  }

  /** Takes part `index`; a content whose parts do not come in order is read again at the end. */
  add(content: number, index: number, data: Uint8Array): void {
    if (this.#apart.has(content)) return;
    const open = this.#open.get(content) ?? { hash: createHash('sha256'), next: 0 };
    if (open.next !== index) {
      this.#open.delete(content);
      this.#apart.add(content);
      return;
    }
    open.hash.update(data);
    open.next++;
    if (open.next < this.#input.toc.partCount(content)) this.#open.set(content, open);
    else {
      this.#open.delete(content);
      this.#check(content, open.hash);
    }
  }

  /** Checks the contents whose parts were apart. */
  async finish(): Promise<void> {
    const { toc, signal } = this.#input;
    for (const content of this.#apart) {
      const hash = createHash('sha256');
      for (let i = 0; i < toc.partCount(content); i++) {
        signal?.throwIfAborted();
        hash.update(await readPart(this.#input, content, i));
      }
      this.#check(content, hash);
    }
  }
}

function contentDigest(input: EncodeInput, content: number): Buffer {
  return input.digests.subarray(content * DIGEST_BYTES, (content + 1) * DIGEST_BYTES);
}

async function readPart(input: EncodeInput, content: number, index: number): Promise<Uint8Array> {
  const digest = contentDigest(input, content);
  const bytes = input.toc.partSize(content, index);
  const data = await input.readContent(digest.toString('hex'), index * PART_BYTES, bytes);
  if (data.length !== bytes)
    throw damaged(digest, `is shorter than ${bytes} bytes in part ${index}`);
  return data;
}

/** Reads what one frame is made of. */
async function readFrame(
  input: EncodeInput,
  order: Order,
  span: FrameSpan,
  contentOf: Uint32Array,
  whole: WholeContents,
): Promise<FrameJob> {
  const { toc } = input;
  const { firstPart, partCount } = span;
  const sizes = new Uint32Array(partCount);
  const several = new Uint8Array(partCount);
  const contentDigests = new Uint8Array(partCount * DIGEST_BYTES);
  const starts = new Uint32Array(partCount);
  let sum = 0;
  for (let i = 0; i < partCount; i++) {
    const part = order.parts[firstPart + i]!;
    const content = contentOf[part]!;
    sizes[i] = toc.partSize(content, part - toc.firstPart(content));
    several[i] = toc.partCount(content) === 1 ? 0 : 1;
    contentDigests.set(contentDigest(input, content), i * DIGEST_BYTES);
    starts[i] = sum;
    sum += sizes[i]!;
  }
  const tableBytes = digestTableBytes(several);
  // Memory of its own: it is handed over to a thread.
  const raw = new Uint8Array(tableBytes + sum);
  let next = 0;
  const reader = async () => {
    while (next < partCount) {
      const i = next++;
      const part = order.parts[firstPart + i]!;
      const content = contentOf[part]!;
      const data = await readPart(input, content, part - toc.firstPart(content));
      raw.set(data, tableBytes + starts[i]!);
    }
  };
  await Promise.all(Array.from({ length: Math.min(READS_AT_ONCE, partCount) }, reader));
  for (let i = 0; i < partCount; i++) {
    if (several[i] === 0) continue;
    const part = order.parts[firstPart + i]!;
    const content = contentOf[part]!;
    const start = tableBytes + starts[i]!;
    whole.add(content, part - toc.firstPart(content), raw.subarray(start, start + sizes[i]!));
  }
  return { raw, sizes, contentDigests, several };
}

/** The parts of a frame, as content and index within it. */
function partsOf(toc: Toc, order: Order, { firstPart, partCount }: FrameSpan, of: Uint32Array) {
  return Array.from(order.parts.subarray(firstPart, firstPart + partCount), (part) => {
    const content = of[part]!;
    return { content, index: part - toc.firstPart(content) };
  });
}

async function writeAll(file: FileHandle, bytes: Uint8Array): Promise<void> {
  for (let at = 0; at < bytes.length; ) {
    at += (await file.write(bytes, at, bytes.length - at)).bytesWritten;
  }
}

/** Frames as they have been written, with their digests. */
interface Body {
  frames: PackedFrame[];
  digests: Buffer;
  bytes: number;
}

/** Makes all frames and writes them one after another to `file`. */
async function writeBody(
  input: EncodeInput,
  have: Have,
  order: Order,
  file: FileHandle,
): Promise<Body> {
  const { toc, signal } = input;
  const table = tableOfParts(toc);
  const spans = planFrames(toc, order, table);
  const threads = Math.min(input.threads ?? 2, spans.length);
  const pool = new FramePool(threads, input.level ?? DEFAULT_LEVEL);
  const whole = new WholeContents(input);
  const body: Body = { frames: [], digests: Buffer.alloc(spans.length * DIGEST_BYTES), bytes: 0 };
  let triedBytes = 0;
  try {
    const under: Promise<{ made: MadeFrame; ranges: BaseRange[] }>[] = [];
    for (let made = 0, read = 0; made < spans.length; made++) {
      for (; read < spans.length && under.length < threads + 1; read++) {
        signal?.throwIfAborted();
        const span = spans[read]!;
        const job = await readFrame(input, order, span, table.content, whole);
        const ranges = rangesFor(toc, partsOf(toc, order, span, table.content), have.olds);
        if (ranges.length > 0 && triedBytes < (input.patchesMostBytes ?? PATCHES_MOST_BYTES)) {
          triedBytes += job.raw.length;
          job.base = await readBases(input, have, ranges, `frame ${read}`);
          job.patchLevel = input.patchLevel;
        }
        const promise = pool.make(job).then((made) => ({ made, ranges }));
        // Whoever waits for it first hears of a failure; later ones must not count as unheard.
        promise.catch(() => {});
        under.push(promise);
      }
      const { made: frame, ranges } = await under.shift()!;
      await writeAll(file, frame.bytes);
      body.digests.set(frame.digest, made * DIGEST_BYTES);
      body.bytes += frame.bytes.length;
      body.frames.push({
        bytes: frame.bytes.length,
        partCount: spans[made]!.partCount,
        kind: frame.kind,
        surplusBytes: frame.controlBytes,
        extension: frame.kind === FRAME_KIND.patch ? packRanges(ranges) : new Uint8Array(0),
      });
      input.onProgress?.(made + 1, spans.length);
    }
    await whole.finish();
    return body;
  } finally {
    await pool.close();
  }
}

function makeHeader(input: EncodeInput, have: Have, order: Order, body: Body): PackedHeader {
  const sections = {
    manifest: input.manifest,
    config: input.config,
    toc: packToc(input.toc),
    bases: packBases(have.used.map(({ digest, toc }) => ({ digest, contents: toc.contents }))),
    have: packHave(have.base, have.content),
    frames: packFrames(body.frames),
    order: packOrder(order.parts, order.parts.slice().sort()),
    digests: body.digests,
  };
  return packHeader(joinSections(sections), body.bytes);
}

/** Refuses what would make a bundle that no decoder takes. */
function checkInput(input: EncodeInput): void {
  const { layers } = readImageFacts(input.manifest, input.config);
  for (let row = 0; row < input.toc.rows; row++) {
    if (input.toc.layer(row) >= Math.max(layers.length, 1))
      throw new FirstlightError('corrupt', `row ${row} is of a layer that the manifest lacks`);
  }
  for (const { toc, digests } of [input, ...input.bases]) {
    if (digests.length !== toc.contents * DIGEST_BYTES)
      throw new FirstlightError('corrupt', `${digests.length} bytes of digests for a TOC`);
  }
  const level = input.level ?? DEFAULT_LEVEL;
  if (!(Number.isInteger(level) && level >= 1 && level <= 22))
    throw new FirstlightError('usage', `${level} is no zstd level; it is 1 to 22`);
}

async function appendFile(from: FileHandle, to: FileHandle, bytes: number): Promise<void> {
  const buffer = Buffer.allocUnsafe(Math.min(COPY_BYTES, Math.max(bytes, 1)));
  for (let at = 0; at < bytes; ) {
    const { bytesRead } = await from.read(buffer, 0, Math.min(buffer.length, bytes - at), at);
    if (bytesRead === 0) throw new FirstlightError('internal', 'the body of a bundle was cut off');
    await writeAll(to, buffer.subarray(0, bytesRead));
    at += bytesRead;
  }
}

async function syncDirectory(path: string): Promise<void> {
  const directory = await open(path, 'r');
  try {
    await directory.sync();
  } finally {
    await directory.close();
  }
}

/**
 * Writes the bundle of an image to `path`, aside first, and renames it when it is whole and durable.
 * Throws 'corrupt' where the image or the content store is damaged; then, as after an abort or any
 * other error, nothing stays behind.
 */
export async function encodeBundle(input: EncodeInput, path: string): Promise<EncodedBundle> {
  checkInput(input);
  const have = findHave(input);
  const damagedOlds = input.patches === true ? await findOlds(input, have) : [];
  const order = planOrder(input.toc, (content) => have.base[content]! >= 0, input.ranks ?? []);
  const aside = `${path}.${randomBytes(6).toString('hex')}`;
  const bodyPath = `${aside}.body`;
  const wholePath = `${aside}.whole`;
  const files: FileHandle[] = [];
  try {
    const bodyFile = await open(bodyPath, 'wx+', 0o644);
    files.push(bodyFile);
    const body = await writeBody(input, have, order, bodyFile);
    const { preamble, header, id } = makeHeader(input, have, order, body);
    const wholeFile = await open(wholePath, 'wx', 0o644);
    files.push(wholeFile);
    await writeAll(wholeFile, preamble);
    await writeAll(wholeFile, header);
    await appendFile(bodyFile, wholeFile, body.bytes);
    await wholeFile.sync();
    input.signal?.throwIfAborted();
    await rename(wholePath, path);
    await syncDirectory(dirname(path));
    const headerBytes = PREAMBLE_BYTES + header.length;
    const patches = body.frames.filter(({ kind }) => kind === FRAME_KIND.patch).length;
    return { headerBytes, bytes: headerBytes + body.bytes, id, patches, damagedOlds };
  } finally {
    for (const file of files) await file.close();
    await rm(bodyPath, { force: true });
    await rm(wholePath, { force: true });
  }
}
