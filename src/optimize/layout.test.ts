// Layouts: what they hold, and that the server plans the same frames.
import test from 'ava';
import fc from 'fast-check';
import { planFrames, tableOfParts } from '../delta/frame-plan.ts';
import { planOrder } from '../delta/order.ts';
import { imageOf } from '../delta/testing.ts';
import { TRACE_PART_BYTES as PART } from '../trace/tracer.ts';
import { type Layout, layOut } from './layout.ts';
import { imageFiles } from './match.ts';
import { rankImage } from './ranks.ts';
import { filesOf, large, runOf } from './testing.ts';

test('layouts: each part of each content once, ranked ones first and apart', (t) => {
  const files = filesOf({
    a: ['A', 10],
    big: ['B', 3 * PART + 5],
    copy: ['A', 10],
    empty: ['E', 0],
    z: ['Z', 20],
  });
  const options = { headerBytes: 100, ratio: 0.5 };
  const total = (layout: Layout) => layout.frames.reduce((sum, bytes) => sum + bytes, 0);
  const ranked = [
    { path: 'z', rank: 0, runs: 1, of: 1, source: 'own' as const },
    { path: 'big', part: 3, rank: 1, runs: 1, of: 1, source: 'own' as const },
  ];
  const orders = [
    layOut(files, 'tree', options),
    layOut(files, 'size', options),
    layOut(files, ranked, options),
  ];
  for (const layout of orders) {
    t.is(total(layout), 5 + 10 + 3 * (PART / 2) + 3 + 2 * 32 + 4 * 64);
    t.deepEqual(layout.framesOf('a'), layout.framesOf('copy'));
    t.deepEqual(layout.framesOf('empty'), []);
    for (const frame of layout.frames) t.true(frame <= PART / 2 + 64);
  }
  const [tree, size, first] = orders as [Layout, Layout, Layout];
  t.deepEqual(tree.framesOf('a'), [0]);
  t.deepEqual(size.framesOf('z'), size.framesOf('a'));
  t.deepEqual(first.framesOf('z'), [0]);
  t.deepEqual(first.framesOf('big', 3), [0]);
  t.deepEqual(first.framesOf('a'), [1]);
  t.deepEqual(first.framesOf('big'), [0, 2, 3, 4]);
});

test('the frames that a real order would have follow the same sizes', (t) => {
  // Contents of 64 KiB with their digests: four frames of 2, four of 4, four of 8, then 16 of them.
  const list = Array.from({ length: 100 }, (_, at) => ({
    path: `f${at}`,
    digest: `d${at}`,
    sizeBytes: 65536 - 32,
  }));
  const { frames } = layOut(imageFiles(list), 'tree', { headerBytes: 0, ratio: 1 });
  t.deepEqual(
    frames.map((bytes) => bytes / 65536),
    [2, 2, 2, 2, 4, 4, 4, 4, 8, 8, 8, 8, 16, 16, 12],
  );
});

test('the frames are those that the server plans', (t) => {
  const sizes = fc.array(
    fc.oneof(fc.integer({ min: 8, max: 90_000 }), fc.integer({ min: PART - 50, max: 3 * PART })),
    {
      minLength: 1,
      maxLength: 24,
    },
  );
  fc.assert(
    fc.property(sizes, fc.infiniteStream(fc.nat(23)), (list, picks) => {
      const spec = Object.fromEntries(
        list.map((bytes, at) => [
          `f${String(at).padStart(2, '0')}`,
          { data: Buffer.alloc(bytes, `${at}.`) },
        ]),
      );
      const { toc } = imageOf(spec);
      const names = Object.keys(spec);
      const files = imageFiles(
        names.map((path, at) => ({ path, digest: `content ${at}`, sizeBytes: list[at]! })),
      );
      // Every third file is read; of large ones some parts.
      const read = [...picks.take(list.length)].filter(
        (pick) => pick < list.length && pick % 3 === 0,
      );
      const run = runOf(
        read.map((at, ms) => (list[at]! > PART ? large(names[at]!, ms, [1, 0]) : names[at]!)),
      );
      const target = { digest: `sha256:${'1'.repeat(64)}`, image: 'app:1', files };
      const ranked = rankImage([run], target).parts;
      const ranks = ranked.map(({ path, part, rank }) => {
        const content = toc.content(toc.resolve(path));
        return { content, rank, ...(part === undefined ? {} : { part }) };
      });
      for (const [first, given] of [
        ['tree', []],
        [ranked, ranks],
      ] as const) {
        const order = planOrder(toc, () => false, given);
        const table = tableOfParts(toc);
        const planned = planFrames(toc, order, table);
        const layout = layOut(files, first, { headerBytes: 0, ratio: 1 });
        t.is(layout.frames.length, planned.length);
        for (const [frame, { firstPart, partCount }] of planned.entries()) {
          for (const part of order.parts.subarray(firstPart, firstPart + partCount)) {
            const content = table.content[part]!;
            const name = names.find((path) => toc.content(toc.resolve(path)) === content)!;
            t.deepEqual(layout.framesOf(name, part - toc.firstPart(content)), [frame]);
          }
        }
      }
    }),
    { numRuns: 40 },
  );
});
