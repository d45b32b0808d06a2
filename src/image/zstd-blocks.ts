// Cuts a zstd stream at its block boundaries (RFC 8878, section 3.1), so that what is given to the
// decoder at a time stands for a bounded number of bytes. The decoder pushes all that a chunk of
// input gives; four bytes of input can stand for 128 KiB, so chunks of the network's size could
// inflate to gigabytes in memory before anyone reads them.
import { ByteReader } from './byte-reader.ts';

const FRAME = 0xfd2fb528;
/** Most bytes of a block, compressed or not (Block_Maximum_Size). */
const BLOCK_BYTES_MAX = 128 << 10;
/** Blocks given at a time: at most 1 MiB of output. */
const BLOCKS = 8;

/** Bytes of the frame header that follow its descriptor byte. */
function headerBytes(descriptor: number): number {
  const single = (descriptor & 0x20) !== 0;
  const dictionary = [0, 1, 2, 4][descriptor & 3]!;
  const size = [single ? 1 : 0, 2, 4, 8][descriptor >> 6]!;
  return (single ? 0 : 1) + dictionary + size;
}

/**
 * The same bytes in pieces of at most 8 blocks. Does not judge: what is no zstd, or is cut, goes on to
 * the decoder as it is, in pieces too small to do harm.
 */
export async function* zstdBlocks(source: AsyncIterable<Buffer>): AsyncGenerator<Buffer> {
  const reader = new ByteReader(source);
  try {
    for (;;) {
      const magic = await reader.exactly(4);
      if (magic.length === 0) return;
      if (magic.length === 4 && (magic.readUInt32LE(0) & 0xfffffff0) >>> 0 === 0x184d2a50) {
        yield* skippable(reader, magic);
        continue;
      }
      const isFrame = magic.length === 4 && magic.readUInt32LE(0) === FRAME;
      if (isFrame && (yield* frame(reader, magic))) continue;
      if (!isFrame) yield magic;
      yield* rest(reader);
      return;
    }
  } finally {
    await reader.close();
  }
}

async function* skippable(reader: ByteReader, magic: Buffer): AsyncGenerator<Buffer> {
  const length = await reader.exactly(4);
  yield Buffer.concat([magic, length]);
  let left = length.length === 4 ? length.readUInt32LE(0) : 0;
  while (left > 0) {
    const piece = await reader.some(Math.min(left, BLOCK_BYTES_MAX));
    if (piece === undefined) return;
    left -= piece.length;
    yield piece;
  }
}

/** A frame, magic included; false where it stopped making sense. */
async function* frame(reader: ByteReader, magic: Buffer): AsyncGenerator<Buffer, boolean> {
  const descriptor = await reader.exactly(1);
  const head = descriptor.length === 0 ? 0 : headerBytes(descriptor[0]!);
  let pieces = [magic, descriptor, await reader.exactly(head)];
  for (let blocks = 1; ; blocks++) {
    const header = await reader.exactly(3);
    pieces.push(header);
    const bits = header.length < 3 ? 6 : header.readUIntLE(0, 3);
    const type = (bits >> 1) & 3;
    const size = bits >> 3;
    if (type === 3 || (type !== 1 && size > BLOCK_BYTES_MAX)) {
      yield Buffer.concat(pieces);
      return false;
    }
    pieces.push(await reader.exactly(type === 1 ? 1 : size));
    const last = (bits & 1) === 1;
    if (last && (descriptor[0]! & 4) !== 0) pieces.push(await reader.exactly(4));
    if (last || blocks % BLOCKS === 0) {
      yield Buffer.concat(pieces);
      pieces = [];
    }
    if (last) return true;
  }
}

async function* rest(reader: ByteReader): AsyncGenerator<Buffer> {
  for (;;) {
    const piece = await reader.some(512);
    if (piece === undefined) return;
    yield piece;
  }
}
