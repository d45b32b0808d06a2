// Predictions: the line against measured times, small cases by hand, and what holds for all cases.
import test from 'ava';
import fc from 'fast-check';
import { FirstlightError } from '../errors/errors.ts';
import { TRACE_PART_BYTES as PART } from '../trace/tracer.ts';
import { type Layout, layOut } from './layout.ts';
import { Clock, Line } from './line.ts';
import { imageFiles } from './match.ts';
import { bytesNeeded, simulate, simulateOrders, wantsOf, workBeforeMs } from './simulate.ts';
import { filesOf, large, runOf } from './testing.ts';

/** Seconds until `bytes` are there over 150 ms and 100 Mbit/s, connections and requests included. */
function transferS(bytes: number, connections: number, warm: boolean): number {
  const clock = new Clock();
  const line = new Line(clock, { bytesPerSecond: 12.5e6, roundTripMs: 150 }, bytes);
  let lastMs = 0;
  for (let i = 0; i < connections; i++) {
    const connection = line.connect(warm);
    clock.after(warm ? 75 : 225, () => {
      connection.send(bytes / connections, () => {
        lastMs = clock.nowMs;
      });
    });
  }
  clock.run();
  return lastMs / 1000;
}

// Measured on Linux 6.18 over a relay with tail drop, cubic, initial window 10.
const MEASURED: [number, number, boolean, number][] = [
  [0.3e6, 1, false, 1.01],
  [1e6, 1, false, 1.27],
  [3e6, 1, false, 1.51],
  [6e6, 1, false, 1.76],
  [0.3e6, 4, false, 0.7],
  [1e6, 4, false, 0.97],
  [3e6, 4, false, 1.21],
  [6e6, 4, false, 1.46],
  [6e6, 8, false, 1.31],
  [0.3e6, 1, true, 0.18],
  [1e6, 1, true, 0.23],
  [3e6, 1, true, 0.4],
  [6e6, 1, true, 0.71],
];

for (const [bytes, connections, warm, seconds] of MEASURED) {
  const name = `${bytes / 1e6} MB over ${connections} ${warm ? 'warm' : 'cold'} connections`;
  test(`the line is within 13% of what was measured: ${name}`, (t) => {
    const ratio = transferS(bytes, connections, warm) / seconds;
    t.true(Math.abs(ratio - 1) <= 0.13);
  });
}

test('a line that is shared brings no more than its bandwidth, and brings all', (t) => {
  const sends = fc.array(fc.tuple(fc.integer({ min: 1, max: 200_000 }), fc.nat(2000)), {
    minLength: 1,
    maxLength: 8,
  });
  fc.assert(
    fc.property(sends, fc.nat(300), fc.boolean(), (list, roundTripMs, warm) => {
      const clock = new Clock();
      const line = new Line(clock, { bytesPerSecond: 1e6, roundTripMs }, 1e6);
      const done: number[] = [];
      for (const [bytes, atMs] of list) {
        const connection = line.connect(warm);
        clock.at(atMs, () => connection.send(bytes, () => done.push(clock.nowMs)));
      }
      clock.run();
      t.is(done.length, list.length);
      const first = Math.min(...list.map(([, at]) => at));
      const total = list.reduce((sum, [bytes]) => sum + bytes, 0);
      t.true(Math.max(...done) + 1e-6 >= first + total / 1000 + roundTripMs / 2);
    }),
  );
});

test('a line that cannot be', (t) => {
  for (const [bytesPerSecond, roundTripMs] of [
    [0, 1],
    [Number.NaN, 1],
    [Number.POSITIVE_INFINITY, 1],
    [1e6, -1],
    [1e6, Number.NaN],
  ] as const) {
    const layout = layOut(filesOf({ a: 'a' }), 'tree', { headerBytes: 1, ratio: 1 });
    t.throws(() => simulate(layout, [], { bytesPerSecond, roundTripMs }), {
      instanceOf: FirstlightError,
    });
  }
});

/** A bundle of frames of 1,000 bytes, one for each name. */
function framed(names: string[]): Layout {
  return {
    headerBytes: 1000,
    frames: names.map(() => 1000),
    framesOf: (path) => (names.includes(path) ? [names.indexOf(path)] : []),
  };
}

/** A byte a millisecond, no round trip: the header takes a second, and so does each frame. */
const slow = { bytesPerSecond: 1000, roundTripMs: 0, warm: true };

test('by hand: in order, nothing is fetched beside the stream', (t) => {
  const wants = wantsOf(runOf(['a', 'b', 'c']));
  const result = simulate(framed(['a', 'b', 'c']), wants, { ...slow, outOfOrder: false });
  t.is(result.startedMs, 1000);
  t.deepEqual(
    result.waits.map(({ path, wantedMs, endedMs }) => [
      path,
      Math.round(wantedMs),
      Math.round(endedMs),
    ]),
    [
      ['a', 1000, 2000],
      ['b', 2001, 3000],
      ['c', 3001, 4000],
    ],
  );
  t.is(Math.round(result.doneMs), 4000);
  t.is(Math.round(result.blockedMs), 1000 + 999 + 999);
  t.is(result.bytesWhenDone, 4000);
});

test('by hand: against the order, the stream has to end first unless it is overtaken', (t) => {
  const wants = wantsOf(runOf(['c', 'b', 'a']));
  const layout = framed(['a', 'b', 'c', 'd', 'e', 'f']);
  const bound = simulate(layout, wants, { ...slow, outOfOrder: false });
  // c comes last; the other two are there when they are wanted, a millisecond apart.
  t.is(Math.round(bound.doneMs), 4002);
  const late = wantsOf(runOf(['f']));
  const slowly = simulate(layout, late, { ...slow, outOfOrder: false });
  t.is(Math.round(slowly.doneMs), 7000);
  const fetched = simulate(layout, late, slow);
  t.is(fetched.fetched, 1);
  // It shares the line with the stream: about two seconds after the header.
  t.true(fetched.doneMs > 2000 && fetched.doneMs <= 3100, `${fetched.doneMs}`);
});

test('by hand: a fetch takes a round trip, and one more where its connection is new', (t) => {
  const names = Array.from({ length: 30 }, (_, at) => `f${at}`);
  const layout = { ...framed(names), headerBytes: 1, frames: names.map(() => 100) };
  // Windows never fill with so little, and the fetched frame has half of the line for itself.
  const fetch = (warm: boolean) => {
    const line = { bytesPerSecond: 1000, roundTripMs: 400, warm };
    const [wait] = simulate(layout, wantsOf(runOf(['f29'])), line).waits;
    return wait!.endedMs - wait!.wantedMs;
  };
  t.true(fetch(true) >= 500 && fetch(true) <= 700, `${fetch(true)}`);
  t.true(Math.abs(fetch(false) - fetch(true) - 400) <= 100, `${fetch(false)}`);
});

test('waits of the recorded run are taken out, its own work is kept', (t) => {
  const want = (accessNs: number, waitNs: number) => ({ path: 'x', accessNs, waitNs });
  // Work 10 ms, wait 50, work 20, wait 5 in one thread and, begun within it, 15 in another.
  const wants = [want(10e6, 50e6), want(80e6, 5e6), want(83e6, 15e6), want(100e6, 0)];
  t.deepEqual(workBeforeMs(wants), [10, 30, 30, 32]);
});

test('work between wants passes whatever arrives', (t) => {
  const run = runOf(['a', { path: 'b', layer: 0, accessNs: 5e9, waitNs: 0 }]);
  const result = simulate(framed(['a', 'b']), wantsOf(run), slow);
  t.deepEqual(
    result.waits.map(({ wantedMs, endedMs }) => [Math.round(wantedMs), Math.round(endedMs)]),
    [
      [1000, 2000],
      [7000, 7000],
    ],
  );
});

test('files that are not in the bundle are not waited for', (t) => {
  const files = filesOf({ a: 'a', b: 'b' });
  const have = (content: string) => content === 'a';
  const layout = layOut(files, 'tree', { headerBytes: 10, ratio: 1, have });
  t.deepEqual(layout.framesOf('a'), []);
  t.deepEqual(layout.framesOf('missing'), []);
  const { blockedMs } = simulate(layout, wantsOf(runOf(['a', 'missing'])), slow);
  t.is(blockedMs, 0);
});

/** An image of 400 files of 100 KiB, and runs that read 40 of them from its end. */
function example() {
  const list = Array.from({ length: 400 }, (_, at) => ({
    path: `f${String(at).padStart(3, '0')}`,
    digest: `d${at}`,
    sizeBytes: 100 << 10,
  }));
  list[5]!.sizeBytes = 20 * PART;
  const read = Array.from({ length: 40 }, (_, at) => `f${399 - 5 * at}`);
  const tracer = runOf([...read.slice(0, 20), large('f005', 20.5, [19, 3]), ...read.slice(20)]);
  tracer.seq.sort((x, y) => x.accessNs - y.accessNs);
  return { files: imageFiles(list), tracer };
}

test('orders: what was recorded beats the tree, with and without fetching', (t) => {
  const { files, tracer } = example();
  const target = { digest: `sha256:${'1'.repeat(64)}`, image: 'app:1', files };
  for (const outOfOrder of [false, true]) {
    const { tree, size, recorded, merged } = simulateOrders({
      tracer,
      tracers: [tracer, runOf(['f001', ...tracer.seq.map(({ path }) => path)])],
      target,
      layout: { headerBytes: 50_000, ratio: 0.4 },
      line: { bytesPerSecond: 12.5e6, roundTripMs: 50, outOfOrder },
    });
    for (const other of [tree, size]) {
      t.true(recorded.doneMs < other.doneMs);
      t.true(recorded.bytesWhenDone < other.bytesWhenDone);
    }
    t.true(merged.doneMs < tree.doneMs);
    t.true(recorded.bytesWhenDone < 0.25 * tree.bytesWhenDone || outOfOrder);
    t.is(recorded.waits.length, 42);
  }
});

test('bytes needed: whole files, parts of large ones, shared contents once', (t) => {
  const files = filesOf({
    a: ['A', 10],
    b: ['A', 10],
    big: ['B', 2 * PART + 7],
    c: ['C', 2 * PART],
  });
  t.is(bytesNeeded(runOf(['a', 'b', 'missing']), files), 10);
  t.is(bytesNeeded(runOf([large('big', 0, [2, 0, 9])]), files), PART + 7);
  t.is(bytesNeeded(runOf(['c', large('c', 1, [1])]), files), 2 * PART);
});

test('whatever the order and the run: all waits end, time and bytes add up', (t) => {
  const names = Array.from({ length: 12 }, (_, at) => `f${at}`);
  const files = imageFiles(
    names.map((path, at) => ({ path, digest: `d${at}`, sizeBytes: 50_000 * (at + 1) })),
  );
  const item = fc.record({
    path: fc.constantFrom(...names, 'missing'),
    layer: fc.constant(0),
    accessNs: fc.nat(3e9),
    waitNs: fc.nat(1e9),
  });
  const line = fc.record({
    bytesPerSecond: fc.integer({ min: 50_000, max: 1e7 }),
    roundTripMs: fc.nat(300),
    outOfOrder: fc.boolean(),
    warm: fc.boolean(),
  });
  fc.assert(
    fc.property(
      fc.array(item, { maxLength: 15 }),
      fc.constantFrom('tree', 'size'),
      line,
      (seq, order, on) => {
        const layout = layOut(files, order as 'tree' | 'size', { headerBytes: 5000, ratio: 0.5 });
        const wants = wantsOf(runOf(seq.sort((x, y) => x.accessNs - y.accessNs)));
        const result = simulate(layout, wants, on);
        t.is(result.waits.length, wants.length);
        for (const { wantedMs, endedMs } of result.waits) {
          t.true(endedMs >= wantedMs && wantedMs >= result.startedMs);
          t.true(endedMs <= result.doneMs + 1e-6);
        }
        t.true(result.summedWaitMs + 1e-6 >= result.blockedMs);
        const workMs = workBeforeMs(wants).at(-1) ?? 0;
        t.true(Math.abs(result.doneMs - result.startedMs - workMs - result.blockedMs) < 1e-3);
        const all = layout.frames.reduce((sum, bytes) => sum + bytes, 5000);
        t.true(on.outOfOrder || result.bytesWhenDone <= all);
        t.true(result.lastByteMs + 1e-6 >= (all / on.bytesPerSecond) * 1000);
        t.deepEqual(simulate(layout, wants, on), result);
      },
    ),
    { numRuns: 200 },
  );
});
