// What the report's page is made from: a trace and what orders would have made of it, as columns
// that the page's own script reads. Drawing is report-html-chart.ts and its neighbours.
import { bytesOf } from '../image/tree.ts';
import { lastMomentNs } from '../trace/parse.ts';
import { firstSights, type TraceItem, type Tracer } from '../trace/tracer.ts';
import type { Simulation, SimulationOptions } from './simulate.ts';

/** How the run would fare under one order. */
export interface ReportOrder {
  /** For people, such as `tree order`. */
  name: string;
  simulation: Simulation;
}

/** What {@link renderReport} draws. */
export interface ReportInput {
  /** The run that is shown. */
  tracer: Tracer;
  /** In the order to be shown; the page begins with the first against the best. */
  orders?: readonly ReportOrder[];
  /** What the orders were simulated with. */
  line?: SimulationOptions;
  /** How many runs were merged, and in how many of them each file (by path) was seen. */
  runs?: { total: number; byPath: ReadonlyMap<string, number> };
}

/** Points of a curve that only rises: `at` in ns, `bytes` from then on. */
export interface PageCurve {
  at: number[];
  bytes: number[];
}

/** What the page's script gets. Lists of one length have an entry for each file, in order of first access. */
export interface PageData {
  /** Last moment that anything was wanted or waited for, and end of the trace; ns. */
  activeNs: number;
  endNs: number;
  name: string[];
  /** Bytes, -1 where not known. */
  size: number[];
  /** Bytes read of it as far as known, -1 where not. */
  read: number[];
  /** ns; -1 where not known, 0 where it was there before. */
  arrived: number[];
  wanted: number[];
  /** ns during which somebody waited for it. */
  waited: number[];
  /** [from, to, from, to, ...] in ns of these waits, apart and in order. */
  waits: number[][];
  /** Moments of first reads of further ranges, ns. */
  touches: number[][];
  runs: number[] | null;
  runsTotal: number;
  needed: PageCurve;
  arrivedBytes: PageCurve | null;
  received: PageCurve | null;
  orders: PageOrder[];
}

/** One simulated order; times in ns since the request for the bundle. */
export interface PageOrder {
  name: string;
  /** For each file: during how long somebody would wait for it; and the sum. */
  waited: number[];
  total: number;
  /** Time in which the run would stand still. */
  blocked: number;
  /** When the run would have read everything, and the bytes received by then. */
  done: number;
  bytes: number;
}

const utf8 = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true });
// Controls, line separators, and what turns the direction of text: a name must not rewrite the line it stands in.
const UNSEEN = /[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/gu;

/** A path (byte string) for people: with its slash, and with what cannot be seen as escapes. */
export function shownPath(path: string): string {
  const bytes = bytesOf(path);
  try {
    return `/${utf8.decode(bytes)}`.replace(
      UNSEEN,
      (c) => `\\u{${c.codePointAt(0)!.toString(16)}}`,
    );
  } catch {
    // Not UTF-8: ASCII stays, every other byte is shown by its number.
    const shown = [...bytes].map((byte) =>
      byte >= 0x20 && byte < 0x7f
        ? String.fromCharCode(byte)
        : `\\x${byte.toString(16).padStart(2, '0')}`,
    );
    return `/${shown.join('')}`;
  }
}

/** Joins intervals that touch; the result is apart and in order. */
export function joinIntervals(
  intervals: readonly (readonly [number, number])[],
): [number, number][] {
  const joined: [number, number][] = [];
  for (const [from, to] of intervals.toSorted((x, y) => x[0] - y[0])) {
    const last = joined.at(-1);
    if (last !== undefined && from <= last[1]) last[1] = Math.max(last[1], to);
    else joined.push([from, to]);
  }
  return joined;
}

/** Sum of the lengths of intervals that lie apart. */
export function lengthOf(intervals: readonly (readonly [number, number])[]): number {
  return intervals.reduce((sum, [from, to]) => sum + to - from, 0);
}

/** When somebody waited for this file. Readers may wait side by side, so waits are not just added. */
export function waitIntervals(item: TraceItem): [number, number][] {
  const all = [item, ...(item.ranges ?? [])].filter(({ waitNs }) => waitNs > 0);
  return joinIntervals(all.map(({ accessNs, waitNs }) => [accessNs, accessNs + waitNs] as const));
}

/** The curve that rises by `bytes` at `at` for each step. */
function curveOf(steps: { at: number; bytes: number }[]): PageCurve {
  const curve: PageCurve = { at: [], bytes: [] };
  let sum = 0;
  for (const { at, bytes } of steps.toSorted((x, y) => x.at - y.at)) {
    sum += bytes;
    if (curve.at.at(-1) === at) curve.bytes[curve.bytes.length - 1] = sum;
    else {
      curve.at.push(at);
      curve.bytes.push(sum);
    }
  }
  return curve;
}

/**
 * The first item of each content: a content that many files share travels, and is needed, once.
 * Where ranges are known, two files may have read different ones: both stay.
 */
function contentsOf(items: readonly TraceItem[]): TraceItem[] {
  const seen = new Set<string>();
  return items.filter(({ digest, ranges }) => {
    if (digest === undefined || ranges !== undefined) return true;
    if (seen.has(digest)) return false;
    seen.add(digest);
    return true;
  });
}

/** Bytes that reading needed, at the moment they were wanted. */
function neededSteps(item: TraceItem): { at: number; bytes: number }[] {
  if (item.ranges !== undefined) {
    return item.ranges.map(({ accessNs, lengthBytes }) => ({ at: accessNs, bytes: lengthBytes }));
  }
  return item.sizeBytes === undefined ? [] : [{ at: item.accessNs, bytes: item.sizeBytes }];
}

function arrivedCurve(items: readonly TraceItem[]): PageCurve | null {
  const known = items.filter((i) => i.arrivedNs !== undefined && i.sizeBytes !== undefined);
  if (known.length === 0) return null;
  return curveOf(known.map((i) => ({ at: i.arrivedNs!, bytes: i.sizeBytes! })));
}

function receivedCurve(tracer: Tracer): PageCurve | null {
  if (tracer.received === undefined || tracer.received.length === 0) return null;
  const points = tracer.received.toSorted((x, y) => x.atNs - y.atNs);
  // From a foreign hand it may fall; what has come cannot go away again.
  let most = 0;
  const bytes = points.map((point) => {
    most = Math.max(most, point.bytes);
    return most;
  });
  return { at: points.map(({ atNs }) => atNs), bytes };
}

/** Simulated waits of the files, with those of a file's parts side by side counted once. */
function pageOrder({ name, simulation }: ReportOrder, items: readonly TraceItem[]): PageOrder {
  const byPath = new Map<string, [number, number][]>();
  for (const { path, wantedMs, endedMs } of simulation.waits) {
    if (endedMs <= wantedMs) continue;
    const list = byPath.get(path);
    if (list === undefined) byPath.set(path, [[wantedMs, endedMs]]);
    else list.push([wantedMs, endedMs]);
  }
  const ns = (ms: number) => Math.round(ms * 1e6);
  const waited = items.map(({ path }) => ns(lengthOf(joinIntervals(byPath.get(path) ?? []))));
  return {
    name,
    waited,
    total: waited.reduce((sum, one) => sum + one, 0),
    blocked: ns(simulation.blockedMs),
    done: ns(simulation.doneMs),
    bytes: simulation.bytesWhenDone,
  };
}

function readBytes(item: TraceItem): number {
  if (item.ranges === undefined) return item.sizeBytes ?? -1;
  return item.ranges.reduce((sum, { lengthBytes }) => sum + lengthBytes, 0);
}

/** Columns for the page's script. */
export function pageData(input: ReportInput): PageData {
  const { tracer, orders = [], runs } = input;
  const items = firstSights(tracer);
  const contents = contentsOf(items);
  const waits = items.map(waitIntervals);
  const activeNs = lastMomentNs(items);
  return {
    activeNs,
    endNs: Math.max(activeNs, Number(tracer.endNs - tracer.startNs)),
    name: items.map(({ path }) => shownPath(path)),
    size: items.map(({ sizeBytes }) => sizeBytes ?? -1),
    read: items.map(readBytes),
    arrived: items.map(({ arrivedNs }) => arrivedNs ?? -1),
    wanted: items.map(({ accessNs }) => accessNs),
    waited: waits.map(lengthOf),
    waits: waits.map((list) => list.flat()),
    touches: items.map(({ ranges = [] }) => ranges.map(({ accessNs }) => accessNs)),
    runs: runs === undefined ? null : items.map(({ path }) => runs.byPath.get(path) ?? 0),
    runsTotal: runs?.total ?? 0,
    needed: curveOf(contents.flatMap(neededSteps)),
    arrivedBytes: arrivedCurve(contents),
    received: receivedCurve(tracer),
    orders: orders.map((order) => pageOrder(order, items)),
  };
}
