// Reads a bundle's preamble, header and frames. Everything comes from outside and nothing is
// trusted: each number is checked before it is used, sizes are capped before memory is taken, and
// errors name the field. Writing them is bundle-header.ts and bundle-encode.ts.
import { createHash, hash } from 'node:crypto';
import { FirstlightError } from '../errors/errors.ts';
import {
  type BaseImage,
  BUNDLE_MAGIC,
  BUNDLE_VERSION,
  type BundleHeader,
  type DecodedPart,
  FRAME_KIND,
  FRAME_MAX_BYTES,
  type FrameInfo,
  HEADER_MAX_BYTES,
  PREAMBLE,
  PREAMBLE_BYTES,
  type Preamble,
} from './bundle.ts';
import { SECTIONS, type SectionName } from './bundle-header.ts';
import { CONTROL_MAX_BYTES, restore } from './difference.ts';
import { digestTableBytes, openPayload } from './frame.ts';
import { DIGEST_BYTES, digestEntryBytes, tableOfParts } from './frame-plan.ts';
import { readImageFacts } from './image-facts.ts';
import { unpackOrder } from './order.ts';
import { type BaseRange, PATCH_PAD_BYTES, unpackRanges } from './patch-table.ts';
import type { Toc } from './toc.ts';
import { checkToc } from './toc-check.ts';
import { unpackToc } from './toc-unpack.ts';
import { VarintReader } from './varint.ts';
import { decompressExactly } from './zstd.ts';

/** Most images that a bundle may take contents from. */
const BASES_MAX = 1024;

function fail(what: string): never {
  throw new FirstlightError('corrupt', `bundle: ${what}`);
}

/** Reads the preamble; `bytes` may go on past it. What it says is only proven by `decodeHeader`. */
export function parsePreamble(bytes: Buffer): Preamble {
  if (bytes.length < PREAMBLE_BYTES) fail(`preamble: ${bytes.length} bytes of ${PREAMBLE_BYTES}`);
  if (bytes.toString('latin1', 0, 8) !== BUNDLE_MAGIC) fail('magic: not a bundle');
  const version = bytes.readUInt16LE(PREAMBLE.version);
  if (version !== BUNDLE_VERSION)
    throw new FirstlightError('unsupported', `bundle: version ${version} is not known here`, {
      hint: 'use the same release on server and worker',
    });
  const flags = bytes.readUInt16LE(PREAMBLE.flags);
  if (flags !== 0)
    throw new FirstlightError('unsupported', `bundle: flags 0x${flags.toString(16)} are unknown`, {
      hint: 'use the same release on server and worker',
    });
  for (const [from, to] of PREAMBLE.zeros) {
    for (let i = from; i < to; i++) if (bytes[i] !== 0) fail(`preamble: byte ${i} is not 0`);
  }
  const headerBytes = bytes.readUInt32LE(PREAMBLE.headerBytes);
  const headerRawBytes = bytes.readUInt32LE(PREAMBLE.headerRawBytes);
  const bodyBytes = bytes.readBigUInt64LE(PREAMBLE.bodyBytes);
  for (const [field, value] of [
    ['headerBytes', headerBytes],
    ['headerRawBytes', headerRawBytes],
  ] as const) {
    if (value === 0 || value > HEADER_MAX_BYTES) fail(`${field} is ${value}`);
  }
  if (bodyBytes > BigInt(Number.MAX_SAFE_INTEGER - 2 * HEADER_MAX_BYTES))
    fail(`bodyBytes is ${bodyBytes}`);
  const digest = bytes.toString('hex', PREAMBLE.digest, PREAMBLE.digest + 32);
  return {
    version,
    flags,
    headerBytes,
    headerRawBytes,
    bodyBytes: Number(bodyBytes),
    digest,
  };
}

function checkDigest(preamble: Buffer, header: Buffer, expected: string): void {
  const sha256 = createHash('sha256');
  sha256.update(preamble.subarray(0, PREAMBLE.digest));
  sha256.update(Buffer.alloc(32));
  sha256.update(preamble.subarray(PREAMBLE.digest + 32, PREAMBLE_BYTES));
  sha256.update(header);
  if (sha256.digest('hex') !== expected) fail('header: its bytes do not match its digest');
}

function splitSections(raw: Buffer): Record<SectionName, Buffer> {
  const reader = new VarintReader(raw, 'bundle: header');
  const lengths = SECTIONS.map((name) => reader.atMost(raw.length, `bytes of ${name}`));
  const sections = {} as Record<SectionName, Buffer>;
  for (const [i, name] of SECTIONS.entries()) {
    const view = reader.raw(lengths[i]!);
    sections[name] = Buffer.from(view.buffer, view.byteOffset, view.length);
  }
  reader.end();
  return sections;
}

function readBases(section: Buffer): BaseImage[] {
  const reader = new VarintReader(section, 'bundle: bases');
  const count = reader.atMost(BASES_MAX, 'number of bases');
  const bases: BaseImage[] = [];
  for (let i = 0; i < count; i++) {
    const digest = `sha256:${Buffer.from(reader.raw(DIGEST_BYTES)).toString('hex')}`;
    bases.push({ digest, contents: reader.atMost(2 ** 32 - 1, 'number of contents') });
  }
  reader.end();
  return bases;
}

function readHave(section: Buffer, toc: Toc, bases: BaseImage[]) {
  const haveBase = new Int32Array(toc.contents).fill(-1);
  const haveContent = new Uint32Array(toc.contents);
  const reader = new VarintReader(section, 'bundle: have');
  let content = 0;
  let expected = 0;
  while (reader.left > 0) {
    content += reader.unsigned();
    const length = reader.unsigned() + 1;
    if (content + length > toc.contents)
      fail(`have: contents ${content} and ${length - 1} more, of ${toc.contents}`);
    const base = reader.unsigned();
    if (base >= bases.length) fail(`have: base ${base} of ${bases.length}`);
    const first = expected + reader.signed();
    if (first < 0 || first + length > bases[base]!.contents)
      fail(
        `have: contents ${first} and ${length - 1} more, of ${bases[base]!.contents} in its base`,
      );
    haveBase.fill(base, content, content + length);
    for (let i = 0; i < length; i++) haveContent[content + i] = first + i;
    content += length;
    expected = first + length;
  }
  return { haveBase, haveContent };
}

/**
 * Part numbers of the contents that the bundle brings, ascending.
 * @param frames  number of frames that bring them
 */
function missingParts(toc: Toc, haveBase: Int32Array, frames: number): Uint32Array {
  let count = 0;
  let bytes = 0;
  for (let c = 0; c < toc.contents; c++) {
    if (haveBase[c]! >= 0) continue;
    count += toc.partCount(c);
    bytes += toc.contentSize(c);
  }
  // Before memory is taken for them: a small header can name more than its frames could ever hold.
  if (bytes > frames * FRAME_MAX_BYTES) fail(`digests: ${frames} frames for ${bytes} bytes`);
  const parts = new Uint32Array(count);
  let at = 0;
  for (let c = 0; c < toc.contents; c++) {
    if (haveBase[c]! >= 0) continue;
    const first = toc.firstPart(c);
    const end = first + toc.partCount(c);
    for (let part = first; part < end; part++) parts[at++] = part;
  }
  return parts;
}

/** Bytes of each part of a frame, 1 for each whose content has several, and its content. */
function measure(toc: Toc, order: Uint32Array, firstPart: number, partCount: number) {
  const sizes = new Uint32Array(partCount);
  const several = new Uint8Array(partCount);
  const contents = new Uint32Array(partCount);
  for (let i = 0; i < partCount; i++) {
    const part = order[firstPart + i]!;
    const content = toc.contentOfPart(part);
    contents[i] = content;
    sizes[i] = toc.partSize(content, part - toc.firstPart(content));
    several[i] = toc.partCount(content) === 1 ? 0 : 1;
  }
  return { sizes, several, contents };
}

/** Refuses a kind of frame that this version cannot read. */
function checkKind(index: number, kind: number): void {
  if (kind === FRAME_KIND.zstd || kind === FRAME_KIND.patch) return;
  throw new FirstlightError('unsupported', `bundle: frame ${index} is of unknown kind ${kind}`, {
    hint: 'use the same release on server and worker',
  });
}

function readFrames(
  sections: Record<SectionName, Buffer>,
  toc: Toc,
  order: Uint32Array,
  bases: readonly BaseImage[],
  preamble: Preamble,
): FrameInfo[] {
  const reader = new VarintReader(sections.frames, 'bundle: frames');
  const count = reader.atMost(order.length, 'number of frames');
  if (sections.digests.length !== count * DIGEST_BYTES)
    fail(`digests: ${sections.digests.length} bytes for ${count} frames`);
  const column = (read: () => number) => Array.from({ length: count }, read);
  const bytes = column(() => reader.unsigned());
  const partCounts = column(() => reader.atMost(order.length, 'number of parts'));
  const kinds = column(() => reader.byte());
  const surplus = column(() => reader.signed());
  const extensionBytes = column(() => reader.atMost(reader.left, 'bytes of an extension'));
  const extensions = extensionBytes.map((length) => reader.raw(length));
  reader.end();
  const contents = bases.map((base) => base.contents);

  const frames: FrameInfo[] = [];
  const parts = tableOfParts(toc);
  const bodyStart = PREAMBLE_BYTES + preamble.headerBytes;
  let offset = bodyStart;
  let firstPart = 0;
  for (let index = 0; index < count; index++) {
    const kind = kinds[index]!;
    checkKind(index, kind);
    const partCount = partCounts[index]!;
    if (partCount === 0) fail(`frame ${index}: no parts`);
    if (firstPart + partCount > order.length) fail(`frame ${index}: more parts than there are`);
    let contentBytes = 0;
    let tableBytes = 0;
    for (let i = firstPart; i < firstPart + partCount; i++) {
      contentBytes += parts.bytes[order[i]!]!;
      tableBytes += digestEntryBytes(toc, parts.content[order[i]!]!);
    }
    if (contentBytes > FRAME_MAX_BYTES || tableBytes > FRAME_MAX_BYTES)
      fail(`frame ${index}: ${contentBytes} bytes of content, ${tableBytes} of digests`);
    const controlBytes = surplus[index]!;
    const controlMost = kind === FRAME_KIND.patch ? CONTROL_MAX_BYTES : 0;
    if (controlBytes < 0 || controlBytes > controlMost)
      fail(`frame ${index}: rawBytes is not what its parts add up to`);
    let ranges: BaseRange[] = [];
    if (kind === FRAME_KIND.patch)
      ranges = unpackRanges(extensions[index]!, contents, partCount, `bundle: frame ${index}`);
    else if (extensionBytes[index] !== 0) fail(`frame ${index}: has an extension`);
    const rawBytes = contentBytes + tableBytes + controlBytes;
    // No zstd frame is empty, and none of ours is much larger than what it holds.
    if (bytes[index] === 0 || bytes[index]! > 2 * FRAME_MAX_BYTES + 1024)
      fail(`frame ${index}: bytes is ${bytes[index]}`);
    frames.push({
      index,
      offset,
      bytes: bytes[index]!,
      rawBytes,
      kind,
      ranges,
      controlBytes,
      digest: sections.digests.subarray(index * DIGEST_BYTES, (index + 1) * DIGEST_BYTES),
      firstPart,
      partCount,
    });
    offset += bytes[index]!;
    firstPart += partCount;
  }
  if (firstPart !== order.length) fail(`frames: ${firstPart} parts of ${order.length}`);
  if (offset - bodyStart !== preamble.bodyBytes)
    fail(`bodyBytes is ${preamble.bodyBytes}, but the frames have ${offset - bodyStart}`);
  return frames;
}

function checkLayers(toc: Toc, layers: number): void {
  // An image without layers is an empty root, which counts as given by layer 0.
  const limit = Math.max(layers, 1);
  for (let row = 0; row < toc.rows; row++) {
    if (toc.layer(row) >= limit) fail(`TOC: row ${row}: layer is ${toc.layer(row)} of ${layers}`);
  }
}

/**
 * Reads and checks a header. Throws 'corrupt' naming the field, or 'unsupported' for what a later
 * version may have written.
 * @param preamble  the bundle's first PREAMBLE_BYTES bytes
 * @param header    the `headerBytes` bytes that follow
 */
export function decodeHeader(preamble: Buffer, header: Buffer): BundleHeader {
  const facts = parsePreamble(preamble);
  if (header.length !== facts.headerBytes)
    fail(`headerBytes is ${facts.headerBytes}, but there are ${header.length}`);
  checkDigest(preamble, header, facts.digest);
  const raw = decompressExactly(header, facts.headerRawBytes, 'bundle: header');
  const sections = splitSections(raw);
  // Copies: a view would keep the whole header in memory for as long as it is used.
  const manifest = Buffer.from(sections.manifest);
  const config = Buffer.from(sections.config);
  const image = readImageFacts(manifest, config);
  const toc = checkToc(unpackToc(sections.toc));
  checkLayers(toc, image.layers.length);
  const bases = readBases(sections.bases);
  const { haveBase, haveContent } = readHave(sections.have, toc, bases);
  const missing = missingParts(toc, haveBase, sections.digests.length / DIGEST_BYTES);
  const order = unpackOrder(new VarintReader(sections.order, 'bundle: order'), missing);
  const frames = readFrames(
    { ...sections, digests: Buffer.from(sections.digests) },
    toc,
    order,
    bases,
    facts,
  );
  return {
    preamble: facts,
    manifest,
    config,
    imageDigest: image.digest,
    toc,
    layers: image.layers,
    bases,
    haveBase,
    haveContent,
    frames,
    order,
  };
}

/** Checks a frame's compressed bytes against the frame table. @throws 'corrupt' */
export function checkFrame(frame: FrameInfo, bytes: Buffer): void {
  const field = `frame ${frame.index}`;
  checkKind(frame.index, frame.kind);
  if (bytes.length !== frame.bytes) fail(`${field}: ${bytes.length} bytes, not ${frame.bytes}`);
  if (!hash('sha256', bytes, 'buffer').equals(frame.digest))
    fail(`${field}: its bytes do not match its digest`);
}

/**
 * Decodes one frame into its parts. The compressed bytes are checked against the frame table first,
 * then every part against the frame's own digest table. The parts' data are views of one piece of
 * memory of the frame's raw size.
 * @param base  for kind patch: what its ranges give, as `readBaseBytes` puts it together
 */
export function decodeFrame(
  header: BundleHeader,
  frame: FrameInfo,
  bytes: Buffer,
  base?: Buffer,
): DecodedPart[] {
  const field = `frame ${frame.index}`;
  checkFrame(frame, bytes);
  if ((base !== undefined) !== (frame.kind === FRAME_KIND.patch))
    throw new FirstlightError('internal', `${field}: a base belongs to patches, and to them alone`);
  const raw = decompressExactly(bytes, frame.rawBytes, `bundle: ${field}`, base);
  const { toc, order } = header;
  const { sizes, several, contents } = measure(toc, order, frame.firstPart, frame.partCount);
  if (base !== undefined && frame.controlBytes > 0) {
    const end = raw.length - frame.controlBytes;
    const data = raw.subarray(digestTableBytes(several), end);
    restore(base.subarray(PATCH_PAD_BYTES), data, raw.subarray(end), `bundle: ${field}`);
  }
  return openPayload(raw, sizes, several, `bundle: ${field}`).map((opened, i) => {
    const part = order[frame.firstPart + i]!;
    const content = contents[i]!;
    return { part, content, index: part - toc.firstPart(content), ...opened };
  });
}
