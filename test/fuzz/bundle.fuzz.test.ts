// Mutated bundles, for a bounded time (FUZZ_MS, 5 s where unset). What goes in is a good bundle with
// damage at one of several depths; where the damage is inside, the outer digests are made to fit
// again, so that the inner checks are really reached. What must hold: the decoder ends with 'corrupt'
// or 'unsupported', or every number that it gives out can be used and every part is what its digest
// says. A failure names its seed: FUZZ_SEED=N runs that one case alone.
import { setImmediate } from 'node:timers/promises';
import test from 'ava';
import {
  type BundleHeader,
  FRAME_KIND,
  type FrameInfo,
  PREAMBLE_BYTES,
} from '../../src/delta/bundle.ts';
import { decodeFrame } from '../../src/delta/bundle-decode.ts';
import { type PackedFrame, packFrames } from '../../src/delta/bundle-header.ts';
import {
  type BaseRange,
  measureRanges,
  PATCH_PAD_BYTES,
  packRanges,
} from '../../src/delta/patch-table.ts';
import {
  asBase,
  bundleOf,
  headerOf,
  imageOf,
  rebuild,
  type Spec,
  sectionsOf,
  sha256Hex,
  signPreamble,
} from '../../src/delta/testing.ts';
import type { Toc } from '../../src/delta/toc.ts';
import { checkToc } from '../../src/delta/toc-check.ts';
import { PART_BYTES } from '../../src/delta/toc-layout.ts';
import { packToc } from '../../src/delta/toc-pack.ts';
import { unpackToc } from '../../src/delta/toc-unpack.ts';
import { Compressor, compressAgainst, decompressExactly } from '../../src/delta/zstd.ts';
import { FirstlightError } from '../../src/errors/errors.ts';

const FUZZ_MS = Number(process.env.FUZZ_MS ?? 5000);
const ONE_SEED = process.env.FUZZ_SEED;
/** No case may take more of a processor than this, nor hold more memory. */
const CASE_MS = 3000;
const CASE_BYTES = 600 << 20;

/** Numbers from 0 to `below` - 1; the same seed gives the same ones (Marsaglia's xorshift). */
function randomOf(seed: number): (below: number) => number {
  let state = (seed * 2654435761 + 1) >>> 0 || 1;
  return (below) => {
    state ^= state << 13;
    state >>>= 0;
    state ^= state >>> 17;
    state ^= state << 5;
    state >>>= 0;
    return state % below;
  };
}
type Random = ReturnType<typeof randomOf>;

/** Bytes that do not compress, the same for the same seed. */
function noise(bytes: number, seed: number): Buffer {
  const random = randomOf(seed + 1);
  return Buffer.from(Array.from({ length: bytes }, () => random(256)));
}

const EXTREMES = [0, 1, 2, 0x3f, 0x7e, 0x7f, 0x80, 0x81, 0xfe, 0xff];

/** The bytes with one to four small changes. */
function damage(bytes: Buffer, random: Random): Buffer {
  let changed = Buffer.from(bytes);
  for (let i = random(4); i >= 0; i--) {
    const at = random(changed.length + 1);
    const length = 1 + random(random(8) === 0 ? 64 : 4);
    const insert = Buffer.from(
      Array.from({ length }, () => (random(2) === 0 ? EXTREMES[random(10)]! : random(256))),
    );
    const rest = (skip: number) => changed.subarray(Math.min(at + skip, changed.length));
    switch (random(6)) {
      case 0:
        if (at < changed.length) changed[at]! ^= 1 << random(8);
        break;
      case 1:
        changed = Buffer.concat([changed.subarray(0, at), insert, rest(length)]);
        break;
      case 2:
        changed = Buffer.concat([changed.subarray(0, at), insert, rest(0)]);
        break;
      case 3:
        changed = Buffer.concat([changed.subarray(0, at), rest(length)]);
        break;
      case 4:
        changed = Buffer.concat([changed.subarray(0, at + length), rest(0)]);
        break;
      default:
        // One number of a table in another place: what swaps and duplicates fields.
        changed.copy(changed, random(changed.length + 1), at, at + 4);
    }
  }
  return changed;
}

const shared: Spec = { data: 'shared', xattrs: new Map([['user.a', Buffer.from('1')]]) };
const SMALL = imageOf({
  bin: { type: 'symlink', target: 'usr/bin' },
  dev: { entries: { null: { type: 'char', major: 1, minor: 3 }, pipe: { type: 'fifo' } } },
  etc: { entries: { a: shared, b: shared, c: { data: '' }, conf: { entries: {} } } },
  usr: { entries: { bin: { entries: { aa: { data: 'aa' }, aaa: { data: 'aaa', uid: 5 } } } } },
});
const LARGE = imageOf(
  {
    lib: { data: Buffer.alloc(2 * PART_BYTES + 3, 'lib'), layer: 2 },
    old: { data: 'the base has it' },
    older: { data: 'and this' },
    ...Object.fromEntries(
      Array.from({ length: 90 }, (_, i) => [
        `file${i}`,
        { data: `content ${i} `.repeat(100 * i), layer: i % 3, mtimeSec: i % 7 },
      ]),
    ),
  },
  3,
);
const BASE = asBase(imageOf({ a: { data: 'the base has it' }, b: { data: 'and this' } }));
const RANKS = [
  { content: 50, rank: 1 },
  { content: 89, part: 1, rank: 2 },
  { content: 3, rank: 3 },
];
/** Like a program: addresses in it, larger by `by`. */
function program(by: number): Buffer {
  const bytes = noise(90_000, 500);
  for (let at = 4; at + 4 <= bytes.length; at += 24) bytes.writeUInt32LE(at * 7 + by, at);
  return bytes;
}

/** What the patches of a seed stand on; every file of it is like one of LARGE. */
const OLDER = imageOf({
  lib: { data: Buffer.alloc(2 * PART_BYTES + 9, 'lib') },
  program: { data: program(0) },
  ...Object.fromEntries(
    Array.from({ length: 90 }, (_, i) => [
      `file${i}`,
      { data: Buffer.concat([Buffer.from('old'), noise(40 * i, i)]) },
    ]),
  ),
});
const NEWER = imageOf({
  lib: { data: Buffer.alloc(2 * PART_BYTES + 3, 'lib') },
  program: { data: program(4096) },
  ...Object.fromEntries(
    Array.from({ length: 90 }, (_, i) => [
      `file${i}`,
      { data: Buffer.concat([Buffer.from('new'), noise(40 * i, i)]) },
    ]),
  ),
});
const BOTH = new Map([...OLDER.contents, ...NEWER.contents]);
const SEEDS = [
  await bundleOf(SMALL),
  await bundleOf(LARGE, { bases: [BASE], ranks: RANKS }),
  await bundleOf(NEWER, {
    bases: [asBase(OLDER)],
    patches: true,
    ranks: [{ content: 50, rank: 1 }],
    readContent: async (digest, offset, bytes) =>
      BOTH.get(digest)!.subarray(offset, offset + bytes),
  }),
  await bundleOf(imageOf({})),
];

const compressor = new Compressor(1);

/** Replaces the bytes of one frame, and makes the frame table agree. */
function withFrame(bundle: Buffer, header: BundleHeader, index: number, bytes: Buffer): Buffer {
  const sections = sectionsOf(bundle);
  const frames: PackedFrame[] = header.frames.map((frame) => ({
    bytes: frame.index === index ? bytes.length : frame.bytes,
    partCount: frame.partCount,
    kind: frame.kind,
    surplusBytes: frame.controlBytes,
    extension: frame.kind === FRAME_KIND.patch ? packRanges(frame.ranges) : new Uint8Array(0),
  }));
  sections.frames = packFrames(frames);
  Buffer.from(sha256Hex(bytes), 'hex').copy(sections.digests, index * 32);
  const body = header.frames.map((frame) =>
    frame.index === index ? bytes : bundle.subarray(frame.offset, frame.offset + frame.bytes),
  );
  return rebuild(bundle, sections, Buffer.concat(body));
}

/** What a frame of the seeds is coded against; what no base has is refused. */
function baseOf(header: BundleHeader, frame: FrameInfo): Buffer | undefined {
  if (frame.kind !== FRAME_KIND.patch) return undefined;
  const { toc, digests, contents } = OLDER;
  const sizeOf = ({ content }: BaseRange) =>
    content < toc.contents ? toc.contentSize(content) : undefined;
  const lengths = measureRanges(frame.ranges, sizeOf, `frame ${frame.index}`);
  if (header.bases.length === 0) throw new Error('a patch without bases');
  const pieces = frame.ranges.map(({ content, offset }, i) =>
    contents
      .get(digests.toString('hex', content * 32, content * 32 + 32))!
      .subarray(offset, offset + lengths[i]!),
  );
  return Buffer.concat([Buffer.alloc(PATCH_PAD_BYTES), ...pieces]);
}

/** Damage at one depth. */
type Mutator = (bundle: Buffer, random: Random) => Buffer;

const anywhere: Mutator = (bundle, random) => damage(bundle, random);

const preamble: Mutator = (bundle, random) => {
  const head = damage(bundle.subarray(0, PREAMBLE_BYTES), random);
  const changed = Buffer.concat([head, bundle.subarray(PREAMBLE_BYTES)]);
  // Where the header's size has become nonsense there is nothing to sign.
  return changed.length > PREAMBLE_BYTES ? signPreamble(changed) : changed;
};

const oneSection: Mutator = (bundle, random) => {
  const sections = sectionsOf(bundle);
  const names = ['toc', 'toc', 'bases', 'have', 'frames', 'order', 'digests', 'manifest'] as const;
  const name = names[random(names.length)]!;
  sections[name] = damage(sections[name], random);
  return rebuild(bundle, sections);
};

const frameBytes: Mutator = (bundle, random) => {
  const header = headerOf(bundle);
  if (header.frames.length === 0) return anywhere(bundle, random);
  const frame = header.frames[random(header.frames.length)]!;
  const bytes = bundle.subarray(frame.offset, frame.offset + frame.bytes);
  return withFrame(bundle, header, frame.index, damage(bytes, random));
};

const framePayload: Mutator = (bundle, random) => {
  const header = headerOf(bundle);
  if (header.frames.length === 0) return anywhere(bundle, random);
  const frame = header.frames[random(header.frames.length)]!;
  const bytes = bundle.subarray(frame.offset, frame.offset + frame.bytes);
  const base = baseOf(header, frame);
  const payload = damage(decompressExactly(bytes, frame.rawBytes, 'frame', base), random);
  if (base !== undefined)
    return withFrame(bundle, header, frame.index, compressAgainst(payload, base, 1));
  return withFrame(bundle, header, frame.index, compressor.compress(payload));
};

const MUTATORS = { anywhere, preamble, oneSection, frameBytes, framePayload };

/** Follows every number of a table that has passed the check. */
function walk(toc: Toc): void {
  let links = 0;
  for (let row = 0; row < toc.rows; row++) {
    if (toc.resolve(toc.path(row)) !== row) throw new Error(`row ${row} is not where its path is`);
    if (toc.isDirectory(row)) links += toc.children(row).end - toc.children(row).first;
    if (toc.isSymlink(row)) toc.target(row).toString('latin1');
    if (toc.content(row) >= toc.contents) throw new Error(`row ${row}: content`);
    toc.xattrs(row);
  }
  if (links !== toc.rows - 1) throw new Error(`${links} names in directories`);
  let parts = 0;
  for (let c = 0; c < toc.contents; c++) {
    if (toc.firstPart(c) !== parts || toc.partSize(c, toc.partCount(c) - 1) <= 0)
      throw new Error(`content ${c}: parts`);
    parts += toc.partCount(c);
  }
}

/** Takes a bundle in; throws what the decoder throws, or where it gave out something wrong. */
function takeIn(bundle: Buffer): void {
  const header = headerOf(bundle);
  walk(header.toc);
  const seen = new Set(header.order);
  if (seen.size !== header.order.length) throw new Error('a part twice');
  let end = header.frames[0]?.offset ?? bundle.length;
  for (const frame of header.frames) {
    if (frame.offset !== end) throw new Error(`frame ${frame.index} has a gap before it`);
    end += frame.bytes;
    const bytes = bundle.subarray(frame.offset, end);
    for (const part of decodeFrame(header, frame, bytes, baseOf(header, frame))) {
      if (sha256Hex(part.data) !== part.partDigest.toString('hex')) throw new Error('part digest');
      if (part.data.length !== header.toc.partSize(part.content, part.index))
        throw new Error('part size');
    }
  }
}

function isRefusal(error: unknown): boolean {
  return (
    error instanceof FirstlightError && (error.kind === 'corrupt' || error.kind === 'unsupported')
  );
}

/** Runs cases until the time is over; returns how many were refused and how many taken. */
async function fuzz(run: (random: Random) => void): Promise<{ refused: number; taken: number }> {
  const first = ONE_SEED === undefined ? Date.now() % 1_000_000_000 : Number(ONE_SEED);
  const until = performance.now() + FUZZ_MS / 2;
  let refused = 0;
  let taken = 0;
  for (let seed = first; performance.now() < until; seed++) {
    const started = process.cpuUsage();
    try {
      run(randomOf(seed));
      taken++;
    } catch (cause) {
      if (!isRefusal(cause)) throw new Error(`FUZZ_SEED=${seed}: ${cause}`, { cause });
      refused++;
    }
    const { user, system } = process.cpuUsage(started);
    const took = (user + system) / 1000;
    if (took > CASE_MS) throw new Error(`FUZZ_SEED=${seed}: took ${took} ms`);
    // A turn of the event loop lets go of the contexts that the mutators' compressors have used.
    if (seed % 16 === 0) await setImmediate();
    const rss = process.memoryUsage.rss();
    if (rss > CASE_BYTES) throw new Error(`near FUZZ_SEED=${seed}: ${rss} bytes of memory`);
    if (ONE_SEED !== undefined) break;
  }
  return { refused, taken };
}

test.serial('mutated bundles', async (t) => {
  const patches = headerOf(SEEDS[2]!).frames.filter(({ kind }) => kind === FRAME_KIND.patch);
  t.true(patches.some(({ controlBytes }) => controlBytes > 0));
  const names = Object.keys(MUTATORS) as (keyof typeof MUTATORS)[];
  const count = await fuzz((random) => {
    const name = names[random(names.length)]!;
    takeIn(MUTATORS[name](SEEDS[random(SEEDS.length)]!, random));
  });
  t.log(`${count.refused} refused, ${count.taken} taken`);
  t.true(count.refused + count.taken > 0);
});

test.serial('mutated tables, flat and packed', async (t) => {
  const tables = [SMALL, LARGE].map(({ toc }) => toc.bytes);
  const packed = tables.map((bytes) => packToc(checkToc(bytes)));
  const count = await fuzz((random) => {
    const which = random(2);
    const bytes =
      random(2) === 0 ? damage(tables[which]!, random) : unpackToc(damage(packed[which]!, random));
    const toc = checkToc(bytes);
    walk(toc);
    // A good table in another order of names is refused by packToc, and must not be packed wrongly.
    try {
      if (!unpackToc(packToc(toc)).equals(toc.bytes)) throw new Error('packed wrongly');
    } catch (error) {
      if (!(error instanceof FirstlightError && error.kind === 'internal')) throw error;
    }
  });
  t.log(`${count.refused} refused, ${count.taken} taken`);
  t.true(count.refused + count.taken > 0);
});
