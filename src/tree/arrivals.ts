// When contents arrived, for whoever records a run. Nothing is kept while nobody asks: the times of an
// image of 100,000 contents take 800 KB.

/** Arrivals of one image since the watch began; times by `performance.now()`. */
export class ArrivalWatch {
  readonly #atMs: Float64Array;

  constructor(contents: number) {
    this.#atMs = new Float64Array(contents).fill(Number.NaN);
  }

  /** Contents have become readable as a whole. */
  note(contents: Uint32Array, nowMs: number): void {
    for (const content of contents) this.#atMs[content] = nowMs;
  }

  /** When a content arrived, in ms; undefined where it has not since the watch began. */
  at(content: number): number | undefined {
    const ms = this.#atMs[content];
    return ms === undefined || Number.isNaN(ms) ? undefined : ms;
  }
}
