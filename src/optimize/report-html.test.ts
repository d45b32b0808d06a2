// What the report's page is made from, its text, and that nothing of a trace becomes markup. How it looks
// and works in a browser is test/browser/.
import { createHash } from 'node:crypto';
import test from 'ava';
import fc from 'fast-check';
import { fromText } from '../image/tree.ts';
import type { TraceItem, Tracer } from '../trace/tracer.ts';
import { imageFiles } from './match.ts';
import { type ReportInput, renderReport, reportInput, SCRIPT } from './report-html.ts';
import {
  joinIntervals,
  lengthOf,
  type PageData,
  pageData,
  shownPath,
  waitIntervals,
} from './report-html-data.ts';
import { cutMiddle, formatNs, formatSize, formatTick, ticksOf } from './report-html-scale.ts';
import { STYLE } from './report-html-style.ts';
import type { Simulation } from './simulate.ts';

const MS = 1_000_000;

function item(path: string, accessNs: number, more: Partial<TraceItem> = {}): TraceItem {
  return { path, layer: 0, accessNs, waitNs: 0, ...more };
}

function tracer(seq: TraceItem[], more: Partial<Tracer> = {}): Tracer {
  const startNs = 1_700_000_000_000_000_000n;
  return {
    group: 'default',
    image: 'a:1',
    startNs,
    endNs: startNs + 10_000_000_000n,
    seq,
    ...more,
  };
}

/** The data that a page carries, as a browser reads it. */
function dataIn(page: string): PageData {
  const json = /<script type="application\/json" id="data">(.*?)<\/script>/s.exec(page)?.[1];
  return JSON.parse(json ?? '') as PageData;
}

test('columns stand in order of first access, and a second sight of a file says nothing', (t) => {
  const data = pageData({
    tracer: tracer([
      item('late', 30 * MS, { waitNs: 2 * MS }),
      item('early', 10 * MS, { sizeBytes: 100, arrivedNs: 5 * MS }),
      item('early', 20 * MS, { waitNs: 99 * MS }),
    ]),
  });
  t.deepEqual(data.name, ['/early', '/late']);
  t.deepEqual(data.wanted, [10 * MS, 30 * MS]);
  t.deepEqual(data.waited, [0, 2 * MS]);
  t.deepEqual(data.size, [100, -1]);
  t.deepEqual(data.arrived, [5 * MS, -1]);
  t.is(data.activeNs, 32 * MS);
  t.is(data.endNs, 10_000 * MS);
});

test('waits side by side are counted once', (t) => {
  const range = (accessNs: number, waitNs: number) => ({
    offsetBytes: 0,
    lengthBytes: 10,
    accessNs,
    waitNs,
  });
  const large = item('f', 0, { waitNs: 5, ranges: [range(3, 4), range(20, 5), range(21, 1)] });
  t.deepEqual(waitIntervals(large), [
    [0, 7],
    [20, 25],
  ]);
  t.is(pageData({ tracer: tracer([large]) }).waited[0], 12);
});

test('joined intervals cover what the given ones cover, apart and in order', (t) => {
  const interval = fc
    .tuple(fc.nat(60), fc.nat(8))
    .map(([from, long]) => [from, from + long] as const);
  fc.assert(
    fc.property(fc.array(interval), (intervals) => {
      const joined = joinIntervals(intervals);
      const covers = (list: readonly (readonly [number, number])[], at: number) =>
        list.some(([from, to]) => from <= at && at < to);
      const moments = Array.from({ length: 70 }, (_, at) => at);
      const covered = moments.filter((at) => covers(intervals, at));
      t.deepEqual(
        moments.filter((at) => covers(joined, at)),
        covered,
      );
      t.is(lengthOf(joined), covered.length);
      t.true(joined.every(([from], i) => i === 0 || joined[i - 1]![1] < from));
    }),
  );
});

test('bytes needed: ranges where they are known, a content that files share once', (t) => {
  const digest = 'ab'.repeat(32);
  const ranges = [
    { offsetBytes: 0, lengthBytes: 7, accessNs: 40, waitNs: 0 },
    { offsetBytes: 900, lengthBytes: 5, accessNs: 60, waitNs: 0 },
  ];
  const data = pageData({
    tracer: tracer([
      item('one', 10, { sizeBytes: 100, digest, arrivedNs: 30 }),
      item('same', 20, { sizeBytes: 100, digest, arrivedNs: 30 }),
      item('large', 30, { sizeBytes: 5_000_000, ranges }),
      item('unknown', 50),
    ]),
  });
  t.deepEqual(data.needed, { at: [10, 40, 60], bytes: [100, 107, 112] });
  t.deepEqual(data.arrivedBytes, { at: [30], bytes: [100] });
  t.deepEqual(data.read, [100, 100, 12, -1]);
  t.is(data.received, null);
});

test('a received count that falls, as only a foreign file has it, is drawn as standing still', (t) => {
  const received = [
    { atNs: 20, bytes: 50 },
    { atNs: 10, bytes: 80 },
    { atNs: 30, bytes: 90 },
  ];
  const data = pageData({ tracer: tracer([item('a', 1)], { received }) });
  t.deepEqual(data.received, { at: [10, 20, 30], bytes: [80, 80, 90] });
});

/** A simulation with these waits: [path, wanted, ended] in ms. */
function simulated(doneMs: number, ...waits: [string, number, number][]): Simulation {
  const summedWaitMs = waits.reduce((sum, [, wantedMs, endedMs]) => sum + endedMs - wantedMs, 0);
  return {
    waits: waits.map(([path, wantedMs, endedMs]) => ({
      path,
      accessNs: 0,
      waitNs: 0,
      wantedMs,
      endedMs,
    })),
    startedMs: 0,
    doneMs,
    lastByteMs: doneMs,
    blockedMs: summedWaitMs,
    summedWaitMs,
    bytesWhenDone: 1000,
    fetched: 0,
  };
}

test('simulated waits and runs are found by path, parts that wait side by side counted once', (t) => {
  const simulation = simulated(20, ['a', 1, 5], ['c', 0, 4], ['c', 2, 7], ['b', 3, 3]);
  const data = pageData({
    tracer: tracer([item('a', 1), item('b', 2), item('c', 3)]),
    orders: [{ name: 'tree order', simulation }],
    runs: { total: 3, byPath: new Map([['b', 2]]) },
  });
  t.deepEqual(data.orders, [
    {
      name: 'tree order',
      waited: [4 * MS, 0, 7 * MS],
      total: 11 * MS,
      blocked: 13 * MS,
      done: 20 * MS,
      bytes: 1000,
    },
  ]);
  t.deepEqual(data.runs, [0, 2, 0]);
});

test('the page says what the orders save', (t) => {
  const input: ReportInput = {
    tracer: tracer([item('a', 1), item('b', 2)]),
    line: { bytesPerSecond: 12.5e6, roundTripMs: 150, outOfOrder: false },
    orders: [
      { name: 'tree order', simulation: simulated(900, ['a', 0, 400]) },
      { name: 'merged order', simulation: simulated(600, ['a', 0, 100]) },
    ],
  };
  const words = (page: string) => page.replace(/<\/?strong>/g, '');
  const page = words(renderReport(input));
  t.regex(
    page,
    /100 Mbit\/s with a round trip of 150 ms, without fetching out of order, in merged/,
  );
  t.regex(
    page,
    /in merged order the run has read everything after 600 ms, having stood still for 100 ms; in tree order the run has read everything after 900 ms/,
  );
  const worse = words(renderReport({ ...input, orders: input.orders!.toReversed() }));
  t.regex(worse, /in merged order the run has read .*; no other order is faster/);
  t.regex(renderReport({ tracer: input.tracer }), /No other order was simulated/);
});

test('a page from all traces at hand: runs of its own image are counted, orders are simulated', (t) => {
  const digest = `sha256:${'ab'.repeat(32)}`;
  const run = tracer([item('a', 1), item('b', 2)], { digest });
  const others = [
    run,
    tracer([item('b', 1), item('b', 2)], { digest }),
    tracer([item('b', 1)], { image: 'other:1' }),
  ];
  const alone = reportInput(run, others);
  t.deepEqual(alone.runs, {
    total: 2,
    byPath: new Map([
      ['a', 1],
      ['b', 2],
    ]),
  });
  t.is(alone.orders, undefined);
  t.is(reportInput(run, []).runs, undefined);
  const files = ['a', 'b', 'c'].map((path) => ({
    path,
    sizeBytes: 900_000,
    digest: path.repeat(64),
  }));
  const { orders, line } = reportInput(run, others, {
    target: { digest, image: 'a:1', files: imageFiles(files.reverse()) },
    layout: { headerBytes: 1000, ratio: 0.5 },
    line: { bytesPerSecond: 1e6, roundTripMs: 10 },
  });
  t.is(line?.roundTripMs, 10);
  t.deepEqual(
    orders?.map(({ name }) => name),
    ['tree order', 'size order', 'recorded order', 'merged order'],
  );
  // The tree begins with what nobody reads.
  t.true(orders![3]!.simulation.doneMs < orders![0]!.simulation.doneMs);
});

test('an empty trace, lost events and a recovered one are said in words', (t) => {
  const page = renderReport({ tracer: tracer([], { lost: 1, recovered: true }) });
  t.regex(page, /Nothing was read in this run/);
  t.regex(page, /1 event could not be recorded/);
  t.regex(page, /The recorder was ended before it had finished/);
  t.notRegex(page.replace(SCRIPT, ''), /NaN|undefined|Infinity/);
});

test('hostile names become neither markup nor script', (t) => {
  const evil = '</script><script>alert(1)</script><!--<img src=x onerror=alert(2)>&amp;"\'';
  const page = renderReport({
    tracer: tracer([item(fromText(evil), 1)], { image: evil, group: evil, platform: evil }),
    orders: [{ name: evil, simulation: simulated(1) }],
  });
  t.is(page.match(/<script/g)?.length, 2);
  t.is(page.match(/<\/script>/g)?.length, 2);
  t.notRegex(page, /<img|<!--/);
  t.is(dataIn(page).name[0], `/${evil}`);
});

test('any path of bytes comes to the page, and shows no character that cannot be seen', (t) => {
  const byte = fc.integer({ min: 1, max: 255 }).map((code) => String.fromCharCode(code));
  const path = fc.string({ unit: byte, minLength: 1 });
  fc.assert(
    fc.property(fc.oneof(path, fc.string({ unit: 'binary' }).map(fromText)), (bytes) => {
      const shown = shownPath(bytes);
      t.notRegex(shown, /[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/u);
      const page = renderReport({ tracer: tracer([item(bytes, 1)]) });
      t.is(dataIn(page).name[0], shown);
      t.is(page.match(/<script/g)?.length, 2);
    }),
    { numRuns: 60 },
  );
  t.is(shownPath('usr/caf\xc3\xa9'), '/usr/café');
  t.is(shownPath('usr/caf\xe9\n'), '/usr/caf\\xe9\\x0a');
  t.is(shownPath(fromText('a\u202egpj.exe')), '/a\\u{202e}gpj.exe');
});

test('the policy allows this script and style alone, and the page names nothing else', (t) => {
  const page = renderReport({ tracer: tracer([item('a', 1)]) });
  const hash = (source: string) => createHash('sha256').update(source).digest('base64');
  const script = /<script>(.*?)<\/script>/s.exec(page)?.[1];
  const style = /<style>(.*?)<\/style>/s.exec(page)?.[1];
  t.is(script, SCRIPT);
  t.is(style, STYLE);
  const policy = /http-equiv="Content-Security-Policy" content="([^"]*)"/.exec(page)?.[1] ?? '';
  t.true(policy.includes(`script-src 'sha256-${hash(SCRIPT)}'`));
  t.true(policy.includes(`style-src 'sha256-${hash(STYLE)}'`));
  t.true(policy.startsWith("default-src 'none'"));
  t.notRegex(SCRIPT + STYLE, /<\/|<!--|@import|url\(|innerHTML|eval\(|import\(/);
  // The name of SVG, which is never fetched, is the only address.
  t.deepEqual(page.match(/https?:\/\/[^'"\s]+/g), ['http://www.w3.org/2000/svg']);
});

test('200,000 files make a page in a moment', (t) => {
  const seq = Array.from({ length: 200_000 }, (_, i) =>
    item(`usr/lib/some/folder/${i}`, i * 1000, { waitNs: i % 3, sizeBytes: i, arrivedNs: i * 900 }),
  );
  const began = process.cpuUsage();
  const page = renderReport({ tracer: tracer(seq) });
  const { user, system } = process.cpuUsage(began);
  t.true(user + system < 10e6, `${user + system} us of a processor`);
  t.true(page.length < 200_000 * 130, `${page.length} characters`);
});

test('numbers as people read them', (t) => {
  t.deepEqual(
    [0, 850, 999.6, 12_340, 999_600, 1_240_000_000, 59_960_000_000, 125e9, 12_000e9].map(formatNs),
    ['0 s', '850 ns', '1 µs', '12.3 µs', '1 ms', '1.24 s', '1 min 0 s', '2 min 5 s', '3 h 20 min'],
  );
  t.deepEqual([0, 999, 999.9, 1_400_000, 123_456].map(formatSize), [
    '0 B',
    '999 B',
    '1.0 kB',
    '1.4 MB',
    '123 kB',
  ]);
  t.deepEqual(
    [0, 5e8, 2e9].map((ns) => formatTick(ns, 5e8)),
    ['0.0 s', '0.5 s', '2.0 s'],
  );
  t.deepEqual(
    [0, 5e6].map((ns) => formatTick(ns, 5e6)),
    ['0 ms', '5 ms'],
  );
  t.is(cutMiddle('/usr/lib/x86_64-linux-gnu/libc.so.6', 20), '/usr/l…gnu/libc.so.6');
  t.is(cutMiddle('/short', 20), '/short');
  // Characters beyond the basic plane are not torn.
  t.true(cutMiddle('😀'.repeat(30), 11).isWellFormed());
});

test('ticks lie within the axis, evenly, and are about as many as asked for', (t) => {
  t.deepEqual(ticksOf(0, 10, 5), [0, 2, 4, 6, 8, 10]);
  t.deepEqual(ticksOf(0, 0, 5), [0]);
  const span = fc.double({ min: 1e-3, max: 1e15, noNaN: true });
  fc.assert(
    fc.property(
      fc.double({ min: 0, max: 1e15, noNaN: true }),
      span,
      fc.integer({ min: 1, max: 12 }),
      (from, long, count) => {
        // Below this share of where it starts, a span has no numbers between its ends.
        fc.pre(long > from * 1e-6);
        const ticks = ticksOf(from, from + long, count);
        t.true(ticks.length <= count + 1);
        t.true(ticks.every((tick) => tick >= from - long * 1e-6));
        t.true(ticks.every((tick) => tick <= (from + long) * (1 + 1e-9)));
        const steps = ticks.slice(1).map((tick, i) => tick - ticks[i]!);
        for (const step of steps) t.true(Math.abs(step - steps[0]!) <= steps[0]! * 1e-3);
      },
    ),
  );
});
