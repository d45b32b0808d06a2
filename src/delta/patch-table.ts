// What a patch frame stands on: ranges of contents that base images have, and their coding in the
// frame table. Both sides share it. What does not live here: which contents are chosen
// (patch-plan.ts), and reading their bytes.
import { FirstlightError } from '../errors/errors.ts';
import { VarintReader, VarintWriter } from './varint.ts';

/**
 * Most bytes of base contents behind one frame: what a decoder has to hold beside the frame itself.
 * Offsets of zstd reach that far back at every level that is worth its time for patches.
 */
export const PATCH_BASE_MAX_BYTES = 8 << 20;

/**
 * Most ranges behind one frame, each of which a worker opens a file for. A frame of 8,192 files has 128 bytes for each,
 * its digest among them; the few whose old contents are beyond that travel as they are.
 */
export const PATCH_RANGES_MAX = 8192;

/**
 * Zeros in front of the ranges. zstd takes a dictionary that begins with a magic number for one in
 * a format of its own, and one of less than 8 bytes for none: neither may hang on a file's bytes.
 */
export const PATCH_PAD_BYTES = 8;

/** A run of bytes of a content that a base image has. */
export interface BaseRange {
  /** Index in the header's bases. */
  base: number;
  /** Index of the content in that image's TOC. */
  content: number;
  /** First byte, and number of bytes; undefined: all from `offset` on, which is 0 then. */
  offset: number;
  bytes: number | undefined;
}

/** Codes the ranges of one patch frame, as the extension of its row in the frame table. */
export function packRanges(ranges: readonly BaseRange[]): Buffer {
  const writer = new VarintWriter();
  let expected = 0;
  for (const { base, content, offset, bytes } of ranges) {
    writer.unsigned(base * 2 + (bytes === undefined ? 0 : 1));
    writer.signed(content - expected);
    if (bytes !== undefined) {
      writer.unsigned(offset);
      writer.unsigned(bytes - 1);
    }
    expected = content + 1;
  }
  return writer.done();
}

/**
 * Reads what {@link packRanges} wrote.
 * @param contents   number of contents of each base
 * @param parts      of the frame, which has no more ranges than these
 * @throws 'corrupt' naming the field
 */
export function unpackRanges(
  extension: Uint8Array,
  contents: readonly number[],
  parts: number,
  field: string,
): BaseRange[] {
  const most = Math.min(parts, PATCH_RANGES_MAX);
  const fail = (what: string): never => {
    throw new FirstlightError('corrupt', `${field}: ${what}`);
  };
  const reader = new VarintReader(extension, field);
  const ranges: BaseRange[] = [];
  let expected = 0;
  let known = 0;
  while (reader.left > 0) {
    if (ranges.length === most) fail(`more than ${most} ranges of bases`);
    const first = reader.unsigned();
    const base = Math.floor(first / 2);
    if (base >= contents.length) fail(`range of base ${base} of ${contents.length}`);
    const content = expected + reader.signed();
    if (content < 0 || content >= contents[base]!)
      fail(`range of content ${content}, of ${contents[base]} in base ${base}`);
    let offset = 0;
    let bytes: number | undefined;
    if (first % 2 === 1) {
      offset = reader.unsigned();
      bytes = reader.atMost(PATCH_BASE_MAX_BYTES - 1, 'bytes of a range of a base') + 1;
      known += bytes;
      if (known > PATCH_BASE_MAX_BYTES) fail(`ranges of bases have more than ${known - 1} bytes`);
    }
    ranges.push({ base, content, offset, bytes });
    expected = content + 1;
  }
  if (ranges.length === 0) fail('a patch of nothing');
  return ranges;
}

/**
 * Bytes of each range, once the contents' sizes are known.
 * @param sizeOf  bytes of a content, or undefined where it is not known
 * @throws 'corrupt' where a range lies outside its content, or all of them are too large
 */
export function measureRanges(
  ranges: readonly BaseRange[],
  sizeOf: (range: BaseRange) => number | undefined,
  field: string,
): number[] {
  let sum = 0;
  return ranges.map((range) => {
    const size = sizeOf(range);
    const { base, content, offset, bytes } = range;
    if (size === undefined)
      throw new FirstlightError('corrupt', `${field}: base ${base} has no content ${content}`);
    const length = bytes ?? size;
    if (offset + length > size)
      throw new FirstlightError(
        'corrupt',
        `${field}: bytes ${offset} to ${offset + length} of content ${content} of base ${base}, which has ${size}`,
      );
    sum += length;
    if (sum > PATCH_BASE_MAX_BYTES)
      throw new FirstlightError(
        'corrupt',
        `${field}: its ranges of bases have more than ${PATCH_BASE_MAX_BYTES} bytes`,
      );
    return length;
  });
}

/**
 * Puts together what a patch frame is coded against: the pad, then the ranges.
 * @param lengths  of the ranges, as {@link measureRanges} gives them
 * @param read     fills the memory that it is given with a range's bytes
 */
export async function readBaseBytes(
  ranges: readonly BaseRange[],
  lengths: readonly number[],
  read: (range: BaseRange, into: Uint8Array) => Promise<void>,
): Promise<Buffer> {
  const sum = lengths.reduce((a, b) => a + b, PATCH_PAD_BYTES);
  // Memory of its own: it may be handed over to a thread. The pad must be zeros.
  const bytes = Buffer.allocUnsafeSlow(sum).fill(0, 0, PATCH_PAD_BYTES);
  let at = PATCH_PAD_BYTES;
  const places = lengths.map((length) => {
    at += length;
    return bytes.subarray(at - length, at);
  });
  let next = 0;
  const reader = async () => {
    while (next < ranges.length) {
      const i = next++;
      await read(ranges[i]!, places[i]!);
    }
  };
  await Promise.all(Array.from({ length: Math.min(READS_AT_ONCE, ranges.length) }, reader));
  return bytes;
}

/** Contents that are read at once for one frame. */
const READS_AT_ONCE = 16;
