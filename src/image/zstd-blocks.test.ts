import { constants, zstdCompressSync } from 'node:zlib';
import test from 'ava';
import fc from 'fast-check';
import { decompress } from './compression.ts';
import { zstdBlocks } from './zstd-blocks.ts';

async function* chunks(bytes: Buffer, size: number): AsyncGenerator<Buffer> {
  for (let at = 0; at < bytes.length; at += size) yield bytes.subarray(at, at + size);
}

async function gather(source: AsyncIterable<Buffer>): Promise<Buffer[]> {
  const all: Buffer[] = [];
  for await (const piece of source) all.push(piece);
  return all;
}

const SKIPPABLE = Buffer.from('5a2a4d1805000000ffffffffff', 'hex');

test('the pieces are the stream, whatever it is, and however it is cut', async (t) => {
  const frames = [
    zstdCompressSync(Buffer.alloc(3_000_000, 'abcde')),
    SKIPPABLE,
    zstdCompressSync(Buffer.from('x'), { params: { [constants.ZSTD_c_checksumFlag]: 1 } }),
    zstdCompressSync(Buffer.alloc(0)),
    Buffer.from('no zstd at all'),
  ];
  await fc.assert(
    fc.asyncProperty(
      fc.array(fc.constantFrom(...frames), { maxLength: 5 }),
      fc.nat(100),
      fc.integer({ min: 1, max: 5000 }),
      fc.option(fc.tuple(fc.nat(500), fc.integer({ min: 1, max: 255 }))),
      async (list, cut, size, flip) => {
        const whole = Buffer.concat(list);
        if (flip !== null && flip[0] < whole.length) whole[flip[0]]! ^= flip[1];
        const stream = whole.subarray(0, Math.max(0, whole.length - cut));
        return Buffer.concat(await gather(zstdBlocks(chunks(stream, size)))).equals(stream);
      },
    ),
    { numRuns: 200 },
  );
  t.pass();
});

test('frames of every header form decode', async (t) => {
  const noise = Buffer.from(
    Array.from({ length: 400_000 }, (_, i) => (i * i * 31 + (i >> 3)) & 255),
  );
  for (const size of [0, 1, 255, 256, 65_791, 65_792, 400_000]) {
    for (const checksum of [0, 1]) {
      for (const contentSize of [0, 1]) {
        const params = {
          [constants.ZSTD_c_checksumFlag]: checksum,
          [constants.ZSTD_c_contentSizeFlag]: contentSize,
        };
        const plain = noise.subarray(0, size);
        const frame = zstdCompressSync(plain, { params });
        const stream = Buffer.concat([frame, SKIPPABLE, frame]);
        const { bytes } = await decompress(chunks(stream, 1000), 'x');
        t.true(Buffer.concat(await gather(bytes)).equals(Buffer.concat([plain, plain])), `${size}`);
      }
    }
  }
});

test('a stream that inflates a million times is decoded in small pieces', async (t) => {
  // One frame of 60,000 RLE blocks of 128 KiB: 240 KB that stand for 7.8 GB.
  const block = Buffer.alloc(3);
  block.writeUIntLE((131_072 << 3) | 2, 0, 3);
  const rle = Buffer.concat([block, Buffer.from([7])]);
  const head = Buffer.from('28b52ffd0038', 'hex');
  const frame = Buffer.concat([head, ...Array.from({ length: 60_000 }, () => rle)]);
  const { bytes } = await decompress(chunks(frame, frame.length), 'x');
  const before = process.memoryUsage().rss;
  let seen = 0;
  for await (const piece of bytes) {
    seen += piece.length;
    // What is waiting unread shows as memory.
    if (seen >= 500_000_000) break;
  }
  t.true(process.memoryUsage().rss - before < 300 << 20);
  t.true(seen >= 500_000_000);
});
