// What a trace is: one run of one image, and what it read when. Types and limits live here; the
// JSON form is format.ts and parse.ts, the recording of a live run is writer.ts, and what several
// runs say together is optimize/. docs/TRACES.md describes the files.

/** Largest trace file or journal that is read, in bytes. */
export const TRACE_MAX_BYTES = 32 << 20;
/** Most items (files) in one trace. */
export const TRACE_ITEMS_MAX = 200_000;
/** Most ranges in one trace, through all its files. */
export const TRACE_RANGES_MAX = 400_000;
/** Largest time in a trace, in nanoseconds (26 days): sums of a few of them stay exact. */
export const TRACE_NS_MAX = 2 ** 51;
/** Files above this many bytes are traced by the ranges that were read of them; a part of a bundle is as long. */
export const TRACE_PART_BYTES = 1 << 20;
/** The group of runs that belong to none. */
export const DEFAULT_GROUP = 'default';
/** Version that our trace files carry. */
export const TRACE_VERSION = 1;

/** Bytes of a file that were read for the first time. */
export interface TraceRange {
  offsetBytes: number;
  lengthBytes: number;
  /** When the read came: ns since the trace's start. */
  accessNs: number;
  /** How long it waited for bytes, ns. */
  waitNs: number;
}

/** First sight of a file in a run (JSON: f, s, a, w and our z, d, v, r). */
export interface TraceItem {
  /** Byte string from the image's root, without a leading slash. */
  path: string;
  /** Layer that the file comes from, 0 for the lowest. */
  layer: number;
  /** When it was opened: ns since the trace's start. */
  accessNs: number;
  /** How long that open waited, ns. */
  waitNs: number;
  /** Size of the file in bytes, where the recorder said it. */
  sizeBytes?: number;
  /** sha256 of its content, 64 hex digits, where the recorder said it. */
  digest?: string;
  /** When the last of its bytes arrived: ns since the trace's start, 0 where they were there before. */
  arrivedNs?: number;
  /**
   * Ranges read, in order of first touch. Empty: opened and not read. Absent: not known, so the whole
   * file counts as read by the open.
   */
  ranges?: TraceRange[];
}

/** Bytes that had come from the server up to a moment. */
export interface ReceivedPoint {
  atNs: number;
  bytes: number;
}

/** What is known of a run before anything is read. */
export interface TracerHead {
  /** Runs of the same group are merged; {@link DEFAULT_GROUP} where none was named. */
  group: string;
  /** Reference that was mounted, such as `redis:7`. */
  image: string;
  /** Manifest digest, `sha256:...`; foreign files have none unless `image` names it. */
  digest?: string;
  /** os/arch[/variant]. */
  platform?: string;
  /** Start of the trace: ns since 1970. */
  startNs: bigint;
}

/** One recorded run of one image. */
export interface Tracer extends TracerHead {
  /** End of the trace: ns since 1970. */
  endNs: bigint;
  /** By access time. A file may stand there more than once in foreign files: the first sight counts. */
  seq: TraceItem[];
  /** Bytes received over time, where recorded. */
  received?: ReceivedPoint[];
  /** Events that were seen but could not be kept. */
  lost?: number;
  /** True where the recorder died and the trace was put together from its journal. */
  recovered?: boolean;
}

/** Orders items by access time, as `Array.prototype.sort` wants it (stable: equal times keep their order). */
export function byAccessTime(x: { accessNs: number }, y: { accessNs: number }): number {
  return x.accessNs - y.accessNs;
}

/** The first sight of each file, by access time. */
export function firstSights(tracer: Tracer): TraceItem[] {
  const seen = new Set<string>();
  return [...tracer.seq].sort(byAccessTime).filter(({ path }) => {
    if (seen.has(path)) return false;
    seen.add(path);
    return true;
  });
}

/** What tells one image from another in traces: its digest, or where there is none its reference. */
export function imageKey(tracer: TracerHead): string {
  return tracer.digest ?? tracer.image;
}
