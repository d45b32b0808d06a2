// Computations of bundles with patches: behind everything else, one at a time, and no more of them waiting than
// somebody may come back for. What does not live here: the computation itself (bundle-cache.ts), and what is computed
// before anybody asks (patches.ts).
//
// Whoever may ask for bundles can name any of the images as what it has, in any combination: each is another bundle,
// and a minute's work. One that is refused costs its worker the patches of that one answer.
import { LRUCache } from 'lru-cache';
import PQueue from 'p-queue';
import type { BundleRecord } from './catalog.ts';

/** See the head of this file. */
export class PatchQueue {
  /** Those that somebody has asked for first. */
  readonly #queue = new PQueue({ concurrency: 1 });
  /** Keys of bundles with patches that turned out to have none: to try again would give nothing. */
  readonly #none = new LRUCache<string, true>({ max: 10_000 });
  readonly #most: number;
  readonly #onRefused: () => void;

  /**
   * @param most       that wait at a time
   * @param onRefused  called for each beyond these
   */
  constructor(most: number, onRefused: () => void) {
    this.#most = most;
    this.#onRefused = onRefused;
  }

  /**
   * True where it is worth computing the bundle of this key, and there is room for it.
   * @param isAhead  nobody has asked for it; of these there is one at a time
   */
  admits(key: string, isAhead: boolean): boolean {
    if (this.#none.has(key)) return false;
    if (isAhead || this.#queue.size < this.#most) return true;
    this.#onRefused();
    return false;
  }

  /** Has it computed when its turn comes; those of higher priority come first. */
  add(
    make: () => Promise<BundleRecord | undefined>,
    priority: number,
  ): Promise<BundleRecord | undefined> {
    return this.#queue.add(make, { priority });
  }

  /** The bundle of this key has no patches. */
  hasNone(key: string): void {
    this.#none.set(key, true);
  }

  /** Those that are being computed, or wait for it. */
  get waiting(): number {
    return this.#queue.size + this.#queue.pending;
  }
}
