// Bundles that are damaged or made to do harm: refused with an error that names the field, or nothing
// but true contents comes out of them.
import test from 'ava';
import { type ErrorKind, FirstlightError } from '../errors/errors.ts';
import { FRAME_KIND, HEADER_MAX_BYTES, PREAMBLE, PREAMBLE_BYTES } from './bundle.ts';
import { decodeFrame, decodeHeader, parsePreamble } from './bundle-decode.ts';
import { packBases, packFrames } from './bundle-header.ts';
import { type FrameJob, makeFrame } from './frame.ts';
import {
  asBase,
  bundleOf,
  headerOf,
  imageOf,
  makeManifest,
  rebuild,
  type Sections,
  sectionsOf,
  sha256Hex,
  signPreamble,
  type TestImage,
} from './testing.ts';
import { PART_BYTES } from './toc-layout.ts';
import { packToc } from './toc-pack.ts';
import { STREAMS } from './toc-streams.ts';
import { VarintReader, VarintWriter } from './varint.ts';
import { Compressor } from './zstd.ts';

/** Two small contents, one of two parts, one that the base has: frames of parts 0-1, 2 and 3. */
function image(): TestImage {
  return imageOf({
    a: { data: 'first' },
    b: { data: 'second' },
    c: { data: Buffer.alloc(PART_BYTES + 9, 'third') },
    d: { data: 'base has it' },
  });
}
const BASE = asBase(imageOf({ z: { data: 'base has it' } }));
const BUNDLE = await bundleOf(image(), { bases: [BASE] });

/** Takes a bundle in as a worker would: the parts that come out, and what stopped it, if anything. */
function takeIn(bundle: Buffer) {
  const parts: ReturnType<typeof decodeFrame> = [];
  try {
    const { headerBytes } = parsePreamble(bundle);
    const bodyAt = PREAMBLE_BYTES + headerBytes;
    const header = decodeHeader(
      bundle.subarray(0, PREAMBLE_BYTES),
      bundle.subarray(PREAMBLE_BYTES, bodyAt),
    );
    for (const frame of header.frames) {
      const bytes = bundle.subarray(frame.offset, frame.offset + frame.bytes);
      parts.push(...decodeFrame(header, frame, bytes));
    }
    return { parts, error: undefined };
  } catch (error) {
    return { parts, error };
  }
}

function isRefusal(error: unknown): boolean {
  return (
    error instanceof FirstlightError && (error.kind === 'corrupt' || error.kind === 'unsupported')
  );
}

test('the bundle that the tests break is whole', (t) => {
  const { parts, error } = takeIn(BUNDLE);
  t.is(error, undefined);
  t.deepEqual(
    parts.map(({ part }) => part),
    [0, 1, 2, 3],
  );
  t.deepEqual(
    [...headerOf(BUNDLE).frames].map((frame) => frame.partCount),
    [2, 1, 1],
  );
});

test('any single byte changed: refused, or only true contents come out', (t) => {
  const truth = new Map(takeIn(BUNDLE).parts.map((part) => [part.part, part]));
  for (let at = 0; at < BUNDLE.length; at++) {
    for (const bits of [0x01, 0xff]) {
      const changed = Buffer.from(BUNDLE);
      changed[at]! ^= bits;
      const { parts, error } = takeIn(changed);
      if (!isRefusal(error)) t.fail(`byte ${at}: ${error}`);
      const { offset } = headerOf(BUNDLE).frames[0]!;
      if (at < offset && parts.length > 0) t.fail(`byte ${at} of the header: parts came out`);
      for (const part of parts) {
        const right = truth.get(part.part)!;
        if (!part.data.equals(right.data) || !part.contentDigest.equals(right.contentDigest))
          t.fail(`byte ${at}: part ${part.part} is wrong`);
      }
    }
  }
  t.pass();
});

test('truncated at any length: refused, and what came before is true', (t) => {
  for (let bytes = 0; bytes < BUNDLE.length; bytes++) {
    const { parts, error } = takeIn(BUNDLE.subarray(0, bytes));
    if (!isRefusal(error)) t.fail(`${bytes} bytes: ${error}`);
    for (const part of parts) {
      if (sha256Hex(part.data) !== part.partDigest.toString('hex')) t.fail(`${bytes} bytes`);
    }
  }
  t.pass();
});

/** Bytes of numbers. */
function numbers(...values: number[]): Buffer {
  const writer = new VarintWriter();
  for (const value of values) writer.unsigned(value);
  return Buffer.from(writer.done());
}
const zigzag = (value: number) => (value < 0 ? -2 * value - 1 : 2 * value);

/** The frame table, with one frame changed. */
function frames(index: number, change: Partial<Parameters<typeof packFrames>[0][number]>) {
  const table = headerOf(BUNDLE).frames.map(({ bytes, partCount, kind }) => ({
    ...{ bytes, partCount, kind, surplusBytes: 0 },
    extension: new Uint8Array(0),
  }));
  Object.assign(table[index]!, change);
  return Buffer.from(packFrames(table));
}

/** Lengths of a packed TOC's columns, all 0. */
const fifteen = () => Array.from({ length: 15 }, () => 0);

/** The packed TOC of one file of so many bytes. */
function fileOf(bytes: number): Buffer {
  const { toc } = imageOf({ f: { data: 'x' } });
  const packed = packToc(toc);
  // The column of sizes is one byte long, as all sizes here are below 128.
  const column = STREAMS.indexOf('sizes');
  const reader = new VarintReader(packed, 'TOC');
  const head = Array.from({ length: 3 }, () => reader.unsigned());
  const lengths = STREAMS.map(() => reader.unsigned());
  const columns = lengths.map((length) => reader.raw(length));
  const size = numbers(bytes);
  lengths[column] = size.length;
  columns[column] = size;
  return Buffer.concat([numbers(...head), numbers(...lengths), ...columns]);
}

/** The frame table with frame `index` as a patch whose extension has these numbers. */
function patch(index: number, ...extension: number[]): Buffer {
  return frames(index, { kind: FRAME_KIND.patch, extension: numbers(...extension) });
}

const HEADERS: [what: string, section: keyof Sections, value: Buffer, RegExp, ErrorKind?][] = [
  ['a manifest that is no JSON', 'manifest', Buffer.from('{'), /manifest: no JSON/],
  ['a manifest that is a number', 'manifest', Buffer.from('1'), /manifest: no JSON object/],
  ['a manifest without config', 'manifest', Buffer.from('{}'), /manifest: config.digest/],
  ['a config of another digest', 'config', Buffer.from('{}'), /config: its digest is/],
  ['a manifest of another image', 'manifest', makeManifest(2).manifest, /config: its digest is/],
  ['an empty TOC', 'toc', Buffer.alloc(0), /TOC: cut off/],
  ['a TOC of too many rows', 'toc', numbers(2 ** 40, 0, 0), /TOC: number of rows/],
  ['a TOC of more rows than bytes', 'toc', numbers(2 ** 21, 0, 0, ...fifteen()), /TOC: prefixes/],
  ['a TOC of too many names', 'toc', numbers(1, 0, 2 ** 40), /TOC: bytes of names/],
  ['too many bases', 'bases', numbers(2 ** 20), /bases: number of bases/],
  ['bases cut off', 'bases', numbers(1), /bases: 32 bytes wanted/],
  ['bases that are left over', 'bases', numbers(0, 0), /bases: 1 bytes too many/],
  ['a base that is not there', 'have', numbers(3, 0, 1, 0), /have: base 1 of 1/],
  ['a content past the base’s end', 'have', numbers(3, 0, 0, zigzag(1)), /have: contents 1 and 0/],
  ['a content before the base’s first', 'have', numbers(3, 0, 0, zigzag(-1)), /have: contents -1/],
  ['a content past the image’s end', 'have', numbers(4, 0, 0, 0), /have: contents 4 and 0/],
  ['a run past the image’s end', 'have', numbers(3, 1, 0, 0), /have: contents 3 and 1/],
  ['a run that overflows', 'have', numbers(3, 2 ** 53 - 2, 0, 0), /have: contents 3/],
  ['a content had without its frame', 'have', numbers(0, 0, 0, 0, 2, 0, 0, 1), /order: length/],
  ['a part twice', 'order', numbers(0, 0, zigzag(-1), 2), /order: run 1 starts at 0/],
  ['a part that is not there', 'order', numbers(zigzag(4), 3), /order: run 0 starts at 4/],
  ['a part before the first', 'order', numbers(zigzag(-1), 3), /order: run 0 starts at -1/],
  ['a run past the last part', 'order', numbers(zigzag(1), 3), /order: a run of 4/],
  ['a run that is too long', 'order', numbers(0, 4), /order: length of a run is 4/],
  ['an order that is too short', 'order', numbers(0, 2), /order: cut off/],
  ['an order that is too long', 'order', numbers(0, 3, 0), /order: 1 bytes too many/],
  ['more frames than parts', 'frames', numbers(5), /frames: number of frames is 5/],
  ['frames without digests', 'digests', Buffer.alloc(95), /digests: 95 bytes for 3 frames/],
  ['a file of 4 PiB', 'toc', fileOf(2 ** 52), /TOC: sizes: row 1: more than/],
  ['fewer frames', 'frames', numbers(2, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0), /digests: 96 bytes/],
  ['a frame table cut off', 'frames', numbers(3, 1, 1, 1), /frames: cut off/],
  ['a frame that is empty', 'frames', frames(0, { bytes: 0 }), /frame 0: bytes is 0/],
  ['a frame that is too large', 'frames', frames(1, { bytes: 3 << 20 }), /frame 1: bytes is/],
  ['a frame that reaches further', 'frames', frames(1, { bytes: 999 }), /bodyBytes is/],
  ['a frame without parts', 'frames', frames(1, { partCount: 0 }), /frame 1: no parts/],
  ['a frame of too much content', 'frames', frames(0, { partCount: 4 }), /frame 0: \d+ bytes of/],
  ['parts that no frame has', 'frames', frames(0, { partCount: 1 }), /frames: 3 parts of 4/],
  ['parts that are not there', 'frames', frames(2, { partCount: 2 }), /frame 2: more parts/],
  ['another raw size', 'frames', frames(0, { surplusBytes: 1 }), /frame 0: rawBytes/],
  ['an extension', 'frames', frames(0, { extension: Buffer.alloc(3) }), /frame 0: has an ext/],
  ['a patch of nothing', 'frames', patch(1), /frame 1: a patch of nothing/],
  ['a patch of a base that is not there', 'frames', patch(1, 2, 0), /frame 1: range of base 1 of/],
  [
    'a patch of a content past the base’s end',
    'frames',
    patch(1, 0, 2),
    /frame 1: range of content 1, of 1/,
  ],
  ['a patch of a content before its first', 'frames', patch(1, 0, 1), /range of content -1, of/],
  ['a patch of more ranges than parts', 'frames', patch(1, 0, 0, 0, 1), /frame 1: more than 1 ran/],
  ['a patch whose ranges are cut off', 'frames', patch(1, 1, 0, 5), /frame 1: cut off/],
  [
    'a patch of too large a range',
    'frames',
    patch(1, 1, 0, 0, 8 << 20),
    /bytes of a range of a base/,
  ],
  [
    'a patch of too large a control stream',
    'frames',
    frames(1, { kind: FRAME_KIND.patch, extension: numbers(0, 0), surplusBytes: (1 << 20) + 1 }),
    /frame 1: rawBytes/,
  ],
  [
    'a patch of less than its parts',
    'frames',
    frames(1, { kind: FRAME_KIND.patch, extension: numbers(0, 0), surplusBytes: -1 }),
    /frame 1: rawBytes/,
  ],
  [
    'a patch of too much',
    'frames',
    patch(0, 1, 0, 0, 5 << 20, 1, 1, 0, 5 << 20),
    /frame 0: ranges of bases have/,
  ],
  ['an unknown kind', 'frames', frames(2, { kind: 77 }), /frame 2 is of unknown/, 'unsupported'],
];

for (const [what, section, value, message, kind] of HEADERS) {
  test(`a header is refused with ${what}`, (t) => {
    const sections = { ...sectionsOf(BUNDLE), [section]: value };
    const hostile = rebuild(BUNDLE, sections);
    const error = t.throws(() => headerOf(hostile), { instanceOf: FirstlightError, message });
    t.is(error.kind, kind ?? 'corrupt');
  });
}

test('a base is named with more contents than fit', (t) => {
  const bases = Buffer.from(packBases([{ digest: BASE.digest, contents: 0 }]));
  const hostile = rebuild(BUNDLE, { ...sectionsOf(BUNDLE), bases });
  t.throws(() => headerOf(hostile), { message: /have: contents 0 and 0 more, of 0 in its base/ });
});

test('a header with more content than its frames can hold is refused', (t) => {
  const sections = { ...sectionsOf(BUNDLE), toc: fileOf(2 ** 40), have: Buffer.alloc(0) };
  const message = /digests: 3 frames for 1099511627776 bytes/;
  t.throws(() => headerOf(rebuild(BUNDLE, sections)), { instanceOf: FirstlightError, message });
});

test('a row of a layer that the image does not have is refused', async (t) => {
  const bundle = await bundleOf(imageOf({ a: { data: 'x', layer: 1 } }, 2));
  t.is(headerOf(bundle).layers.length, 2);
  const hostile = rebuild(bundle, { ...sectionsOf(bundle), ...makeManifest(1) });
  t.throws(() => headerOf(hostile), { message: /TOC: row 1: layer is 1 of 1/ });
});

const PREAMBLES: [what: string, change: (b: Buffer) => unknown, message: RegExp, ErrorKind?][] = [
  ['magic', (b) => b.write('FLBUNDLF'), /magic/],
  ['version', (b) => b.writeUInt16LE(2, PREAMBLE.version), /version 2/, 'unsupported'],
  ['an unknown flag', (b) => b.writeUInt16LE(0x8000, PREAMBLE.flags), /flags/, 'unsupported'],
  ['a reserved byte', (b) => b.writeUInt8(1, 21), /byte 21/],
  ['a reserved byte at the end', (b) => b.writeUInt8(1, 95), /byte 95/],
  ['no header', (b) => b.writeUInt32LE(0, PREAMBLE.headerBytes), /headerBytes is 0/],
  [
    'a header that is too large',
    (b) => b.writeUInt32LE(HEADER_MAX_BYTES + 1, PREAMBLE.headerBytes),
    /headerBytes is/,
  ],
  [
    'a raw header that is too large',
    (b) => b.writeUInt32LE(2 ** 32 - 1, PREAMBLE.headerRawBytes),
    /headerRawBytes is/,
  ],
  [
    'a body that overflows',
    (b) => b.writeBigUInt64LE(2n ** 64n - 1n, PREAMBLE.bodyBytes),
    /bodyBytes is/,
  ],
  [
    'a raw header size that is not the real one',
    (b) => signPreamble(b.fill(1, PREAMBLE.headerRawBytes, PREAMBLE.headerRawBytes + 1)),
    /header: inflates to/,
  ],
  [
    'a body size that is not the frames’',
    (b) => {
      b.writeBigUInt64LE(5n, PREAMBLE.bodyBytes);
      signPreamble(b);
    },
    /bodyBytes is 5/,
  ],
  ['a digest that is not the header’s', (b) => b.fill(7, PREAMBLE.digest, 64), /header: its bytes/],
];

for (const [what, change, message, kind] of PREAMBLES) {
  test(`a preamble is refused with ${what}`, (t) => {
    const hostile = Buffer.from(BUNDLE);
    change(hostile);
    const error = t.throws(() => headerOf(hostile), { instanceOf: FirstlightError, message });
    t.is(error.kind, kind ?? 'corrupt');
  });
}

test('a header of another length than the preamble says is refused', (t) => {
  const { headerBytes } = parsePreamble(BUNDLE);
  const preamble = BUNDLE.subarray(0, PREAMBLE_BYTES);
  const longer = BUNDLE.subarray(PREAMBLE_BYTES, PREAMBLE_BYTES + headerBytes + 1);
  t.throws(() => decodeHeader(preamble, longer), { message: /headerBytes is/ });
});

/** The bundle with other bytes for its first frame, and a frame table that agrees with them. */
function withFrame(bytes: Buffer): Buffer {
  const { frames: old } = headerOf(BUNDLE);
  const sections = sectionsOf(BUNDLE);
  sections.frames = frames(0, { bytes: bytes.length });
  Buffer.from(sha256Hex(bytes), 'hex').copy(sections.digests);
  return rebuild(BUNDLE, sections, Buffer.concat([bytes, BUNDLE.subarray(old[1]!.offset)]));
}

const compressor = new Compressor(1);

/** Payload of the first frame. */
function payload(): Buffer {
  const texts = [Buffer.from('first'), Buffer.from('second')];
  const table = texts.map((text) => Buffer.from(sha256Hex(text), 'hex'));
  return Buffer.concat([...table, ...texts]);
}

test('a frame made by hand is taken', (t) => {
  const { parts, error } = takeIn(withFrame(compressor.compress(payload())));
  t.is(error, undefined);
  t.is(parts[1]!.data.toString(), 'second');
});

/** Puts a content size of `bytes` into a zstd frame's header, in the place of the one that it has. */
function claim(frame: Buffer, bytes: number): Buffer {
  const body = frame.subarray((frame[4]! & 0x20) === 0 ? 7 : 6);
  const head = Buffer.alloc(13);
  frame.copy(head, 0, 0, 4);
  head[4] = 0xe0; // eight bytes of content size, single segment
  head.writeBigUInt64LE(BigInt(bytes), 5);
  return Buffer.concat([head, body]);
}

const FRAMES: [what: string, bytes: Buffer, message: RegExp][] = [
  ['that inflates beyond its size', compressor.compress(Buffer.alloc(64 << 20)), /inflates to/],
  ['that claims 2^60 bytes', claim(compressor.compress(payload()), 2 ** 60), /inflates to 11/],
  [
    'that says one size and inflates to another',
    claim(compressor.compress(Buffer.alloc(200)), payload().length),
    /zstd:/,
  ],
  ['that is shorter', compressor.compress(payload().subarray(1)), /inflates to 74 bytes, not 75/],
  [
    'that is followed by another',
    Buffer.concat([compressor.compress(payload()), compressor.compress(payload())]),
    /zstd:/,
  ],
  [
    'with bytes behind it',
    Buffer.concat([compressor.compress(payload()), Buffer.alloc(9)]),
    /zstd/,
  ],
  ['that is no zstd', Buffer.alloc(80, 'x'), /no zstd frame/],
  ['that is one byte', Buffer.alloc(1), /no zstd frame/],
  ['with a dictionary', flip(compressor.compress(payload()), 4, 0x01), /no zstd frame/],
  ['with the reserved bit', flip(compressor.compress(payload()), 4, 0x08), /no zstd frame/],
  [
    'with a wrong part',
    compressor.compress(flip(payload(), 66, 0x20)),
    /frame 0: part 0 is not what its digest says/,
  ],
  [
    'with a wrong digest',
    compressor.compress(flip(payload(), 40, 0x20)),
    /frame 0: part 1 is not what its digest says/,
  ],
];

function flip(bytes: Buffer, at: number, bits: number): Buffer {
  bytes[at]! ^= bits;
  return bytes;
}

for (const [what, bytes, message] of FRAMES) {
  test(`a frame is refused ${what}`, (t) => {
    const before = process.memoryUsage().arrayBuffers;
    const { parts, error } = takeIn(withFrame(bytes));
    t.is(parts.length, 0);
    t.true(isRefusal(error), String(error));
    t.regex((error as Error).message, message);
    t.true(process.memoryUsage().arrayBuffers - before < 32 << 20, 'memory was taken for it');
  });
}

test('a frame of an unknown kind is refused by decodeFrame too', (t) => {
  const header = headerOf(BUNDLE);
  const frame = { ...header.frames[0]!, kind: 9 };
  const bytes = BUNDLE.subarray(frame.offset, frame.offset + frame.bytes);
  const error = t.throws(() => decodeFrame(header, frame, bytes), { instanceOf: FirstlightError });
  t.is(error.kind, 'unsupported');
});

test('the encoder does not pass on a content that is not what its digest says', (t) => {
  const job: FrameJob = {
    raw: new Uint8Array(32 + 4),
    sizes: Uint32Array.of(4),
    contentDigests: new Uint8Array(32),
    several: Uint8Array.of(0),
  };
  t.throws(() => makeFrame(job, compressor), { message: /is not what its digest says/ });
});
