// A bundle as a whole: what goes in comes out, in the promised order, byte for byte the same each time.
import { createHash } from 'node:crypto';
import { readdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import test from 'ava';
import fc from 'fast-check';
import { FRAME_MAX_BYTES, FRAME_MIN_BYTES } from './bundle.ts';
import { encodeBundle } from './bundle-encode.ts';
import {
  anyImage,
  asBase,
  bundleOf,
  headerOf,
  imageOf,
  inputOf,
  partsOfBundle,
  sha256Hex,
  type TestImage,
  withDirectory,
} from './testing.ts';
import { PART_BYTES } from './toc-layout.ts';

/** Contents of a bundle put together again, by hex digest; every digest is checked on the way. */
function contentsOf(bundle: Buffer): Map<string, Buffer> {
  const header = headerOf(bundle);
  const whole = new Map<number, Buffer>();
  for (const part of partsOfBundle(bundle)) {
    const size = header.toc.contentSize(part.content);
    const buffer = whole.get(part.content) ?? Buffer.alloc(size);
    part.data.copy(buffer, part.index * PART_BYTES);
    whole.set(part.content, buffer);
    if (sha256Hex(part.data) !== part.partDigest.toString('hex')) throw new Error('part digest');
  }
  const found = new Map<string, Buffer>();
  for (const part of partsOfBundle(bundle)) {
    const buffer = whole.get(part.content)!;
    const digest = sha256Hex(buffer);
    if (digest !== part.contentDigest.toString('hex')) throw new Error('content digest');
    found.set(digest, buffer);
  }
  return found;
}

/** True where both hold the same. (ava's own comparison of large buffers takes seconds.) */
function same(x: Map<string, Buffer>, y: Map<string, Buffer>): boolean {
  return x.size === y.size && [...x].every(([key, value]) => y.get(key)?.equals(value) === true);
}

/** Bytes that do not compress and differ for each seed. */
function noise(bytes: number, seed: string): Buffer {
  const blocks: Buffer[] = [];
  for (let i = 0; i * 32 < bytes; i++)
    blocks.push(createHash('sha256').update(`${seed}${i}`).digest());
  return Buffer.concat(blocks, bytes);
}

/** Files f0, f1, ... with contents of the given sizes. */
function filesOf(sizes: number[]): TestImage {
  const entries = sizes.map((size, i) => [
    `f${String(i).padStart(4, '0')}`,
    { data: noise(size, `file ${i} `) },
  ]);
  return imageOf(Object.fromEntries(entries));
}

test('any image comes out of its bundle as it went in', async (t) => {
  await fc.assert(
    fc.asyncProperty(anyImage, async (image) => {
      const bundle = await bundleOf(image);
      const header = headerOf(bundle);
      t.true(header.toc.bytes.equals(image.toc.bytes));
      t.deepEqual(header.manifest, image.manifest);
      t.deepEqual(header.config, image.config);
      t.is(header.imageDigest, `sha256:${sha256Hex(image.manifest)}`);
      t.is(header.layers.length, 3);
      t.true(same(contentsOf(bundle), usedContents(image)));
    }),
    { numRuns: 60 },
  );
});

/** Contents that the image's TOC names. */
function usedContents(image: TestImage): Map<string, Buffer> {
  const used = new Map<string, Buffer>();
  for (let c = 0; c < image.toc.contents; c++) {
    const digest = image.digests.toString('hex', c * 32, c * 32 + 32);
    used.set(digest, image.contents.get(digest)!);
  }
  return used;
}

test('the same input gives the same bytes, with any number of threads', async (t) => {
  const image = filesOf([10, 70_000, 3 * PART_BYTES + 5, 200_000, 1, 90_000, PART_BYTES]);
  const ranks = [{ content: 2, part: 1, rank: 5 }];
  const inline = await bundleOf(image, { threads: 0, ranks });
  t.true(inline.equals(await bundleOf(image, { threads: 1, ranks })));
  t.true(inline.equals(await bundleOf(image, { threads: 3, ranks })));
  t.true(inline.equals(await bundleOf(image, { threads: 3, ranks })));
});

test('encodeBundle tells sizes and name, and leaves only the bundle behind', async (t) => {
  await withDirectory(async (directory) => {
    const path = join(directory, 'bundle');
    const made = await encodeBundle(inputOf(filesOf([5, 6])), path);
    const bundle = await readFile(path);
    const { preamble } = headerOf(bundle);
    t.is(made.bytes, bundle.length);
    t.is(made.headerBytes, 96 + preamble.headerBytes);
    t.is(made.id, preamble.digest);
    t.is(bundle.length, made.headerBytes + preamble.bodyBytes);
    t.deepEqual(await readdir(directory), ['bundle']);
  });
});

test('frames: small ones first, then up to 1 MiB, ranked parts apart from the others', async (t) => {
  const image = filesOf(Array.from({ length: 1200 }, () => 9000));
  const ranks = Array.from({ length: 150 }, (_, i) => ({ content: 1199 - i * 3, rank: i }));
  const header = headerOf(await bundleOf(image, { ranks }));
  const raw = header.frames.map((frame) => frame.rawBytes - 32 * frame.partCount);
  t.true(raw.every((bytes) => bytes <= FRAME_MAX_BYTES));
  t.true(raw[0]! <= 2 * FRAME_MIN_BYTES);
  t.true(Math.max(...raw) > FRAME_MAX_BYTES * 0.95);
  const small = raw.filter((bytes) => bytes < FRAME_MIN_BYTES);
  t.true(small.length <= 2, 'only the last ranked frame and the last of all may be small');
  t.true(header.frames.some((frame) => frame.firstPart === 150));
  t.deepEqual(
    [...header.order.subarray(0, 150)],
    ranks.map(({ content }) => content),
  );
  t.deepEqual(contentsOf(await bundleOf(image, { ranks })).size, 1200);
});

test('no content: a bundle without frames', async (t) => {
  const bundle = await bundleOf(imageOf({ a: { data: '' }, d: { entries: {} } }));
  t.deepEqual(headerOf(bundle).frames, []);
  t.is(bundle.length, 96 + headerOf(bundle).preamble.headerBytes);
});

test('contents that bases have stay away and are named', async (t) => {
  const all = filesOf([100, 200, 300, 2 * PART_BYTES + 1, 400, 500]);
  const some = imageOf({
    other: { data: 'other' },
    x: { data: noise(300, 'file 2 ') },
    y: { data: noise(2 * PART_BYTES + 1, 'file 3 ') },
  });
  const useless = imageOf({ z: { data: 'nothing of it' } });
  const more = imageOf({ p: { data: noise(500, 'file 5 ') }, q: { data: noise(300, 'file 2 ') } });
  const bases = [useless, some, more].map(asBase);
  const bundle = await bundleOf(all, { bases });
  const header = headerOf(bundle);
  t.deepEqual(
    header.bases.map(({ digest }) => digest),
    [bases[1]!.digest, bases[2]!.digest],
  );
  t.deepEqual([...header.haveBase], [-1, -1, 0, 0, -1, 1]);
  t.deepEqual([...header.haveContent], [0, 0, 1, 2, 0, 0]);
  t.deepEqual([...header.order], [0, 1, 6], 'the fourth content has parts 3 to 5');
  t.is(contentsOf(bundle).size, 3);
});
