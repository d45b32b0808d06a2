// Merged groups: repeated runs of an image as one order (units.ts), and the images of a named group
// interleaved by time. Which of it a bundle uses is ranks.ts.
import { DEFAULT_GROUP, imageKey, TRACE_PART_BYTES, type Tracer } from '../trace/tracer.ts';
import {
  byGroup,
  earliest,
  imagesOf,
  itemKey,
  type OptimizedGroup,
  type OptimizedTraceItem,
  shiftNs,
} from './group.ts';
import { mergeUnits, type Unit, WHOLE } from './units.ts';

/**
 * Runs of a group in sessions: the images of an application that were started together. A session
 * ends where an image comes again.
 */
export function sessionsOf(tracers: readonly Tracer[]): Tracer[][] {
  const sessions: Tracer[][] = [];
  let images = new Set<string>();
  for (const tracer of [...tracers].sort((x, y) => (x.startNs < y.startNs ? -1 : 1))) {
    const image = imageKey(tracer);
    if (sessions.length === 0 || images.has(image)) {
      sessions.push([]);
      images = new Set();
    }
    images.add(image);
    sessions.at(-1)!.push(tracer);
  }
  return sessions;
}

interface GroupUnit extends Unit {
  img: number;
}

/**
 * The units of several images in one order. Within an image the order of its runs stands; between
 * images the median time since the session's start decides.
 */
function interleave(orders: readonly Unit[][]): GroupUnit[] {
  const timed = orders.flatMap((units, img) => {
    let time = 0;
    return units.map((unit) => {
      time = Math.max(time, unit.accessNs);
      return { unit: { ...unit, img }, time };
    });
  });
  timed.sort((x, y) => Number(x.unit.late) - Number(y.unit.late) || x.time - y.time);
  return timed.map(({ unit }) => unit);
}

/** Items of a group from its units: the parts of a file go into one item. */
function historyOf(units: readonly GroupUnit[]): OptimizedTraceItem[] {
  const items = new Map<string, OptimizedTraceItem>();
  for (const [rank, unit] of units.entries()) {
    const { path, layer, accessNs, waitNs, img, runs, part } = unit;
    const key = itemKey(unit);
    const item = items.get(key) ?? { path, layer, accessNs, waitNs, rank, img, runs };
    items.set(key, item);
    item.runs = Math.max(item.runs ?? 0, runs);
    if (part === WHOLE) continue;
    item.ranges ??= [];
    const offsetBytes = part * TRACE_PART_BYTES;
    item.ranges.push({ offsetBytes, lengthBytes: TRACE_PART_BYTES, accessNs, rank, runs });
  }
  return [...items.values()];
}

function mergeGroup(name: string, tracers: readonly Tracer[]): OptimizedGroup {
  const images = imagesOf(tracers);
  const shifts = new Map<Tracer, number>();
  for (const session of sessionsOf(tracers)) {
    const start = earliest(session);
    for (const run of session) shifts.set(run, shiftNs(run, start));
  }
  const runs = images.map((of) => tracers.filter((run) => imageKey(run) === imageKey(of)));
  const orders = runs.map((own) =>
    mergeUnits(
      own,
      own.map((run) => shifts.get(run)!),
    ),
  );
  return {
    history: historyOf(interleave(orders)),
    images: images.map(({ image }) => image),
    name,
    digests: images.map(({ digest }) => digest ?? ''),
    runs: runs.map((own) => own.length),
  };
}

/**
 * Groups with repeated runs merged. Default group: one for each image. Named group: one for all its
 * images. Parts of large files have ranks of their own.
 */
export function mergedGroups(tracers: readonly Tracer[]): OptimizedGroup[] {
  return [...byGroup(tracers)].flatMap(([name, runs]) => {
    if (name !== DEFAULT_GROUP) return [mergeGroup(name, runs)];
    return imagesOf(runs).map((of) =>
      mergeGroup(
        name,
        runs.filter((run) => imageKey(run) === imageKey(of)),
      ),
    );
  });
}
