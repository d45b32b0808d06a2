// Optimized groups: what runs say about order. The types live here, and the grouping that
// Starlight's own collections have; merging of repeated runs is merge.ts, the JSON form
// collection.ts.
import {
  byAccessTime,
  DEFAULT_GROUP,
  firstSights,
  imageKey,
  type Tracer,
} from '../trace/tracer.ts';

/** Where a part of a large file stands in the order. */
export interface OptimizedRange {
  offsetBytes: number;
  lengthBytes: number;
  accessNs: number;
  rank: number;
  /** How many runs read it. */
  runs: number;
}

/** A file with its rank (JSON: f, s, a, w, rank, img and our runs, ranges). */
export interface OptimizedTraceItem {
  path: string;
  layer: number;
  /** First access, ns since the earliest start of the group. */
  accessNs: number;
  waitNs: number;
  /** Place in the group's order; the lowest comes first. With ranges, the lowest of theirs. */
  rank: number;
  /** Index into the group's images. */
  img: number;
  /** How many runs of the image saw it. */
  runs?: number;
  ranges?: OptimizedRange[];
}

/** Files of one or more images in one order. */
export interface OptimizedGroup {
  /** By rank (JSON: h). */
  history: OptimizedTraceItem[];
  /** References (JSON: i). */
  images: string[];
  /** Ours from here on: the group's name. */
  name?: string;
  /** Manifest digests beside `images`; empty where one is not known. */
  digests?: string[];
  /** Runs beside `images`. */
  runs?: number[];
}

/** What tells the items of a group apart: the image's index and the path. */
export function itemKey(item: { img: number; path: string }): string {
  return `${item.img}|${item.path}`;
}

/** Runs by group's name, in order of first appearance. */
export function byGroup(tracers: readonly Tracer[]): Map<string, Tracer[]> {
  const groups = new Map<string, Tracer[]>();
  for (const tracer of tracers) {
    const group = groups.get(tracer.group);
    if (group === undefined) groups.set(tracer.group, [tracer]);
    else group.push(tracer);
  }
  return groups;
}

/** Earliest start of runs, ns since 1970. */
export function earliest(tracers: readonly Tracer[]): bigint {
  let first = tracers[0]!.startNs;
  for (const { startNs } of tracers) if (startNs < first) first = startNs;
  return first;
}

/** ns by which a run began after `start`, bounded so that sums stay exact. */
export function shiftNs(tracer: Tracer, start: bigint): number {
  const shift = tracer.startNs - start;
  const most = 2n ** 51n;
  return Number(shift > most ? most : shift);
}

/** Images of runs by reference, each once. */
export function imagesOf(tracers: readonly Tracer[]): Tracer[] {
  const images = new Map<string, Tracer>();
  // The last run says under which reference the image is known now.
  for (const tracer of tracers) images.set(imageKey(tracer), tracer);
  return [...images.values()].sort((x, y) => {
    const [a, b] = [`${x.image}\0${imageKey(x)}`, `${y.image}\0${imageKey(y)}`];
    return a < b ? -1 : a > b ? 1 : 0;
  });
}

function groupOfRuns(name: string, tracers: readonly Tracer[]): OptimizedGroup {
  const images = imagesOf(tracers);
  const index = new Map(images.map((tracer, at) => [imageKey(tracer), at]));
  const start = earliest(tracers);
  const history = tracers.flatMap((tracer) => {
    const img = index.get(imageKey(tracer))!;
    const shift = shiftNs(tracer, start);
    return firstSights(tracer).map(({ path, layer, accessNs, waitNs }) => {
      return { path, layer, accessNs: accessNs + shift, waitNs, rank: 0, img };
    });
  });
  history.sort(byAccessTime);
  for (const [rank, item] of history.entries()) item.rank = rank;
  return {
    history,
    images: images.map(({ image }) => image),
    name,
    digests: images.map(({ digest }) => digest ?? ''),
    runs: images.map((of) => tracers.filter((run) => imageKey(run) === imageKey(of)).length),
  };
}

/**
 * Groups as Starlight makes them. Default group: one for each run. Named group: the runs of all its
 * images, aligned on the earliest start, by access time; a file of a repeated run stands there again.
 */
export function groupsByRun(tracers: readonly Tracer[]): OptimizedGroup[] {
  return [...byGroup(tracers)].flatMap(([name, runs]) => {
    return name === DEFAULT_GROUP
      ? runs.map((run) => groupOfRuns(name, [run]))
      : [groupOfRuns(name, runs)];
  });
}
