// How an image's contents would be laid out in a bundle under one order or another, for prediction:
// sizes only. What a server really sends is planned in delta/, by the same rules (a test compares).
import { TRACE_PART_BYTES } from '../trace/tracer.ts';
import type { ImageFile, ImageFiles } from './match.ts';
import type { RankedPart } from './ranks.ts';

/** What {@link layOut} can put first. */
export type OrderName = 'tree' | 'size' | 'recorded' | 'merged';

/** A bundle as sizes. */
export interface Layout {
  headerBytes: number;
  /** Compressed bytes of each frame, in transfer order. */
  frames: number[];
  /** Frames that hold a part of a file (all its parts where none is named), ascending; none where nothing travels. */
  framesOf(path: string, part?: number): number[];
}

/** What travels. */
export interface LayoutOptions {
  headerBytes: number;
  /** Compressed bytes of a byte of content; 0.4 is usual for an image of programs. */
  ratio: number;
  /** Contents that the worker has and that are not sent. */
  have?: (digest: string) => boolean;
}

interface Part {
  content: string;
  part: number;
  /** Of content, and of digests that travel with it: its own, and the content's where it has more parts. */
  bytes: number;
  digestBytes: number;
}

const DIGEST_BYTES = 32;

/** A frame holds at least this much raw content before it closes for one more part. */
const FRAME_MIN_BYTES = 64 << 10;

/** Raw bytes that a frame should not pass: the first ones are small, so that the first files come soon. */
function frameTargetBytes(index: number): number {
  if (index < 4) return 2 * FRAME_MIN_BYTES;
  if (index < 8) return 4 * FRAME_MIN_BYTES;
  if (index < 12) return 8 * FRAME_MIN_BYTES;
  return TRACE_PART_BYTES;
}

/** What names a file's content; a file without digest is one of its own. */
function contentOf(file: ImageFile): string {
  return file.digest ?? `path ${file.path}`;
}

/** Parts of all contents in tree order, each content once. */
function partsOf(files: ImageFiles, have: (digest: string) => boolean): Map<string, Part[]> {
  const contents = new Map<string, Part[]>();
  for (const file of files.files()) {
    const content = contentOf(file);
    const held = file.digest !== undefined && have(file.digest);
    if (file.sizeBytes === 0 || held || contents.has(content)) continue;
    const parts: Part[] = [];
    for (let at = 0; at < file.sizeBytes; at += TRACE_PART_BYTES) {
      const bytes = Math.min(TRACE_PART_BYTES, file.sizeBytes - at);
      const digestBytes = file.sizeBytes > TRACE_PART_BYTES ? 2 * DIGEST_BYTES : DIGEST_BYTES;
      parts.push({ content, part: parts.length, bytes, digestBytes });
    }
    contents.set(content, parts);
  }
  return contents;
}

/** Ranked parts first, then contents of one part, then larger ones. */
function rankedOrder(
  contents: Map<string, Part[]>,
  files: ImageFiles,
  ranked: readonly RankedPart[],
): { order: Part[]; ranked: number } {
  const order = new Set<Part>();
  for (const { path, part } of ranked) {
    const file = files.file(path);
    const parts = file === undefined ? [] : (contents.get(contentOf(file)) ?? []);
    for (const p of part === undefined ? parts : parts.slice(part, part + 1)) order.add(p);
  }
  const count = order.size;
  if (count === 0) return { order: [...contents.values()].flat(), ranked: 0 };
  for (const parts of contents.values()) if (parts.length === 1) order.add(parts[0]!);
  for (const parts of contents.values()) for (const part of parts) order.add(part);
  return { order: [...order], ranked: count };
}

/**
 * Lays out an image.
 * @param first  `tree` as in the tree, `size` the smallest content first, or ranked parts
 */
export function layOut(
  files: ImageFiles,
  first: 'tree' | 'size' | readonly RankedPart[],
  options: LayoutOptions,
): Layout {
  const contents = partsOf(files, options.have ?? (() => false));
  let order: Part[];
  let ranked = 0;
  if (first === 'tree') order = [...contents.values()].flat();
  else if (first === 'size') {
    const size = (parts: Part[]) => (parts.length - 1) * TRACE_PART_BYTES + parts.at(-1)!.bytes;
    order = [...contents.values()].sort((x, y) => size(x) - size(y)).flat();
  } else ({ order, ranked } = rankedOrder(contents, files, first));

  const frames: number[] = [];
  const frameOf = new Map<Part, number>();
  let rawBytes = 0;
  for (const [at, part] of order.entries()) {
    const after = rawBytes + part.bytes + part.digestBytes;
    const full = rawBytes >= FRAME_MIN_BYTES && after > frameTargetBytes(frames.length - 1);
    const boundary = at === 0 || (at === ranked && ranked > 0);
    if (boundary || full || after > TRACE_PART_BYTES) {
      frames.push(0);
      rawBytes = 0;
    }
    rawBytes += part.bytes + part.digestBytes;
    // Digests do not compress.
    frames[frames.length - 1]! += Math.ceil(part.bytes * options.ratio) + part.digestBytes;
    frameOf.set(part, frames.length - 1);
  }
  return {
    headerBytes: options.headerBytes,
    frames,
    framesOf(path, part) {
      const file = files.file(path);
      const parts = file === undefined ? [] : (contents.get(contentOf(file)) ?? []);
      const wanted = part === undefined ? parts : parts.slice(part, part + 1);
      return [...new Set(wanted.map((p) => frameOf.get(p)!))].sort((x, y) => x - y);
    },
  };
}
