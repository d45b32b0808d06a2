// Which parts travel in one frame. The first frames are small, so that the first files come soon;
// later ones are large, so that they compress well.
import { FRAME_MAX_BYTES, FRAME_MIN_BYTES } from './bundle.ts';
import type { Order } from './order.ts';
import type { Toc } from './toc.ts';

/** Bytes of a digest table's entry. */
export const DIGEST_BYTES = 32;

/** A run of the order. */
export interface FrameSpan {
  firstPart: number;
  partCount: number;
}

/** Bytes of raw content at which frame `index` closes. */
function targetBytes(index: number): number {
  if (index < 4) return 2 * FRAME_MIN_BYTES;
  if (index < 8) return 4 * FRAME_MIN_BYTES;
  if (index < 12) return 8 * FRAME_MIN_BYTES;
  return FRAME_MAX_BYTES;
}

/** Where each part of a TOC belongs: content and bytes, by part number. */
export interface PartTable {
  content: Uint32Array;
  bytes: Uint32Array;
}

/** The part table of a TOC; binary searches for each part would cost more. */
export function tableOfParts(toc: Toc): PartTable {
  const content = new Uint32Array(toc.parts);
  const bytes = new Uint32Array(toc.parts);
  for (let c = 0; c < toc.contents; c++) {
    const first = toc.firstPart(c);
    const count = toc.partCount(c);
    for (let i = 0; i < count; i++) {
      content[first + i] = c;
      bytes[first + i] = toc.partSize(c, i);
    }
  }
  return { content, bytes };
}

/** Bytes of the digest table's entry of a part: one digest, and the content's where it has more parts. */
export function digestEntryBytes(toc: Toc, content: number): number {
  return toc.partCount(content) === 1 ? DIGEST_BYTES : 2 * DIGEST_BYTES;
}

/**
 * Cuts an order into frames. A frame closes when the next part would take its content past the
 * target and it has FRAME_MIN_BYTES already, when it would pass FRAME_MAX_BYTES, and between ranked
 * and unranked parts. Digest tables count as content, so that many tiny files do not make a large
 * frame.
 */
export function planFrames(toc: Toc, order: Order, table: PartTable): FrameSpan[] {
  const spans: FrameSpan[] = [];
  let firstPart = 0;
  let sum = 0;
  const close = (end: number) => {
    if (end > firstPart) spans.push({ firstPart, partCount: end - firstPart });
    firstPart = end;
    sum = 0;
  };
  for (const [at, part] of order.parts.entries()) {
    const bytes = table.bytes[part]! + digestEntryBytes(toc, table.content[part]!);
    if (at === order.ranked) close(at);
    const after = sum + bytes;
    const full = after > targetBytes(spans.length) && sum >= FRAME_MIN_BYTES;
    if (full || after > FRAME_MAX_BYTES) close(at);
    sum += bytes;
  }
  close(order.parts.length);
  return spans;
}
