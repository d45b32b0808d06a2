// A trace as JSON: Starlight's keys first, then ours. Reading is parse.ts.
import { pathKeys } from './names.ts';
import { formatTime } from './time.ts';
import type { ReceivedPoint, TraceItem, TraceRange, Tracer, TracerHead } from './tracer.ts';
import { TRACE_VERSION } from './tracer.ts';

const ITEMS_A_CHUNK = 1000;

/** A range as [offset, length, access ns, wait ns]. */
export function rangeJson(range: TraceRange): [number, number, number, number] {
  return [range.offsetBytes, range.lengthBytes, range.accessNs, range.waitNs];
}

/** An item as an object with the file's keys. */
export function itemJson(item: TraceItem): Record<string, unknown> {
  const { f, b } = pathKeys(item.path);
  return {
    f,
    s: item.layer,
    a: item.accessNs,
    w: item.waitNs,
    ...(b === undefined ? {} : { b }),
    ...(item.sizeBytes === undefined ? {} : { z: item.sizeBytes }),
    ...(item.digest === undefined ? {} : { d: item.digest }),
    ...(item.arrivedNs === undefined ? {} : { v: item.arrivedNs }),
    ...(item.ranges === undefined ? {} : { r: item.ranges.map(rangeJson) }),
  };
}

/** Bytes received up to a moment as [ns, bytes]. */
export function receivedJson(point: ReceivedPoint): [number, number] {
  return [point.atNs, point.bytes];
}

/** The keys that stand before `seq`. */
export function headJson(head: TracerHead): Record<string, unknown> {
  return {
    version: TRACE_VERSION,
    group: head.group,
    image: head.image,
    ...(head.digest === undefined ? {} : { digest: head.digest }),
    ...(head.platform === undefined ? {} : { platform: head.platform }),
    start: formatTime(head.startNs),
  };
}

/** A trace file's text in pieces, one item a line, so that a long trace does not hold up the loop. */
export function* tracerChunks(tracer: Tracer): Generator<string> {
  const head = {
    ...headJson(tracer),
    end: formatTime(tracer.endNs),
    ...(tracer.lost ? { lost: tracer.lost } : {}),
    ...(tracer.recovered ? { recovered: true } : {}),
    ...(tracer.received === undefined ? {} : { recv: tracer.received.map(receivedJson) }),
  };
  yield `${JSON.stringify(head).slice(0, -1)},"seq":[`;
  for (let at = 0; at < tracer.seq.length; at += ITEMS_A_CHUNK) {
    const lines = tracer.seq.slice(at, at + ITEMS_A_CHUNK).map((i) => JSON.stringify(itemJson(i)));
    yield `${at === 0 ? '' : ','}\n${lines.join(',\n')}`;
  }
  yield '\n]}\n';
}

/** A whole trace file. */
export function formatTracer(tracer: Tracer): string {
  return [...tracerChunks(tracer)].join('');
}
