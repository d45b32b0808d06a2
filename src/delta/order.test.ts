// Planning the order from ranks, its coding, and the numbers that the header is written with.
import test from 'ava';
import fc from 'fast-check';
import { FirstlightError } from '../errors/errors.ts';
import { packOrder, planOrder, type Rank, unpackOrder } from './order.ts';
import { imageOf } from './testing.ts';
import { PART_BYTES } from './toc-layout.ts';
import { VarintReader, VarintWriter } from './varint.ts';

// Contents 0 a (part 0), 1 b (parts 1 to 3), 2 c (part 4), 3 d (parts 5 and 6), 4 e (part 7).
const { toc } = imageOf({
  a: { data: 'a' },
  b: { data: Buffer.alloc(2 * PART_BYTES + 1, 'b') },
  c: { data: 'c' },
  d: { data: Buffer.alloc(PART_BYTES + 1, 'd') },
  e: { data: 'e' },
});

function plan(ranks: Rank[], have: number[] = []) {
  const { parts, ranked } = planOrder(toc, (content) => have.includes(content), ranks);
  return { parts: [...parts], ranked };
}

test('without ranks: tree order', (t) => {
  t.deepEqual(plan([]), { parts: [0, 1, 2, 3, 4, 5, 6, 7], ranked: 0 });
  t.deepEqual(plan([], [1, 4]), { parts: [0, 4, 5, 6], ranked: 0 });
});

test('with ranks: the ranked first, then small contents, then large ones', (t) => {
  t.deepEqual(plan([{ content: 4, rank: 1 }]), { parts: [7, 0, 4, 1, 2, 3, 5, 6], ranked: 1 });
  const both = [
    { content: 3, rank: 2 },
    { content: 2, rank: -1.5 },
  ];
  t.deepEqual(plan(both), { parts: [4, 5, 6, 0, 7, 1, 2, 3], ranked: 3 });
});

test('the parts of a large content are ranked apart', (t) => {
  const ranks = [
    { content: 1, part: 2, rank: 0 },
    { content: 0, rank: 1 },
    { content: 1, part: 0, rank: 2 },
  ];
  t.deepEqual(plan(ranks), { parts: [3, 0, 1, 4, 7, 2, 5, 6], ranked: 3 });
});

test('the lowest rank wins, and equal ranks stand in tree order', (t) => {
  const ranks = [
    { content: 4, rank: 9 },
    { content: 1, rank: 5 },
    { content: 1, part: 1, rank: 1 },
    { content: 4, rank: 1 },
    { content: 0, rank: 1 },
  ];
  t.deepEqual(plan(ranks), { parts: [0, 2, 7, 1, 3, 4, 5, 6], ranked: 5 });
});

test('ranks of contents that the worker has say nothing', (t) => {
  const ranks = [
    { content: 1, rank: 0 },
    { content: 4, rank: 1 },
  ];
  t.deepEqual(plan(ranks, [1]), { parts: [7, 0, 4, 5, 6], ranked: 1 });
});

for (const rank of [
  { content: 5, rank: 0 },
  { content: -1, rank: 0 },
  { content: 0.5, rank: 0 },
  { content: 0, rank: Number.NaN },
  { content: 1, part: 3, rank: 0 },
]) {
  test(`a rank that names nothing is refused: ${JSON.stringify(rank)}`, (t) => {
    const error = t.throws(() => plan([rank]), { instanceOf: FirstlightError });
    t.is(error.kind, 'usage');
  });
}

function roundTrip(parts: Uint32Array, missing: Uint32Array): number {
  const packed = packOrder(parts, missing);
  const back = unpackOrder(new VarintReader(packed, 'order'), missing);
  if (Buffer.compare(Buffer.from(back.buffer), Buffer.from(parts.slice().buffer)) !== 0)
    throw new Error(`${parts} came back as ${back}`);
  return packed.length;
}

test('any permutation of any parts comes back', (t) => {
  const permutation = fc
    .uniqueArray(fc.nat({ max: 300 }), { maxLength: 60 })
    .chain((parts) =>
      fc.tuple(
        fc.constant(parts),
        fc.shuffledSubarray(parts, { minLength: parts.length, maxLength: parts.length }),
      ),
    );
  fc.assert(
    fc.property(permutation, ([parts, shuffled]) => {
      roundTrip(Uint32Array.from(shuffled), Uint32Array.from(parts).sort());
    }),
    { numRuns: 500 },
  );
  t.pass();
});

test('tree order costs two numbers, and what follows a few ranked parts little more', (t) => {
  const missing = Uint32Array.from({ length: 100_000 }, (_, i) => 3 * i);
  t.true(roundTrip(missing, missing) <= 4);
  const ranked = [70_000, 20_000, 20_001, 5, 99_999].map((i) => 3 * i);
  const rest = missing.filter((part) => !ranked.includes(part));
  t.true(roundTrip(Uint32Array.from([...ranked, ...rest]), missing) < 30);
});

test('the worst order takes no longer than its length allows', (t) => {
  const missing = Uint32Array.from({ length: 300_000 }, (_, i) => i);
  const started = process.cpuUsage();
  roundTrip(missing.slice().reverse(), missing);
  // Quadratic work would take minutes here.
  const { user, system } = process.cpuUsage(started);
  t.true(user + system < 5e6, `${user + system} us of a processor`);
});

test('numbers of any size come back, each in its one form', (t) => {
  fc.assert(
    fc.property(fc.array(fc.maxSafeNat()), fc.array(fc.integer()), (unsigned, signed) => {
      const writer = new VarintWriter();
      for (const value of unsigned) writer.unsigned(value);
      for (const value of signed) writer.signed(value);
      const reader = new VarintReader(writer.done(), 'numbers');
      for (const value of unsigned) t.is(reader.unsigned(), value);
      for (const value of signed) t.is(reader.signed(), value);
      reader.end();
    }),
  );
  for (const bytes of [
    [],
    [0x80],
    [0x80, 0x00],
    [0x81, 0x80, 0x00],
    [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f],
    [0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x01],
  ]) {
    const error = t.throws(() => new VarintReader(Uint8Array.from(bytes), 'numbers').unsigned(), {
      instanceOf: FirstlightError,
    });
    t.is(error.kind, 'corrupt');
  }
  t.throws(() => new VarintWriter().unsigned(2 ** 53));
  t.throws(() => new VarintWriter().unsigned(-1));
  t.throws(() => new VarintWriter().unsigned(1.5));
});
