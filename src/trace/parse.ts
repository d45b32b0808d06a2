// Reads trace files, ours and Starlight's, trusting nothing: size, nesting, numbers, times, names.
// A file is taken whole or refused with the field that is wrong; unknown keys are ignored. Writing
// is format.ts.
import { FirstlightError } from '../errors/errors.ts';
import { Fields, isCount, type JsonLimits, parseJson } from './json.ts';
import { labelFault, pathOfKeys } from './names.ts';
import { parseTime } from './time.ts';
import {
  byAccessTime,
  DEFAULT_GROUP,
  type ReceivedPoint,
  TRACE_ITEMS_MAX,
  TRACE_MAX_BYTES,
  TRACE_NS_MAX,
  TRACE_RANGES_MAX,
  TRACE_VERSION,
  type TraceItem,
  type TraceRange,
  type Tracer,
  type TracerHead,
} from './tracer.ts';

/** Bounds of a trace file. Unknown keys may nest somewhat deeper than ours. */
export const TRACE_LIMITS: JsonLimits = {
  bytes: TRACE_MAX_BYTES,
  depth: 16,
  containers: 2 * TRACE_ITEMS_MAX + TRACE_RANGES_MAX,
};

const LAYER_MAX = 0xffff;
const BYTES_MAX = Number.MAX_SAFE_INTEGER;
/** Most points of `recv`. */
export const RECEIVED_MAX = 100_000;
const DIGEST = /^sha256:[0-9a-f]{64}$/;
const HEX = /^[0-9a-f]{64}$/;

/** One range from its JSON form [offset, length, access ns?, wait ns?]. */
export function parseRange(value: unknown, where: Fields, accessNs: number): TraceRange {
  if (!Array.isArray(value) || value.length < 2) {
    throw where.bad('r', 'holds something that is no [offset, length]');
  }
  const [offset, length, at = accessNs, wait = 0] = value as unknown[];
  if (!isCount(offset, BYTES_MAX) || !isCount(length, BYTES_MAX - offset)) {
    throw where.bad('r', 'holds an offset or length out of range');
  }
  if (!isCount(at, TRACE_NS_MAX) || !isCount(wait, TRACE_NS_MAX)) {
    throw where.bad('r', 'holds a time out of range');
  }
  return { offsetBytes: offset + 0, lengthBytes: length + 0, accessNs: at + 0, waitNs: wait + 0 };
}

/** One item from its JSON form. */
export function parseItem(value: unknown, where: string): TraceItem {
  const fields = new Fields(value, where);
  const named = pathOfKeys(fields.get('f'), fields.get('b'));
  if ('fault' in named) throw fields.bad('f', `is refused: ${named.fault}`);
  const accessNs = fields.count('a', TRACE_NS_MAX);
  if (accessNs === undefined) throw fields.bad('a', 'is missing');
  const item: TraceItem = {
    path: named.path,
    layer: fields.count('s', LAYER_MAX) ?? 0,
    accessNs,
    waitNs: fields.count('w', TRACE_NS_MAX) ?? 0,
  };
  const size = fields.count('z', BYTES_MAX);
  if (size !== undefined) item.sizeBytes = size;
  const digest = parseDigest(fields);
  if (digest !== undefined) item.digest = digest;
  const arrived = fields.count('v', TRACE_NS_MAX);
  if (arrived !== undefined) item.arrivedNs = arrived;
  const ranges = fields.list('r', TRACE_RANGES_MAX);
  if (ranges !== undefined) {
    item.ranges = ranges.map((range) => parseRange(range, fields, accessNs));
  }
  return item;
}

/** The content's digest, where the item has it. */
export function parseDigest(fields: Fields): string | undefined {
  const digest = fields.text('d');
  if (digest !== undefined && !HEX.test(digest)) throw fields.bad('d', 'is no sha256 in hex');
  return digest;
}

function label(fields: Fields, key: string): string | undefined {
  const text = fields.text(key);
  if (text === undefined) return undefined;
  const fault = labelFault(text);
  if (fault !== undefined) throw fields.bad(key, fault);
  return text;
}

/** The image's reference: a string, or in older files of Starlight an object {n, t}. */
function imageOf(fields: Fields): string {
  const value = fields.get('image');
  if (typeof value === 'object') {
    const reference = new Fields(value, `${fields.where}: image`);
    return `${label(reference, 'n') ?? ''}:${label(reference, 't') ?? ''}`;
  }
  const image = label(fields, 'image');
  if (image === undefined || image === '') throw fields.bad('image', 'is missing');
  return image;
}

function timeOf(fields: Fields, key: string): bigint | undefined {
  const text = fields.text(key);
  if (text === undefined) return undefined;
  const ns = parseTime(text);
  if (ns === undefined) throw fields.bad(key, 'is no RFC 3339 time');
  return ns;
}

/** The keys before `seq`, of a trace file or of a journal's first line. */
export function parseHead(fields: Fields): TracerHead {
  const version = fields.count('version', BYTES_MAX) ?? TRACE_VERSION;
  if (version > TRACE_VERSION) {
    throw new FirstlightError('unsupported', `${fields.where}: version ${version} is not known`, {
      hint: 'a newer firstlight wrote it; update this one',
    });
  }
  const image = imageOf(fields);
  const startNs = timeOf(fields, 'start');
  if (startNs === undefined) throw fields.bad('start', 'is missing');
  const digest = fields.text('digest') || /(?:^|@)(sha256:[0-9a-f]{64})$/.exec(image)?.[1];
  if (digest !== undefined && !DIGEST.test(digest)) {
    throw fields.bad('digest', 'is no sha256:... digest');
  }
  const platform = label(fields, 'platform');
  return {
    group: label(fields, 'group') || DEFAULT_GROUP,
    image,
    ...(digest === undefined ? {} : { digest }),
    ...(platform === undefined || platform === '' ? {} : { platform }),
    startNs,
  };
}

/** One [ns, bytes] of `recv`. */
export function parseReceived(value: unknown, fields: Fields): ReceivedPoint {
  const [atNs, bytes] = Array.isArray(value) ? (value as unknown[]) : [];
  if (!isCount(atNs, TRACE_NS_MAX) || !isCount(bytes, BYTES_MAX)) {
    throw fields.bad('recv', 'holds something that is no [ns, bytes]');
  }
  return { atNs: atNs + 0, bytes: bytes + 0 };
}

/** ns from the start to the last moment that the items speak of. */
export function lastMomentNs(seq: readonly TraceItem[]): number {
  let last = 0;
  for (const item of seq) {
    last = Math.max(last, item.accessNs + item.waitNs);
    for (const range of item.ranges ?? []) last = Math.max(last, range.accessNs + range.waitNs);
  }
  return last;
}

/**
 * Reads a trace file.
 * @param what  its name, for messages
 * @throws FirstlightError `corrupt` with the field that is wrong, `unsupported` for a newer version
 */
export function parseTracer(bytes: Uint8Array, what: string): Tracer {
  return tracerOf(parseJson(bytes, TRACE_LIMITS, what), what);
}

/** A trace from JSON that is parsed already. @throws as {@link parseTracer} */
export function tracerOf(value: unknown, what: string): Tracer {
  const fields = new Fields(value, what);
  const head = parseHead(fields);
  const list = fields.list('seq', TRACE_ITEMS_MAX);
  if (list === undefined) throw fields.bad('seq', 'is missing');
  const seq = list.map((item, index) => parseItem(item, `${what}: seq[${index}]`));
  const ranges = seq.reduce((sum, item) => sum + (item.ranges?.length ?? 0), 0);
  if (ranges > TRACE_RANGES_MAX) throw fields.bad('seq', `has over ${TRACE_RANGES_MAX} ranges`);
  seq.sort(byAccessTime);
  const atLeast = head.startNs + BigInt(lastMomentNs(seq));
  const end = timeOf(fields, 'end') ?? atLeast;
  const received = fields.list('recv', RECEIVED_MAX)?.map((point) => parseReceived(point, fields));
  const lost = fields.count('lost', BYTES_MAX);
  return {
    ...head,
    // Go writes year 1 where the end was never set.
    endNs: end < atLeast ? atLeast : end,
    seq,
    ...(received === undefined ? {} : { received }),
    ...(lost === undefined || lost === 0 ? {} : { lost }),
    ...(fields.get('recovered') === true ? { recovered: true } : {}),
  };
}
