// A bound on how many things run at once, first come first served.

/** Runs at most `width` jobs at a time. */
export class Lanes {
  #free: number;
  readonly #waiting: (() => void)[] = [];

  constructor(width: number) {
    this.#free = width;
  }

  /** Runs `job` when a lane is free; its outcome is the job's. */
  async run<T>(job: () => Promise<T>): Promise<T> {
    if (this.#free > 0) this.#free--;
    else await new Promise<void>((resolve) => this.#waiting.push(resolve));
    try {
      return await job();
    } finally {
      const next = this.#waiting.shift();
      // The lane goes from hand to hand: nobody who comes now can take it before the one who waits.
      if (next === undefined) this.#free++;
      else next();
    }
  }
}
