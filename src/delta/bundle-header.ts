// Writes a bundle's preamble and header. Reading them is bundle-decode.ts; the picture is in
// docs/FORMAT.md.
import { hash } from 'node:crypto';
import { FirstlightError } from '../errors/errors.ts';
import {
  BUNDLE_MAGIC,
  BUNDLE_VERSION,
  HEADER_MAX_BYTES,
  PREAMBLE,
  PREAMBLE_BYTES,
} from './bundle.ts';
import { VarintWriter } from './varint.ts';
import { Compressor } from './zstd.ts';

/** Level of the header, which is small and waited for. */
const HEADER_LEVEL = 19;

/** Sections of the header, in the order in which they stand in it. */
export const SECTIONS = [
  'manifest', // raw bytes
  'config', // raw bytes
  'toc', // packToc
  'bases', // digests and content counts of the images that contents are taken from
  'have', // runs of contents that a base has
  'frames', // frame table
  'order', // packOrder
  'digests', // sha256 of each frame, 32 bytes each
] as const;

export type SectionName = (typeof SECTIONS)[number];

/** An image that contents are taken from. */
export interface PackedBase {
  /** `sha256:...` */
  digest: string;
  /** Number of contents in its TOC. */
  contents: number;
}

/** Codes the base table. */
export function packBases(bases: readonly PackedBase[]): Buffer {
  const writer = new VarintWriter();
  writer.unsigned(bases.length);
  for (const base of bases) {
    writer.raw(Buffer.from(base.digest.slice('sha256:'.length), 'hex'));
    writer.unsigned(base.contents);
  }
  return writer.done();
}

/** Codes the contents that bases have, as runs in which both numbers count up together. */
export function packHave(haveBase: Int32Array, haveContent: Uint32Array): Buffer {
  const writer = new VarintWriter();
  let written = 0;
  let expected = 0;
  for (let content = 0; content < haveBase.length; ) {
    const base = haveBase[content]!;
    if (base < 0) {
      content++;
      continue;
    }
    const first = haveContent[content]!;
    let length = 1;
    while (
      content + length < haveBase.length &&
      haveBase[content + length] === base &&
      haveContent[content + length] === first + length
    )
      length++;
    writer.unsigned(content - written);
    writer.unsigned(length - 1);
    writer.unsigned(base);
    writer.signed(first - expected);
    content += length;
    written = content;
    expected = first + length;
  }
  return writer.done();
}

/** A frame as the frame table has it. */
export interface PackedFrame {
  bytes: number;
  partCount: number;
  kind: number;
  /** Bytes of the payload beyond its digest table and its parts: of a patch's control stream; 0 for kind zstd. */
  surplusBytes: number;
  extension: Uint8Array;
}

/** Codes the frame table, column by column. */
export function packFrames(frames: readonly PackedFrame[]): Buffer {
  const writer = new VarintWriter();
  writer.unsigned(frames.length);
  for (const frame of frames) writer.unsigned(frame.bytes);
  for (const frame of frames) writer.unsigned(frame.partCount);
  for (const frame of frames) writer.byte(frame.kind);
  for (const frame of frames) writer.signed(frame.surplusBytes);
  for (const frame of frames) writer.unsigned(frame.extension.length);
  for (const frame of frames) writer.raw(frame.extension);
  return writer.done();
}

/** The header's bytes before compression. */
export function joinSections(sections: Record<SectionName, Uint8Array>): Buffer {
  const writer = new VarintWriter();
  for (const name of SECTIONS) writer.unsigned(sections[name].length);
  for (const name of SECTIONS) writer.raw(sections[name]);
  return writer.done();
}

/** Preamble and compressed header of a bundle. */
export interface PackedHeader {
  preamble: Buffer;
  header: Buffer;
  /** sha256 that the preamble carries, hex: the bundle's name. */
  id: string;
}

/** Compresses a header and puts the preamble in front of it. */
export function packHeader(raw: Uint8Array, bodyBytes: number): PackedHeader {
  const header = new Compressor(HEADER_LEVEL).compress(raw);
  if (raw.length > HEADER_MAX_BYTES || header.length > HEADER_MAX_BYTES)
    throw new FirstlightError('unsupported', `a header of ${raw.length} bytes is too large`);
  const preamble = Buffer.alloc(PREAMBLE_BYTES);
  preamble.write(BUNDLE_MAGIC, PREAMBLE.magic, 'latin1');
  preamble.writeUInt16LE(BUNDLE_VERSION, PREAMBLE.version);
  preamble.writeUInt32LE(header.length, PREAMBLE.headerBytes);
  preamble.writeUInt32LE(raw.length, PREAMBLE.headerRawBytes);
  preamble.writeBigUInt64LE(BigInt(bodyBytes), PREAMBLE.bodyBytes);
  const digest = hash('sha256', Buffer.concat([preamble, header]), 'buffer');
  digest.copy(preamble, PREAMBLE.digest);
  return { preamble, header, id: digest.toString('hex') };
}
