// Which bytes of one large file have been read for the first time, and in what order. Blocks keep
// it bounded: a byte that is read again, or beside one that was, adds nothing.
import type { TraceRange } from './tracer.ts';
import { TRACE_PART_BYTES } from './tracer.ts';

/** Granularity: what the kernel reads ahead is coarser than any smaller one. */
const BLOCK_BYTES = 64 << 10;
/** Bits of the map: a file of 64 GiB; what lies beyond is not kept. */
const BLOCKS_MAX = 1 << 20;

/** First touches of one file. */
export class Touched {
  /** In order of first touch. */
  readonly ranges: TraceRange[] = [];
  #seen = new Uint8Array(64);

  #isSeen(block: number): boolean {
    return ((this.#seen[block >> 3] ?? 0) & (1 << (block & 7))) !== 0;
  }

  #mark(block: number): void {
    const byte = block >> 3;
    if (byte >= this.#seen.length) {
      const grown = new Uint8Array(Math.max(byte + 1, 2 * this.#seen.length));
      grown.set(this.#seen);
      this.#seen = grown;
    }
    this.#seen[byte]! |= 1 << (block & 7);
  }

  /**
   * Takes one read in. Ranges are whole blocks, cut at the end of the file.
   * @param sizeBytes  of the file; infinity where it is not known
   * @returns the ranges that are new or have grown, or undefined where the read lies outside the file or the map
   */
  add(read: TraceRange, sizeBytes: number): TraceRange[] | undefined {
    const end = Math.min(read.offsetBytes + read.lengthBytes, sizeBytes);
    if (end <= read.offsetBytes) return read.lengthBytes === 0 ? [] : undefined;
    const last = Math.floor((end - 1) / BLOCK_BYTES);
    if (last >= BLOCKS_MAX) return undefined;
    const changed = new Set<TraceRange>();
    for (let block = Math.floor(read.offsetBytes / BLOCK_BYTES); block <= last; block++) {
      if (this.#isSeen(block)) continue;
      this.#mark(block);
      changed.add(this.#extend(block, read, sizeBytes));
    }
    return [...changed];
  }

  /** Adds a block to the last range where it goes on from it in the same part, else begins a new one. */
  #extend(block: number, read: TraceRange, sizeBytes: number): TraceRange {
    const start = block * BLOCK_BYTES;
    const end = Math.min(start + BLOCK_BYTES, sizeBytes);
    const before = this.ranges.at(-1);
    const goesOn = before !== undefined && before.offsetBytes + before.lengthBytes === start;
    if (goesOn && start % TRACE_PART_BYTES !== 0) {
      before.lengthBytes = end - before.offsetBytes;
      const waited = read.accessNs + read.waitNs - before.accessNs;
      if (read.waitNs > 0) before.waitNs = Math.max(before.waitNs, waited);
      return before;
    }
    const { accessNs, waitNs } = read;
    const range = { offsetBytes: start, lengthBytes: end - start, accessNs, waitNs };
    this.ranges.push(range);
    return range;
  }
}
