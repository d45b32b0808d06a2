// How much of a bundle must come until a service has what it reads to be ready: counted in the bundle, so
// that no clock and no other work on the machine has a part in it. What does not live here: the runs.
import { PREAMBLE_BYTES } from '../../src/delta/bundle.ts';
import { decodeFrame, decodeHeader, parsePreamble } from '../../src/delta/bundle-decode.ts';
import { TRACE_PART_BYTES, type Tracer } from '../../src/trace/tracer.ts';

/** A part of a file that was read. */
export interface PartRead {
  path: string;
  index: number;
}

/**
 * Parts that a run has read, in that order.
 * @param untilNs  ns since the trace's start; what was read later is left out
 */
export function partsRead(tracer: Tracer, untilNs = Number.POSITIVE_INFINITY): PartRead[] {
  const first = new Map<string, PartRead & { atNs: number }>();
  for (const { path, sizeBytes = 0, accessNs, ranges } of tracer.seq) {
    const count = Math.ceil(sizeBytes / TRACE_PART_BYTES);
    const seen = ranges ?? [{ offsetBytes: 0, lengthBytes: sizeBytes, accessNs }];
    for (const range of seen) {
      if (range.accessNs > untilNs) continue;
      const from = Math.floor(range.offsetBytes / TRACE_PART_BYTES);
      const end = Math.ceil((range.offsetBytes + range.lengthBytes) / TRACE_PART_BYTES);
      for (let index = from; index < Math.min(count, end); index++) {
        const key = `${index}/${path}`;
        if (!first.has(key)) first.set(key, { path, index, atNs: range.accessNs });
      }
    }
  }
  return [...first.values()].sort((x, y) => x.atNs - y.atNs);
}

/**
 * Bytes from the beginning of a bundle, header included, up to the end of the last frame that holds any
 * of the parts; throws where the image has none of them.
 */
export function bytesUntil(bundle: Buffer, parts: readonly PartRead[]): number {
  const preamble = bundle.subarray(0, PREAMBLE_BYTES);
  const { headerBytes } = parsePreamble(preamble);
  const bodyAt = PREAMBLE_BYTES + headerBytes;
  const header = decodeHeader(preamble, bundle.subarray(PREAMBLE_BYTES, bodyAt));
  const { toc } = header;
  const contents = new Map<string, number>();
  for (let row = 0; row < toc.rows; row++) {
    const content = toc.content(row);
    if (content >= 0) contents.set(toc.path(row), content);
  }
  const wanted = new Set(parts.map(({ path, index }) => `${contents.get(path)}#${index}`));
  let needed = 0;
  for (const frame of header.frames) {
    const bytes = bundle.subarray(frame.offset, frame.offset + frame.bytes);
    const held = decodeFrame(header, frame, bytes);
    if (held.some(({ content, index }) => wanted.has(`${content}#${index}`))) {
      needed = frame.offset + frame.bytes;
    }
  }
  if (needed === 0) throw new Error('the bundle holds nothing of what was read');
  return needed;
}
