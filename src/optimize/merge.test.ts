// Groups as Starlight makes them, and repeated runs merged by median rank.
import test from 'ava';
import fc from 'fast-check';
import type { Tracer } from '../trace/tracer.ts';
import { TraceCollection } from './collection.ts';
import { groupsByRun, itemKey, type OptimizedGroup } from './group.ts';
import { mergedGroups, sessionsOf } from './merge.ts';
import { large, runOf } from './testing.ts';
import { mergeUnits } from './units.ts';

const keys = ({ history }: OptimizedGroup) => history.map(itemKey);
const paths = (runs: Tracer[]) =>
  mergeUnits(runs).map(({ path, part }) => path + (part < 0 ? '' : part));

test('default group: a group for each run, first sights, ranks by position', (t) => {
  const groups = groupsByRun([
    runOf(['b', 'a', 'b', 'c']),
    runOf(['x'], { image: 'db:2', startS: 5 }),
  ]);
  t.deepEqual(groups.map(keys), [['0|b', '0|a', '0|c'], ['0|x']]);
  t.deepEqual(
    groups[0]!.history.map(({ rank }) => rank),
    [0, 1, 2],
  );
  t.deepEqual(
    groups.map(({ images }) => images),
    [['app:1'], ['db:2']],
  );
});

test('named group: images by name, aligned on the earliest start', (t) => {
  const web = runOf(['w0', 'w1', 'w2'], { image: 'web:1', group: 'shop', startS: 10.0005 });
  const db = runOf(['d0', 'd1', 'd2'], { image: 'db:1', group: 'shop', startS: 10 });
  // The web server begins half a millisecond after the database, which is not a whole step.
  web.startNs = db.startNs + 500_000n;
  for (const make of [groupsByRun, mergedGroups]) {
    const [group, ...more] = make([web, db]);
    t.deepEqual(more, []);
    t.deepEqual(group!.images, ['db:1', 'web:1']);
    t.deepEqual(keys(group!), ['0|d0', '1|w0', '0|d1', '1|w1', '0|d2', '1|w2']);
    t.deepEqual(
      group!.history.map(({ accessNs }) => accessNs),
      [0, 5e5, 1e6, 15e5, 2e6, 25e5],
    );
  }
});

test('with one run of each image, merged groups are those of Starlight', (t) => {
  const name = fc.constantFrom('a', 'b', 'c', 'd', 'e', 'f', 'g');
  const seq = fc.array(fc.record({ path: name, at: fc.nat(50) }), { maxLength: 12 });
  const run = (image: string) =>
    fc.record({ seq, start: fc.nat(30) }).map(({ seq, start }) => {
      const items = seq.map(({ path, at }) => ({ path, layer: 0, accessNs: at, waitNs: 0 }));
      const tracer = runOf(items, { image, group: 'g' });
      return { ...tracer, startNs: BigInt(start) };
    });
  fc.assert(
    fc.property(run('a:1'), run('b:1'), run('c:1'), (...runs) => {
      const [one] = groupsByRun(runs);
      const [merged] = mergedGroups(runs);
      // Equal times are no order, so those are compared as sets.
      const byTime = (group: OptimizedGroup) =>
        group.history.map((item) => `${item.accessNs} ${itemKey(item)}`).sort();
      t.deepEqual(byTime(merged!), byTime(one!));
      const times = merged!.history.map(({ accessNs }) => accessNs);
      t.deepEqual(
        times,
        [...times].sort((x, y) => x - y),
      );
    }),
  );
});

test('repeated runs: the median position, with how many runs saw the file', (t) => {
  const runs = [
    runOf(['a', 'b', 'c', 'd']),
    runOf(['a', 'c', 'b', 'd'], { startS: 100 }),
    runOf(['d', 'a', 'b', 'c'], { startS: 200 }),
  ];
  // Positions: a 0 0 1, b 1 2 2, c 2 1 3, d 3 3 0.
  t.deepEqual(paths(runs), ['a', 'b', 'c', 'd']);
  const [group] = mergedGroups(runs);
  t.deepEqual(keys(group!), ['0|a', '0|b', '0|c', '0|d']);
  t.deepEqual(group!.runs, [3]);
  t.deepEqual(
    group!.history.map(({ runs }) => runs),
    [3, 3, 3, 3],
  );
});

test('one strange run among three does not move what the others agree on', (t) => {
  const usual = ['a', 'b', 'c', 'd', 'e'];
  const strange = ['x', 'y', 'z', 'e', 'd', 'c', 'b', 'a'];
  const order = paths([runOf(usual), runOf(strange), runOf(usual)]);
  t.deepEqual(order.slice(0, 5), usual);
  t.deepEqual(order.slice(5), ['x', 'y', 'z']);
});

test('what fewer than half of the runs saw comes last, what more of them saw first', (t) => {
  const runs = [
    runOf(['once', 'twice', 'all']),
    runOf(['twice', 'all']),
    runOf(['all', 'half']),
    runOf(['all', 'half']),
    runOf(['half', 'all']),
  ];
  // Of five runs, 'half' was seen by three.
  t.deepEqual(paths(runs), ['all', 'half', 'twice', 'once']);
  const units = mergeUnits(runs);
  t.deepEqual(
    units.map(({ runs, of, late }) => [runs, of, late]),
    [
      [5, 5, false],
      [3, 5, false],
      [2, 5, true],
      [1, 5, true],
    ],
  );
});

test('two runs: what one of them saw keeps its place', (t) => {
  t.deepEqual(paths([runOf(['a', 'only', 'z']), runOf(['a', 'b', 'z'])]), ['a', 'b', 'only', 'z']);
});

test('parts of a large file are ranked apart, in between other files', (t) => {
  const run = runOf([large('big', 0, [5, 0]), { ...large('x', 0.5, []), ranges: undefined! }]);
  delete run.seq[1]!.ranges;
  t.deepEqual(paths([run]), ['big5', 'x', 'big0']);
  const [group] = mergedGroups([run]);
  t.deepEqual(
    group!.history.map(({ path, rank, ranges }) => [
      path,
      rank,
      ranges?.map((range) => range.rank),
    ]),
    [
      ['big', 0, [0, 2]],
      ['x', 1, undefined],
    ],
  );
});

test('a run that could not see the ranges of a file counts for those that others saw', (t) => {
  const blind = runOf(['big', 'x']);
  const seeing = runOf([large('big', 0, [3, 4]), large('opened', 1, [])]);
  t.deepEqual(paths([blind, seeing, blind]), ['big3', 'big4', 'x']);
});

test('hostile ranges are bounded', (t) => {
  const item = { path: 'big', layer: 0, accessNs: 0, waitNs: 0 };
  const ranges = Array.from({ length: 100 }, (_, at) => ({
    offsetBytes: at * 2 ** 40,
    lengthBytes: 2 ** 52,
    accessNs: 0,
    waitNs: 0,
  }));
  t.true(mergeUnits([runOf([{ ...item, ranges }])]).length <= 1_000_000);
});

test('merging does not depend on the order in which runs are given', (t) => {
  const run = fc.shuffledSubarray(['a', 'b', 'c', 'd', 'e', 'f']).map((seq) => runOf(seq));
  fc.assert(
    fc.property(fc.array(run, { minLength: 1, maxLength: 6 }), (runs) => {
      const names = mergeUnits(runs).map(({ path }) => path);
      t.deepEqual(
        mergeUnits([...runs].reverse()).map(({ path }) => path),
        names,
      );
      t.is(
        new Set(names).size,
        new Set(runs.flatMap(({ seq }) => seq.map(({ path }) => path))).size,
      );
    }),
  );
});

test('what comes before another in every run that saw either comes before it', (t) => {
  const run = fc.shuffledSubarray(['a', 'b', 'c', 'd', 'e']);
  fc.assert(
    fc.property(fc.array(run, { minLength: 1, maxLength: 5 }), (lists) => {
      const runs = lists.map((list) => runOf(['first', ...list, 'last']));
      const names = paths(runs).filter((name) => name.length > 1);
      t.deepEqual(names, ['first', 'last']);
      t.is(paths(runs)[0], 'first');
    }),
  );
});

test('sessions end where an image comes again; repeated groups stay interleaved', (t) => {
  const run = (image: string, startS: number, seq: string[]) =>
    runOf(seq, { image, group: 'shop', startS });
  const runs = [
    run('web:1', 0.002, ['w0', 'w1']),
    run('db:1', 0, ['d0', 'd1', 'd2', 'd3']),
    run('db:1', 3600, ['d0', 'd1', 'd2', 'd3']),
    run('web:1', 3600.002, ['w0', 'w1']),
  ];
  t.deepEqual(
    sessionsOf(runs).map((session) => session.map(({ image }) => image)),
    [
      ['db:1', 'web:1'],
      ['db:1', 'web:1'],
    ],
  );
  const [group] = mergedGroups(runs);
  t.deepEqual(group!.runs, [2, 2]);
  t.deepEqual(keys(group!), ['0|d0', '0|d1', '0|d2', '1|w0', '0|d3', '1|w1']);
});

test('in a group, what few runs saw comes last of all images; within one its own order stands', (t) => {
  const at = (path: string, ms: number) => ({ path, layer: 0, accessNs: ms * 1e6, waitNs: 0 });
  const run = (image: string, startS: number, seq: ReturnType<typeof at>[]) =>
    runOf(seq, { image, group: 'g', startS });
  const runs = [
    // a before b in two of three runs, though the median of its times is later.
    run('x:1', 0, [at('a', 10), at('b', 11)]),
    run('x:1', 100, [at('a', 1000), at('b', 1001)]),
    run('x:1', 200, [at('b', 0), at('rare', 1), at('c', 2), at('a', 1005)]),
    run('y:1', 0, [at('late', 5000)]),
  ];
  const [group] = mergedGroups(runs);
  t.deepEqual(keys(group!), ['0|a', '0|b', '1|late', '0|rare', '0|c']);
});

test('a collection is read back as it was written, and Starlight reads its keys', (t) => {
  const runs = [
    runOf(['a', 'caf\xe9', large('big', 3, [2, 0])], {
      group: 'g',
      digest: `sha256:${'1'.repeat(64)}`,
    }),
    runOf(['b'], { group: 'g', image: 'db:2', startS: 1 }),
    runOf(['c']),
  ];
  for (const merge of ['median', 'none'] as const) {
    const collection = TraceCollection.fromTracers(runs, merge);
    const text = JSON.stringify(collection);
    t.deepEqual(TraceCollection.parse(Buffer.from(text), 'file'), collection);
    const { Groups } = JSON.parse(text);
    t.deepEqual(Groups[0].i, ['app:1', 'db:2']);
    t.is(Groups[0].h[0].f, 'a');
    for (const key of ['s', 'a', 'w', 'rank', 'img']) t.is(typeof Groups[0].h[0][key], 'number');
  }
});

test("both forms of Starlight's collections are read", (t) => {
  const older = {
    h: [{ f: 'x', s: 3, a: 5, w: 6, rank: 1, img: 1 }],
    i: ['a:1', { n: 'b', t: '2' }],
  };
  const later = { h: [{ f: 'x', s: 1, a: 5, w: 6, r: 1 }], i: ['a:1', 'b:2'] };
  const text = JSON.stringify({ Groups: [older, later, { h: null, i: null }] });
  const [x, y, z] = TraceCollection.parse(Buffer.from(text), 'file').groups;
  t.deepEqual(x!.images, ['a:1', 'b:2']);
  t.deepEqual(x!.history, [{ path: 'x', layer: 3, accessNs: 5, waitNs: 6, rank: 1, img: 1 }]);
  t.deepEqual(y!.history, [{ path: 'x', layer: 0, accessNs: 5, waitNs: 6, rank: 1, img: 1 }]);
  t.deepEqual(z!.history, []);
});

const BAD: [string, unknown, RegExp][] = [
  ['no groups', {}, /Groups is missing/],
  ['image out of range', { h: [{ f: 'x', rank: 0, img: 2 }], i: ['a', 'b'] }, /img is no whole/],
  ['no image', { h: [{ f: 'x', rank: 0, img: 0 }], i: [] }, /img/],
  ['no rank', { h: [{ f: 'x', img: 0 }], i: ['a'] }, /rank is missing/],
  ['negative rank', { h: [{ f: 'x', rank: -1, img: 0 }], i: ['a'] }, /rank is no whole/],
  ['escape', { h: [{ f: '../x', rank: 1, img: 0 }], i: ['a'] }, /f is refused/],
  ['image a number', { h: [], i: [3] }, /no string/],
  ['range', { h: [{ f: 'x', rank: 1, img: 0, ranges: [[0, -1, 0, 0, 0]] }], i: ['a'] }, /ranges/],
  ['digest', { h: [], i: ['a'], digests: ['x'] }, /digests/],
  ['runs', { h: [], i: ['a'], runs: [-1] }, /runs/],
];

for (const [name, group, message] of BAD) {
  test(`collections refused: ${name}`, (t) => {
    const value = name === 'no groups' ? group : { Groups: [group] };
    t.throws(() => TraceCollection.parse(Buffer.from(JSON.stringify(value)), 'file'), { message });
  });
}
