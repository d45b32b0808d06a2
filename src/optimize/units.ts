// What is ranked: a file as a whole, or one part (TRACE_PART_BYTES) of a large one. Here runs become
// sequences of such units, and the sequences of one image's runs become one order by median
// position. Groups of images are merge.ts.
import { byAccessTime, TRACE_PART_BYTES, type Tracer } from '../trace/tracer.ts';

/** Part number of a file that is ranked as a whole. */
export const WHOLE = -1;
/** Parts that one range can name (64 GiB), and sights of all runs; what lies beyond is not ranked. */
const RANGE_PARTS_MAX = 1 << 16;
const SIGHTS_MAX = 1_000_000;

/** One sight of a unit in a run. */
interface Sight {
  path: string;
  part: number;
  layer: number;
  accessNs: number;
  waitNs: number;
}

/** A unit in the order that runs of an image have together. */
export interface Unit {
  path: string;
  /** Part number within the file, or {@link WHOLE}. */
  part: number;
  layer: number;
  /** Medians over the runs that saw it. */
  accessNs: number;
  waitNs: number;
  /** How many runs saw it, and of how many. */
  runs: number;
  of: number;
  /** Fewer than half of the runs saw it: it stands behind all that more saw. */
  late: boolean;
}

/** First and last part of a range of bytes. */
export function partsOfRange(offsetBytes: number, lengthBytes: number): [number, number] {
  const first = Math.floor(offsetBytes / TRACE_PART_BYTES);
  const last = Math.floor((offsetBytes + Math.max(lengthBytes, 1) - 1) / TRACE_PART_BYTES);
  return [first, Math.min(last, first + RANGE_PARTS_MAX - 1)];
}

/** A run as at most `limit` sights in order, repeated ones too; `shift` is added to each time. */
function sightsOf(tracer: Tracer, shift: number, limit: number): Sight[] {
  const sights: Sight[] = [];
  for (const { path, layer, accessNs, waitNs, ranges } of tracer.seq) {
    if (ranges === undefined) {
      sights.push({ path, part: WHOLE, layer, accessNs: accessNs + shift, waitNs });
    }
    for (const range of ranges ?? []) {
      if (range.lengthBytes === 0) continue;
      const [first, last] = partsOfRange(range.offsetBytes, range.lengthBytes);
      for (let part = first; part <= last && sights.length < limit; part++) {
        sights.push({ path, part, layer, accessNs: range.accessNs + shift, waitNs: range.waitNs });
      }
    }
    if (sights.length >= limit) break;
  }
  return sights.sort(byAccessTime);
}

/** Parts of each file that any run knows by ranges, ascending. */
function knownParts(runs: readonly Sight[][]): Map<string, number[]> {
  const sets = new Map<string, Set<number>>();
  for (const { path, part } of runs.flat()) {
    if (part === WHOLE) continue;
    const set = sets.get(path);
    if (set === undefined) sets.set(path, new Set([part]));
    else set.add(part);
  }
  return new Map([...sets].map(([path, set]) => [path, [...set].sort((x, y) => x - y)]));
}

/**
 * The first sight of each unit. A file that this run saw as a whole and others in parts counts as
 * those parts, read at that moment: the run that had it complete could not see which.
 */
function firstUnits(sights: Sight[], known: Map<string, number[]>): Map<string, Sight> {
  const units = new Map<string, Sight>();
  for (const sight of sights) {
    const parts = sight.part === WHOLE ? (known.get(sight.path) ?? [WHOLE]) : [sight.part];
    for (const part of parts) {
      // Most units are whole files: their key is the path itself. No path holds a NUL.
      const key = part === WHOLE ? sight.path : `${part}\0${sight.path}`;
      if (!units.has(key)) units.set(key, part === sight.part ? sight : { ...sight, part });
    }
  }
  return units;
}

/** Median of numbers in ascending order, `missing` infinities thought behind them. */
function medianOf(sorted: readonly number[], missing: number): number {
  const count = sorted.length + missing;
  const low = sorted[Math.ceil(count / 2) - 1] ?? Number.POSITIVE_INFINITY;
  const high = sorted[Math.floor(count / 2)];
  return high === undefined ? low : (low + high) / 2;
}

function ascending(x: number, y: number): number {
  return x - y;
}

function compare<T>(x: T, y: T): number {
  return x < y ? -1 : x > y ? 1 : 0;
}

/**
 * One order for runs of one image. The rank of a unit is the median of its positions in the runs; a
 * run that did not see it counts as an infinite position, so what fewer than half of the runs saw
 * comes last, what more of them saw first among those. With an even number of runs, the median is
 * the mean of the middle two, or the lower one where the other is infinite.
 * @param shifts  ns to add to the times of each run
 */
export function mergeUnits(
  runs: readonly Tracer[],
  shifts: readonly number[] = runs.map(() => 0),
): Unit[] {
  const limit = Math.floor(SIGHTS_MAX / Math.max(1, runs.length));
  const sights = runs.map((run, at) => sightsOf(run, shifts[at]!, limit));
  const known = knownParts(sights);
  const seen = new Map<string, { first: Sight; at: number[]; access: number[]; wait: number[] }>();
  for (const run of sights) {
    let position = 0;
    for (const [key, sight] of firstUnits(run, known)) {
      let unit = seen.get(key);
      if (unit === undefined) {
        unit = { first: sight, at: [], access: [], wait: [] };
        seen.set(key, unit);
      }
      unit.at.push(position++);
      unit.access.push(sight.accessNs);
      unit.wait.push(sight.waitNs);
    }
  }
  const units = [...seen.values()].map(({ first, at, access, wait }) => {
    at.sort(ascending);
    const rank = medianOf(at, runs.length - at.length);
    return {
      path: first.path,
      part: first.part,
      layer: first.layer,
      accessNs: Math.round(medianOf(access.sort(ascending), 0)),
      waitNs: Math.round(medianOf(wait.sort(ascending), 0)),
      runs: at.length,
      of: runs.length,
      late: rank === Number.POSITIVE_INFINITY,
      rank,
      seenRank: medianOf(at, 0),
    };
  });
  units.sort((x, y) => {
    const byRank = x.late === y.late ? (x.late ? 0 : x.rank - y.rank) : x.late ? 1 : -1;
    return (
      byRank ||
      y.runs - x.runs ||
      x.seenRank - y.seenRank ||
      compare(x.path, y.path) ||
      x.part - y.part
    );
  });
  return units.map(({ rank: _, seenRank: __, ...unit }) => unit);
}
