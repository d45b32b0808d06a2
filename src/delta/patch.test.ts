// Patch frames: what comes out is what went in, from fewer bytes; what they stand on is chosen by
// path, named in the frame table, and checked.
import test from 'ava';
import fc from 'fast-check';
import type { FirstlightError } from '../errors/errors.ts';
import { FRAME_KIND, type FrameInfo } from './bundle.ts';
import { decodeFrame } from './bundle-decode.ts';
import type { EncodeInput } from './bundle-encode.ts';
import { findOldContents, rangesFor } from './patch-plan.ts';
import {
  measureRanges,
  PATCH_BASE_MAX_BYTES,
  PATCH_RANGES_MAX,
  packRanges,
  unpackRanges,
} from './patch-table.ts';
import {
  anyImage,
  asBase,
  baseBytesOf,
  bundleOf,
  encodedOf,
  headerOf,
  imageOf,
  noise,
  refuses,
  sha256Hex,
  type TestImage,
} from './testing.ts';
import { PART_BYTES } from './toc-layout.ts';
import { compressAgainst } from './zstd.ts';

/** The same bytes with some replaced, here and there. */
function changed(bytes: Buffer): Buffer {
  const copy = Buffer.from(bytes);
  for (let at = 100; at < copy.length; at += 40_000) copy.write('changed', at);
  return copy;
}

/** The contents that a bundle brings to a worker with `bases`, by hex digest. */
async function contentsOf(bundle: Buffer, bases: TestImage[]): Promise<Map<string, Buffer>> {
  const header = headerOf(bundle);
  const whole = new Map<number, Buffer>();
  for (const frame of header.frames) {
    const bytes = bundle.subarray(frame.offset, frame.offset + frame.bytes);
    const base = await baseBytesOf(header, frame, bases);
    for (const { content, index, data } of decodeFrame(header, frame, bytes, base)) {
      const buffer = whole.get(content) ?? Buffer.alloc(header.toc.contentSize(content));
      data.copy(buffer, index * PART_BYTES);
      whole.set(content, buffer);
    }
  }
  return new Map([...whole.values()].map((bytes) => [sha256Hex(bytes), bytes]));
}

const kindsOf = (bundle: Buffer) => headerOf(bundle).frames.map(({ kind }: FrameInfo) => kind);

/** Encoder input for a worker with `bases`, whose contents the server has too. */
function from(image: TestImage, bases: TestImage[]): Partial<EncodeInput> {
  const contents = new Map([image, ...bases].flatMap((each) => [...each.contents]));
  return {
    bases: bases.map(asBase),
    readContent: async (digest, offset, bytes) =>
      contents.get(digest)!.subarray(offset, offset + bytes),
  };
}

/** The bundles with and without patches; the one with must bring the same contents. */
async function both(
  t: { true(value: boolean): void; is(a: unknown, b: unknown): void },
  image: TestImage,
  bases: TestImage[],
  more: Partial<EncodeInput> = {},
): Promise<{ plain: Buffer; patched: Buffer }> {
  const given = { ...more, ...from(image, bases) };
  const plain = await bundleOf(image, given);
  const patched = await bundleOf(image, { ...given, patches: true });
  t.true(kindsOf(plain).every((kind) => kind === FRAME_KIND.zstd));
  const contents = await contentsOf(patched, bases);
  const expected = await contentsOf(plain, bases);
  t.is(contents.size, expected.size);
  for (const [hex, bytes] of expected) t.true(contents.get(hex)?.equals(bytes) === true);
  return { plain, patched };
}

test('a content that has changed a little travels as a few bytes', async (t) => {
  const old = noise(700_000, 1);
  const base = imageOf({ lib: { data: old }, same: { data: 'same' } });
  const image = imageOf({ lib: { data: changed(old) }, same: { data: 'same' } });
  const { plain, patched } = await both(t, image, [base]);
  t.true(plain.length > 700_000);
  t.true(patched.length < 10_000, `${patched.length} bytes`);
  t.deepEqual(kindsOf(patched), [FRAME_KIND.patch]);
  t.true(patched.equals(await bundleOf(image, { ...from(image, [base]), patches: true })));
});

test('threads make the same bytes', async (t) => {
  const old = noise(300_000, 2);
  const base = imageOf({ a: { data: old }, b: { data: old.subarray(9) } });
  const image = imageOf({ a: { data: changed(old) }, b: { data: changed(old.subarray(9)) } });
  const given = { ...from(image, [base]), patches: true };
  const inline = await bundleOf(image, given);
  t.true(inline.equals(await bundleOf(image, { ...given, threads: 2 })));
});

test('a base that shares no content with the image is named where a patch stands on it', async (t) => {
  const old = noise(100_000, 3);
  const base = imageOf({ lib: { data: old } });
  const { patched } = await both(t, imageOf({ lib: { data: changed(old) } }), [base]);
  t.deepEqual(
    headerOf(patched).bases.map(({ digest }) => digest),
    [asBase(base).digest],
  );
  t.true(patched.length < 5000);
});

test('each part of a large content has its place in the old one behind it', async (t) => {
  const old = noise(9 * PART_BYTES, 4);
  // Everything is moved by some bytes: a part's place is not where the old part begins.
  const moved = Buffer.concat([noise(5000, 5), changed(old)]);
  const base = imageOf({ lib: { data: old } });
  const ranks = [{ content: 0, part: 7, rank: 1 }];
  const { plain, patched } = await both(t, imageOf({ lib: { data: moved } }), [base], { ranks });
  t.true(patched.length < plain.length / 50, `${patched.length} of ${plain.length}`);
  for (const { ranges } of headerOf(patched).frames) {
    const bytes = ranges.reduce((sum, range) => sum + (range.bytes ?? old.length), 0);
    t.true(bytes <= PATCH_BASE_MAX_BYTES);
  }
});

test('a program that was compiled again travels as differences', async (t) => {
  // Instructions with an address in each; all of them have moved.
  const program = (by: number) => {
    const bytes = noise(120_000, 11);
    for (let at = 4; at + 4 <= bytes.length; at += 24)
      bytes.writeUInt32LE(0x400000 + at * 7 + by, at);
    return bytes;
  };
  const base = imageOf({ app: { data: program(0) } });
  const { patched } = await both(t, imageOf({ app: { data: program(4096) } }), [base]);
  const [frame] = headerOf(patched).frames;
  t.true(frame!.controlBytes > 0);
  t.true(patched.length < 2500, `${patched.length}`);
});

test('small files that changed together share one frame and its base', async (t) => {
  const files = (edit: (bytes: Buffer) => Buffer) =>
    Object.fromEntries(
      Array.from({ length: 200 }, (_, i) => [`f${i}`, { data: edit(noise(900, i)) }]),
    );
  const base = imageOf(files((bytes) => bytes));
  const image = imageOf(files((bytes) => Buffer.concat([bytes, Buffer.from('!')])));
  const { plain, patched } = await both(t, image, [base]);
  t.true(patched.length < plain.length / 8, `${patched.length} of ${plain.length}`);
  t.true(headerOf(patched).frames[0]!.ranges.length > 50);
});

test('what is not like its base travels as it is', async (t) => {
  const base = imageOf({ lib: { data: noise(100_000, 6) } });
  const { plain, patched } = await both(t, imageOf({ lib: { data: noise(100_000, 7) } }), [base]);
  t.deepEqual(kindsOf(patched), kindsOf(plain));
});

test('what could be patched against an old content that is damaged at the server travels as it is', async (t) => {
  const [old, other] = [noise(100_000, 10), noise(100_000, 12)];
  const base = imageOf({ lib: { data: old }, tool: { data: other } });
  const image = imageOf({ lib: { data: changed(old) }, tool: { data: changed(other) } });
  const given = { ...from(image, [base]), patches: true };
  const { patch, zstd } = FRAME_KIND;
  const gone = Object.assign(new Error('gone'), { code: 'ENOENT' });
  const damages: ((bytes: number) => Buffer)[] = [
    (bytes) => Buffer.alloc(bytes),
    (bytes) => Buffer.alloc(bytes - 1),
    () => {
      throw gone;
    },
  ];
  for (const damage of damages) {
    const readContent: EncodeInput['readContent'] = async (digest, offset, bytes) =>
      digest === sha256Hex(old) ? damage(bytes) : given.readContent!(digest, offset, bytes);
    const made = await encodedOf(image, { ...given, readContent });
    t.deepEqual(made.damagedOlds, [{ base: asBase(base).digest, content: sha256Hex(old) }]);
    t.deepEqual(kindsOf(made.bundle), [zstd, patch]);
    t.is((await contentsOf(made.bundle, [base])).size, 2);
  }
  // What is wrong with the machine is no damage.
  const readContent = async () => {
    throw Object.assign(new Error('too many'), { code: 'EMFILE' });
  };
  await t.throwsAsync(bundleOf(image, { ...given, readContent }), { message: 'too many' });
});

test('a base whose only like content is damaged is not named', async (t) => {
  const old = noise(100_000, 13);
  const base = imageOf({ lib: { data: old } });
  const image = imageOf({ lib: { data: changed(old) } });
  const given = from(image, [base]);
  const readContent: EncodeInput['readContent'] = async (digest, offset, bytes) =>
    digest === sha256Hex(old) ? Buffer.alloc(0) : given.readContent!(digest, offset, bytes);
  const bundle = await bundleOf(image, { ...given, readContent, patches: true });
  t.deepEqual(headerOf(bundle).bases, []);
  t.true(bundle.equals(await bundleOf(image, given)));
});

test('patches are tried for so many bytes and no more, for those that travel first', async (t) => {
  const old = noise(4 * PART_BYTES, 11);
  const base = imageOf({ lib: { data: old } });
  const more = { patchesMostBytes: PART_BYTES + 1000, ranks: [{ content: 0, part: 2, rank: 1 }] };
  const { patched } = await both(t, imageOf({ lib: { data: changed(old) } }), [base], more);
  const { patch, zstd } = FRAME_KIND;
  t.deepEqual(kindsOf(patched), [patch, patch, zstd, zstd]);
  t.is(headerOf(patched).order[0], 2);
});

test('an old content may begin as a dictionary of zstd does, or have a byte', async (t) => {
  const magic = Buffer.concat([Buffer.from([0x37, 0xa4, 0x30, 0xec]), noise(50_000, 8)]);
  const one = await both(t, imageOf({ a: { data: changed(magic) } }), [
    imageOf({ a: { data: magic } }),
  ]);
  t.deepEqual(kindsOf(one.patched), [FRAME_KIND.patch]);
  await both(t, imageOf({ a: { data: 'more' } }), [imageOf({ a: { data: 'm' } })]);
});

test('any image, patched against any other', async (t) => {
  await fc.assert(
    fc.asyncProperty(anyImage, anyImage, async (image, other) => {
      await both(t, image, [other]);
    }),
    { numRuns: 40 },
  );
});

test('the old content is found by path, else by the path without its numbers', (t) => {
  const base = imageOf({
    a1: { data: 'exact' },
    'lib.so.1.2.3': { data: 'old library' },
    'lib.so.1.2': { data: 'x'.repeat(500) },
    doc: { entries: { 'tool-7': { entries: { notes: { data: 'notes' } } } } },
  });
  const image = imageOf({
    a1: { data: 'newer' },
    'lib.so.1.2.4': { data: 'new library' },
    doc: { entries: { 'tool-8': { entries: { notes: { data: 'notes of 8' } } } } },
    other: { data: 'nothing is like it' },
  });
  const all = Array.from({ length: image.toc.contents }, (_, content) => content);
  const olds = findOldContents(image.toc, all, [{ toc: base.toc, index: 3 }]);
  const pairs = all.map((content) => {
    const old = olds.get(content);
    const path = image.toc.path(image.toc.firstRow(content));
    return [path, old && base.toc.path(base.toc.firstRow(old.content))];
  });
  t.deepEqual(Object.fromEntries(pairs), {
    a1: 'a1',
    'lib.so.1.2.4': 'lib.so.1.2.3',
    'doc/tool-8/notes': 'doc/tool-7/notes',
    other: undefined,
  });
  t.true([...olds.values()].every(({ base: index }) => index === 3));
});

test('of thousands of old contents whose names are alike the nearest in size is found without looking at all', (t) => {
  const numbered = (directory: string, count: number) => {
    const file = (i: number) => ({ data: `${directory} ${i} ${'x'.repeat((i * 37) % 500)}` });
    const entries = Array.from({ length: count }, (_, i) => [`${1000 + i}.jpg`, file(i)]);
    return imageOf({ [directory]: { entries: Object.fromEntries(entries) } });
  };
  const [base, image] = [numbered('batch-1', 2500), numbered('batch-22', 2000)];
  let looks = 0;
  const sizeOf = base.toc.contentSize.bind(base.toc);
  base.toc.contentSize = (content) => {
    looks++;
    return sizeOf(content);
  };
  const all = Array.from({ length: image.toc.contents }, (_, content) => content);
  const olds = findOldContents(image.toc, all, [{ toc: base.toc, index: 0 }]);
  t.true(looks < 300_000, `${looks} looks`);
  const sizes = Array.from({ length: base.toc.contents }, (_, content) => sizeOf(content));
  for (const content of all) {
    const bytes = image.toc.contentSize(content);
    const nearest = Math.min(...sizes.map((size) => Math.abs(size - bytes)));
    t.is(Math.abs(olds.get(content)!.bytes - bytes), nearest);
  }
});

test('patches that are made one after the other take the memory of one', (t) => {
  const base = noise(6 << 20, 1);
  const make = () => compressAgainst(base.subarray(1 << 20, (1 << 20) + 100_000), base, 19);
  const first = make();
  const before = process.memoryUsage.rss();
  for (let i = 0; i < 7; i++) t.true(make().equals(first));
  const grown = process.memoryUsage.rss() - before;
  t.true(grown < 200 << 20, `${grown} bytes more`);
});

test('the bytes behind a frame are bounded', (t) => {
  const entries = Array.from({ length: 5 }, (_, i) => [`f${i}`, { data: noise(2 << 20, i) }]);
  const image = imageOf(Object.fromEntries(entries));
  const olds = new Map(
    entries.map((_, content) => [content, { base: 0, content, bytes: 4 << 20 }]),
  );
  const parts = entries.map((_, content) => ({ content, index: 1 }));
  const ranges = rangesFor(image.toc, parts, olds);
  t.true(ranges.length >= 1);
  t.true(ranges.length * (4 << 20) <= PATCH_BASE_MAX_BYTES);
});

test('ranges that lie outside their content, or are too much, are refused before anything is read', (t) => {
  const range = { base: 0, content: 0, offset: 0, bytes: undefined };
  const refused = (
    ranges: Parameters<typeof measureRanges>[0],
    size: number | undefined,
    message: RegExp,
  ) => {
    refuses(t, () => measureRanges(ranges, () => size, 'frame 7'), message);
  };
  refused([range], undefined, /^frame 7: base 0 has no content 0/);
  refused([{ ...range, offset: 5, bytes: 6 }], 10, /^frame 7: bytes 5 to 11 of content 0/);
  refused([{ ...range, offset: 2 ** 52, bytes: 1 }], 10, /^frame 7: bytes 4503599627370496 to/);
  refused([range, range], PATCH_BASE_MAX_BYTES - 1, /^frame 7: its ranges of bases have more/);
  t.deepEqual(
    measureRanges([range], () => PATCH_BASE_MAX_BYTES, 'x'),
    [PATCH_BASE_MAX_BYTES],
  );
});

test('a patch against other bytes than it was made from gives nothing', async (t) => {
  const old = noise(60_000, 9);
  const base = imageOf({ lib: { data: old } });
  const image = imageOf({ lib: { data: changed(old) } });
  const bundle = await bundleOf(image, { ...from(image, [base]), patches: true });
  const header = headerOf(bundle);
  const frame = header.frames[0]!;
  const bytes = bundle.subarray(frame.offset, frame.offset + frame.bytes);
  const right = (await baseBytesOf(header, frame, [base]))!;
  t.is(decodeFrame(header, frame, bytes, right).length, 1);
  const kindOf = (base?: Buffer) =>
    (t.throws(() => decodeFrame(header, frame, bytes, base)) as FirstlightError).kind;
  const flipped = Buffer.from(right);
  flipped[30_000]! ^= 1;
  t.is(kindOf(flipped), 'corrupt');
  t.is(kindOf(right.subarray(0, 20_000)), 'corrupt');
  t.is(kindOf(Buffer.alloc(0)), 'corrupt');
  t.is(kindOf(undefined), 'internal');
});

test('the ranges behind a frame are bounded by number, at both ends', (t) => {
  const { toc } = imageOf({ a: { data: 'a' } });
  const parts = Array.from({ length: 2 * PATCH_RANGES_MAX }, (_, content) => ({
    content,
    index: 0,
  }));
  const olds = new Map(parts.map(({ content }) => [content, { base: 0, content, bytes: 10 }]));
  const ranges = rangesFor(toc, parts, olds);
  t.is(ranges.length, PATCH_RANGES_MAX);
  const read = (packed: Buffer) => unpackRanges(packed, [parts.length], parts.length, 'frame 7');
  t.deepEqual(read(packRanges(ranges)), ranges);
  const more = { base: 0, content: PATCH_RANGES_MAX, offset: 0, bytes: undefined };
  refuses(t, () => read(packRanges([...ranges, more])), /^frame 7: more than 8192 ranges of bases/);
});

test('ranges come back as they were written', (t) => {
  const ranges = [
    { base: 0, content: 5, offset: 0, bytes: undefined },
    { base: 1, content: 2, offset: 123_456, bytes: PATCH_BASE_MAX_BYTES },
    { base: 0, content: 0, offset: 0, bytes: undefined },
  ];
  t.deepEqual(unpackRanges(packRanges(ranges), [6, 3], 3, 'x'), ranges);
});
