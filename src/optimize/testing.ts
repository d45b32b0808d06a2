// Runs and images for the tests of this stage.
import { TRACE_PART_BYTES, type TraceItem, type Tracer } from '../trace/tracer.ts';
import { type ImageFiles, imageFiles } from './match.ts';

const SECOND_NS = 1_000_000_000n;

/** A file with reads of the given parts, one a millisecond. */
export function large(path: string, accessMs: number, parts: number[]): TraceItem {
  const accessNs = accessMs * 1e6;
  const ranges = parts.map((part, at) => ({
    offsetBytes: part * TRACE_PART_BYTES,
    lengthBytes: 4096,
    accessNs: accessNs + at * 1e6,
    waitNs: 0,
  }));
  return { path, layer: 0, accessNs, waitNs: 0, ranges };
}

/** A run; a path alone is opened one millisecond after the one before. */
export function runOf(
  seq: (string | TraceItem)[],
  more: {
    image?: string;
    group?: string;
    startS?: number;
    digest?: string;
    platform?: string;
  } = {},
): Tracer {
  const { image = 'app:1', group = 'default', startS = 0, digest, platform } = more;
  const startNs = BigInt(Math.round(startS * 1000)) * (SECOND_NS / 1000n);
  return {
    group,
    image,
    ...(digest === undefined ? {} : { digest }),
    ...(platform === undefined ? {} : { platform }),
    startNs,
    endNs: startNs + 10n * SECOND_NS,
    seq: seq.map((item, at) =>
      typeof item === 'string' ? { path: item, layer: 0, accessNs: at * 1e6, waitNs: 0 } : item,
    ),
  };
}

/** Files by path: content name, or [content name, size in bytes] where it is not 100. */
export function filesOf(files: Record<string, string | [string, number]>): ImageFiles {
  return imageFiles(
    Object.entries(files).map(([path, file]) => {
      const [digest, sizeBytes] = typeof file === 'string' ? [file, 100] : file;
      return { path, digest, sizeBytes };
    }),
  );
}
