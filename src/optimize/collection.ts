// A collection of optimized groups and its JSON form, Starlight's with our keys added. Reading
// trusts nothing, as trace/parse.ts does for single runs.
import { Fields, isCount, parseJson } from '../trace/json.ts';
import { labelFault, pathKeys, pathOfKeys } from '../trace/names.ts';
import { TRACE_ITEMS_MAX, TRACE_NS_MAX, TRACE_RANGES_MAX, type Tracer } from '../trace/tracer.ts';
import {
  groupsByRun,
  type OptimizedGroup,
  type OptimizedRange,
  type OptimizedTraceItem,
} from './group.ts';
import { mergedGroups } from './merge.ts';

const LIMITS = { bytes: 64 << 20, depth: 16, containers: 2 * TRACE_ITEMS_MAX + TRACE_RANGES_MAX };
const GROUPS_MAX = 10_000;
const IMAGES_MAX = 10_000;
const COUNT_MAX = Number.MAX_SAFE_INTEGER;
const DIGEST = /^(?:sha256:[0-9a-f]{64})?$/;

function rangeJson({ offsetBytes, lengthBytes, accessNs, rank, runs }: OptimizedRange): number[] {
  return [offsetBytes, lengthBytes, accessNs, rank, runs];
}

function itemJson(item: OptimizedTraceItem): Record<string, unknown> {
  const { f, b } = pathKeys(item.path);
  return {
    f,
    s: item.layer,
    a: item.accessNs,
    w: item.waitNs,
    rank: item.rank,
    img: item.img,
    ...(b === undefined ? {} : { b }),
    ...(item.runs === undefined ? {} : { runs: item.runs }),
    ...(item.ranges === undefined ? {} : { ranges: item.ranges.map(rangeJson) }),
  };
}

function groupJson(group: OptimizedGroup): Record<string, unknown> {
  return {
    h: group.history.map(itemJson),
    i: group.images,
    ...(group.name === undefined ? {} : { group: group.name }),
    ...(group.digests === undefined ? {} : { digests: group.digests }),
    ...(group.runs === undefined ? {} : { runs: group.runs }),
  };
}

function parseRange(value: unknown, fields: Fields): OptimizedRange {
  const list = Array.isArray(value) ? (value as unknown[]) : [];
  const [offset, length, access, rank, runs] = list;
  if (!isCount(offset, COUNT_MAX) || !isCount(length, COUNT_MAX - offset)) {
    throw fields.bad('ranges', 'holds an offset or length out of range');
  }
  if (!isCount(access, TRACE_NS_MAX * 2) || !isCount(rank, COUNT_MAX) || !isCount(runs, COUNT_MAX))
    throw fields.bad('ranges', 'holds something that is no [offset, length, ns, rank, runs]');
  return { offsetBytes: offset, lengthBytes: length, accessNs: access, rank, runs };
}

/**
 * An item. Starlight has had two forms: `rank` and `img`, and a later one with `r` for the rank and
 * `s` for the image.
 */
function parseItem(value: unknown, images: number, where: string): OptimizedTraceItem {
  const fields = new Fields(value, where);
  const named = pathOfKeys(fields.get('f'), fields.get('b'));
  if ('fault' in named) throw fields.bad('f', `is refused: ${named.fault}`);
  const later = fields.get('rank') === undefined && fields.get('r') !== undefined;
  const rank = fields.count(later ? 'r' : 'rank', COUNT_MAX);
  const img = fields.count(later ? 's' : 'img', images - 1) ?? 0;
  if (rank === undefined) throw fields.bad('rank', 'is missing');
  if (images === 0) throw fields.bad('img', 'names no image');
  const runs = fields.count('runs', COUNT_MAX);
  const ranges = fields.list('ranges', TRACE_RANGES_MAX);
  return {
    path: named.path,
    layer: later ? 0 : (fields.count('s', 0xffff) ?? 0),
    // An access is shifted by its run's start, so it may be later than in any trace.
    accessNs: fields.count('a', TRACE_NS_MAX * 2) ?? 0,
    waitNs: fields.count('w', TRACE_NS_MAX) ?? 0,
    rank,
    img,
    ...(runs === undefined ? {} : { runs }),
    ...(ranges === undefined ? {} : { ranges: ranges.map((range) => parseRange(range, fields)) }),
  };
}

function label(fields: Fields, key: string, value: unknown): string {
  if (typeof value !== 'string') throw fields.bad(key, 'holds something that is no string');
  const fault = labelFault(value);
  if (fault !== undefined) throw fields.bad(key, fault);
  return value;
}

/** A reference: a string, or in older files of Starlight an object {n, t}. */
function parseImage(value: unknown, fields: Fields): string {
  if (typeof value !== 'object') return label(fields, 'i', value);
  const reference = new Fields(value, `${fields.where}: i`);
  return `${label(reference, 'n', reference.get('n'))}:${label(reference, 't', reference.get('t'))}`;
}

function parseGroup(value: unknown, where: string): OptimizedGroup {
  const fields = new Fields(value, where);
  const images = (fields.list('i', IMAGES_MAX) ?? []).map((image) => parseImage(image, fields));
  const history = (fields.list('h', TRACE_ITEMS_MAX) ?? []).map((item, index) =>
    parseItem(item, images.length, `${where}: h[${index}]`),
  );
  history.sort((x, y) => x.rank - y.rank);
  const name = fields.get('group');
  const digests = fields.list('digests', images.length);
  const runs = fields.list('runs', images.length);
  if (digests?.some((digest) => typeof digest !== 'string' || !DIGEST.test(digest))) {
    throw fields.bad('digests', 'holds something that is no sha256:... digest');
  }
  if (runs?.some((count) => !isCount(count, COUNT_MAX))) {
    throw fields.bad('runs', 'holds something that is no count');
  }
  return {
    history,
    images,
    ...(name === undefined ? {} : { name: label(fields, 'group', name) }),
    ...(digests === undefined ? {} : { digests: digests as string[] }),
    ...(runs === undefined ? {} : { runs: runs as number[] }),
  };
}

/** What many runs say about order. */
export class TraceCollection {
  readonly groups: OptimizedGroup[];

  constructor(groups: OptimizedGroup[]) {
    this.groups = groups;
  }

  /**
   * Groups runs.
   * @param merge  `median`: repeated runs become one order (merge.ts); `none`: as Starlight does
   */
  static fromTracers(
    tracers: readonly Tracer[],
    merge: 'median' | 'none' = 'median',
  ): TraceCollection {
    return new TraceCollection(merge === 'median' ? mergedGroups(tracers) : groupsByRun(tracers));
  }

  /** Reads a collection file, ours or Starlight's. @throws FirstlightError `corrupt`, with the field */
  static parse(bytes: Uint8Array, what: string): TraceCollection {
    const fields = new Fields(parseJson(bytes, LIMITS, what), what);
    const groups = fields.list('Groups', GROUPS_MAX);
    if (groups === undefined) throw fields.bad('Groups', 'is missing');
    return new TraceCollection(
      groups.map((group, index) => parseGroup(group, `${what}: Groups[${index}]`)),
    );
  }

  /** {"Groups":[{"h":[...],"i":[...]}]}, an object for JSON.stringify. */
  toJSON(): Record<string, unknown> {
    return { Groups: this.groups.map(groupJson) };
  }
}
