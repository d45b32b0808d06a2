// Whether readers wait for something that has been asked for beside the streams: these leave most of the
// line to it then (stream-lanes.ts). What does not live here: the requests (delta-client.ts).

/**
 * A reader that has got something soon wants the next: for so many ms after a request the streams do not
 * spread out again, since what they ask for then stands beside the one that follows.
 */
const LINGER_MS = 300;

/** Requests for readers to one server, of all transfers. */
export class ReaderRequests {
  readonly #now: () => number;
  #underWay = 0;
  #endedAt = Number.NEGATIVE_INFINITY;

  /** @param now  a clock, in ms */
  constructor(now: () => number = () => performance.now()) {
    this.#now = now;
  }

  /** One begins. @returns to be called at its end, however it ends; idempotent */
  begin(): () => void {
    this.#underWay++;
    let isOver = false;
    return () => {
      if (isOver) return;
      isOver = true;
      this.#underWay--;
      this.#endedAt = this.#now();
    };
  }

  /** One is under way, or has been just now. */
  get wait(): boolean {
    return this.#underWay > 0 || this.#now() - this.#endedAt < LINGER_MS;
  }
}
