// How fast a stream comes, as a moving average over about a second.

/** Averages are taken over windows of at least this length. */
const WINDOW_MS = 50;
/** Weight of a new window of WINDOW_MS; longer ones weigh more. */
const WEIGHT = 0.2;

/** Measures bytes over wall time. */
export class RateMeter {
  #average: number | undefined;
  #since = 0;
  #bytes = 0;
  readonly #now: () => number;

  constructor(now: () => number = () => performance.now()) {
    this.#now = now;
  }

  /** Bytes in a millisecond, or undefined while nothing has been measured. */
  get bytesPerMs(): number | undefined {
    return this.#average;
  }

  /** Begins a window: a stream starts or goes on. */
  start(): void {
    this.#since = this.#now();
    this.#bytes = 0;
  }

  /** Counts bytes that have come since the last call. */
  add(bytes: number): void {
    this.#bytes += bytes;
    const ms = this.#now() - this.#since;
    if (ms < WINDOW_MS) return;
    const rate = this.#bytes / ms;
    const weight = 1 - (1 - WEIGHT) ** (ms / WINDOW_MS);
    this.#average =
      this.#average === undefined ? rate : this.#average + (rate - this.#average) * weight;
    this.start();
  }
}
