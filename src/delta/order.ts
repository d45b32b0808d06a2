// The order of parts in a bundle: planning it from ranks (encoder), and its coding as runs, which
// both sides share. In tree order the coding is one run; a ranked permutation is a list of jumps.
import { FirstlightError } from '../errors/errors.ts';
import type { Toc } from './toc.ts';
import { type VarintReader, VarintWriter } from './varint.ts';

/** When a content, or one part of it, was first read: the lowest rank comes first. */
export interface Rank {
  content: number;
  /** Index within the content; where absent, the rank is that of all its parts. */
  part?: number;
  /** Any finite number. */
  rank: number;
}

/** The parts that a bundle brings, in transfer order. */
export interface Order {
  /** Part numbers through all contents. */
  parts: Uint32Array;
  /** The first this many of them have a rank. */
  ranked: number;
}

/** Lowest rank of each part; infinity where it has none. */
function rankParts(toc: Toc, ranks: readonly Rank[]): Float64Array {
  const ranked = new Float64Array(toc.parts).fill(Number.POSITIVE_INFINITY);
  for (const { content, part, rank } of ranks) {
    const known = Number.isInteger(content) && content >= 0 && content < toc.contents;
    if (!known || !Number.isFinite(rank))
      throw new FirstlightError('usage', `rank ${rank} of content ${content}: no such content`);
    const count = toc.partCount(content);
    if (part !== undefined && !(Number.isInteger(part) && part >= 0 && part < count))
      throw new FirstlightError(
        'usage',
        `rank of part ${part} of content ${content}: no such part`,
      );
    const first = toc.firstPart(content) + (part ?? 0);
    const end = part === undefined ? first + count : first + 1;
    for (let i = first; i < end; i++) if (rank < ranked[i]!) ranked[i] = rank;
  }
  return ranked;
}

/**
 * Parts in transfer order: ranked ones first, by rank, then by place in the tree; then, where there
 * are ranks, the contents of one part before the larger ones, all in tree order.
 * @param have  true for each content that is left out
 */
export function planOrder(
  toc: Toc,
  have: (content: number) => boolean,
  ranks: readonly Rank[],
): Order {
  const rankOf = ranks.length > 0 ? rankParts(toc, ranks) : undefined;
  const ranked: number[] = [];
  const small: number[] = [];
  const large: number[] = [];
  for (let content = 0; content < toc.contents; content++) {
    if (have(content)) continue;
    const first = toc.firstPart(content);
    const count = toc.partCount(content);
    for (let part = first; part < first + count; part++) {
      if (rankOf !== undefined && rankOf[part] !== Number.POSITIVE_INFINITY) ranked.push(part);
      else if (rankOf === undefined || count === 1) small.push(part);
      else large.push(part);
    }
  }
  ranked.sort((x, y) => rankOf![x]! - rankOf![y]! || x - y);
  const parts = new Uint32Array(ranked.length + small.length + large.length);
  parts.set(ranked);
  parts.set(small, ranked.length);
  parts.set(large, ranked.length + small.length);
  return { parts, ranked: ranked.length };
}

/** Positions that have not been taken yet; finds the next one after any position. */
class Untaken {
  /** Of each position: itself where free, else a later one (union-find with path halving). */
  readonly #next: Uint32Array;

  constructor(count: number) {
    this.#next = new Uint32Array(count + 1);
    for (let i = 0; i <= count; i++) this.#next[i] = i;
  }

  /** First free position at or after `from`; the number of positions where there is none. */
  find(from: number): number {
    const next = this.#next;
    let at = from;
    while (next[at] !== at) {
      next[at] = next[next[at]!]!;
      at = next[at]!;
    }
    return at;
  }

  take(position: number): void {
    this.#next[position] = position + 1;
  }
}

/**
 * Codes an order as runs of free positions: (signed distance of the run's start from the position
 * after the run before it, length - 1).
 * @param missing  all parts that the bundle brings, ascending
 */
export function packOrder(parts: Uint32Array, missing: Uint32Array): Buffer {
  const positions = new Uint32Array((missing.at(-1) ?? -1) + 1);
  for (const [position, part] of missing.entries()) positions[part] = position;
  const free = new Untaken(missing.length);
  const writer = new VarintWriter();
  let expected = 0;
  for (let at = 0; at < parts.length; ) {
    const start = positions[parts[at]!]!;
    let length = 0;
    let next = start;
    while (at < parts.length && next < missing.length && parts[at] === missing[next]) {
      free.take(next);
      next = free.find(next);
      at++;
      length++;
    }
    writer.signed(start - expected);
    writer.unsigned(length - 1);
    expected = next;
  }
  return writer.done();
}

/** Reads what {@link packOrder} wrote; the result is always a permutation of `missing`. */
export function unpackOrder(reader: VarintReader, missing: Uint32Array): Uint32Array {
  const count = missing.length;
  const parts = new Uint32Array(count);
  const free = new Untaken(count);
  let expected = 0;
  for (let at = 0; at < count; ) {
    let next = expected + reader.signed();
    const length = reader.atMost(count - at - 1, 'order: length of a run') + 1;
    if (next < 0 || next >= count || free.find(next) !== next)
      throw new FirstlightError('corrupt', `order: run ${at} starts at ${next}, which is not free`);
    for (let i = 0; i < length; i++) {
      if (next >= count)
        throw new FirstlightError('corrupt', `order: a run of ${length} goes past the last part`);
      parts[at++] = missing[next]!;
      free.take(next);
      next = free.find(next);
    }
    expected = next;
  }
  reader.end();
  return parts;
}
