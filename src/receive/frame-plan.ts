// Which frames of a bundle are still needed, derived from which parts have arrived. What does not
// live here: fetching, and the parts themselves (arrivals.ts tells of each).
import type { BundleHeader, FrameInfo } from '../delta/bundle.ts';
import type { PatchBases } from './patch-bases.ts';

/** The frames of one bundle and what of them is missing. */
export class FramePlan {
  readonly header: BundleHeader;
  /** Where the bundle is to be had, and its entity tag. */
  readonly bundlePath: string;
  readonly etag: string;
  /** What its patches stand on; absent where it has none. */
  readonly bases: PatchBases | undefined;
  /** Parts of each frame that have not arrived. */
  readonly #left: Uint32Array;
  /** Frames that a request or a write is under way for: number of them. */
  readonly #busy: Uint8Array;
  /** Frames that came wrong too often. */
  readonly #hopeless: Uint8Array;
  readonly #frameOfPart: Int32Array;
  /** Frames before this one have all arrived or are hopeless. */
  #firstOpen = 0;
  framesDone = 0;
  /** Compressed and raw bytes of the frames that are done. */
  bytesDone = 0;
  rawBytesDone = 0;
  readonly rawBytes: number;

  constructor(
    header: BundleHeader,
    from: { bundlePath: string; etag: string },
    arrived: (part: number) => boolean,
    bases?: PatchBases,
  ) {
    this.header = header;
    this.bundlePath = from.bundlePath;
    this.etag = from.etag;
    this.bases = bases;
    const { frames, order, toc } = header;
    this.#left = new Uint32Array(frames.length);
    this.#busy = new Uint8Array(frames.length);
    this.#hopeless = new Uint8Array(frames.length);
    this.#frameOfPart = new Int32Array(toc.parts).fill(-1);
    let rawBytes = 0;
    for (const frame of frames) {
      rawBytes += frame.rawBytes;
      this.#left[frame.index] = frame.partCount;
      for (let i = frame.firstPart; i < frame.firstPart + frame.partCount; i++) {
        this.#frameOfPart[order[i]!] = frame.index;
      }
    }
    this.rawBytes = rawBytes;
    for (const part of order) if (arrived(part)) this.partArrived(part);
  }

  get frames(): FrameInfo[] {
    return this.header.frames;
  }

  /** A part has arrived, from wherever. */
  partArrived(part: number): void {
    const index = this.#frameOfPart[part]!;
    if (index < 0) return;
    this.#left[index]! -= 1;
    if (this.#left[index] !== 0) return;
    const frame = this.frames[index]!;
    this.framesDone++;
    this.bytesDone += frame.bytes;
    this.rawBytesDone += frame.rawBytes;
  }

  /** A part that had arrived is gone again. */
  partLost(part: number): void {
    const index = this.#frameOfPart[part]!;
    if (index < 0) return;
    if (this.#left[index] === 0) {
      const frame = this.frames[index]!;
      this.framesDone--;
      this.bytesDone -= frame.bytes;
      this.rawBytesDone -= frame.rawBytes;
    }
    this.#left[index]! += 1;
    this.#firstOpen = Math.min(this.#firstOpen, index);
  }

  /** True where the bundle brings the part. */
  brings(part: number): boolean {
    return this.#frameOfPart[part]! >= 0;
  }

  /** True where every part of the frame is there. */
  isDone(frame: number): boolean {
    return this.#left[frame] === 0;
  }

  /** True where the frame is needed, and nothing is under way for it. */
  isMissing(frame: number): boolean {
    return this.#left[frame] !== 0 && this.#busy[frame] === 0 && this.#hopeless[frame] === 0;
  }

  /** Something begins (+1) or ends (-1) to work for a frame. */
  busy(frame: number, change: 1 | -1): void {
    this.#busy[frame]! += change;
  }

  /** Gives a frame up for good. */
  giveUp(frame: number): void {
    this.#hopeless[frame] = 1;
  }

  isHopeless(frame: number): boolean {
    return this.#hopeless[frame] === 1;
  }

  /** The first frame from `from` on that is missing, or -1. */
  nextMissing(from: number): number {
    const { length } = this.frames;
    while (
      this.#firstOpen < length &&
      (this.isDone(this.#firstOpen) || this.isHopeless(this.#firstOpen))
    )
      this.#firstOpen++;
    for (let frame = Math.max(from, this.#firstOpen); frame < length; frame++) {
      if (this.isMissing(frame)) return frame;
    }
    return -1;
  }

  /** True where every frame is done or given up. */
  get settled(): boolean {
    this.nextMissing(0);
    return this.#firstOpen >= this.frames.length;
  }

  /**
   * The frames to ask for in one request that begins at the missing frame `first`: up to the last
   * missing frame before a gap of more than `gapBytes` that need not be sent, or that makes it
   * `mostBytes` or more.
   * @returns index after the last frame
   */
  runEnd(first: number, gapBytes: number, mostBytes: number): number {
    let end = first + 1;
    let gap = 0;
    const limit = this.frames[first]!.offset + mostBytes;
    for (let frame = first + 1; frame < this.frames.length && gap <= gapBytes; frame++) {
      if (this.frames[frame]!.offset >= limit) break;
      if (this.isMissing(frame)) {
        end = frame + 1;
        gap = 0;
      } else gap += this.frames[frame]!.bytes;
    }
    return end;
  }

  /** Frames that bring the named parts of a content, ascending, done or not. */
  framesOf(content: number, firstPart: number, lastPart: number): number[] {
    const { toc } = this.header;
    const start = toc.firstPart(content);
    const last = Math.min(lastPart, toc.partCount(content) - 1);
    const found = new Set<number>();
    for (let part = start + firstPart; part <= start + last; part++) {
      const frame = this.#frameOfPart[part]!;
      if (frame >= 0) found.add(frame);
    }
    return [...found].sort((a, b) => a - b);
  }

  /** Part numbers that a frame brings. */
  partsOf(frame: number): Uint32Array {
    const { firstPart, partCount } = this.frames[frame]!;
    return this.header.order.subarray(firstPart, firstPart + partCount);
  }
}
