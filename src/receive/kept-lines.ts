// Keeps the connections to one server open between uses, within a budget, and finds out when one is dead. On a
// wide-area line a connection that has to be made costs round trips before the first byte, and one that has
// carried bytes has a wide window. What does not live here: the connections themselves, and what they carry.
//
// A connection may die without a word: a router or a firewall forgets it, and what is sent vanishes. The kernel
// tries again for a quarter of an hour, and a request for a bundle may rightly be answered late. So a small exchange
// with a short bound goes ahead of the first request on a connection that was idle, without waiting for it
// (pipelining): if it is not answered, the connection is closed, and the HTTP client sends what stood behind it again,
// on a fresh one.

/** One connection as it is kept. */
export interface Line {
  /** Of the HTTP client. */
  stats(): { connected: boolean; size: number };
  /** A small exchange; rejects where no answer comes within the bound, and has closed the connection then. */
  say(boundMs: number): Promise<void>;
  /** performance.now() of its last request; 0 before the first. */
  usedAt: number;
}

export interface LineTimes {
  /** One that has carried nothing for this long carries a small exchange, so that it stays open. */
  keepMs: number;
  /** One that was idle for longer is tried before it is trusted. */
  suspectMs: number;
  /** Bounds of the answer to a small exchange: at least, and where no round trip is known. */
  leastDeadMs: number;
  mostDeadMs: number;
}

export const LINE_TIMES: LineTimes = {
  // Shorter than servers and middleboxes keep an idle connection: Node's and nginx' own are above a minute.
  keepMs: 25_000,
  suspectMs: 5000,
  leastDeadMs: 1000,
  mostDeadMs: 3000,
};
/** Round trips that an answer may take on a line that is busy. */
const DEAD_ROUND_TRIPS = 6;
/** A line that has to be made may take the time of connecting, too. */
const CONNECT_MS = 10_000;
/** How long lines are kept after the last use where nobody says. */
const BUDGET_MS = 600_000;

export class KeptLines {
  readonly #lines: readonly Line[];
  readonly #roundTripMs: () => number | undefined;
  readonly #times: LineTimes;
  #budgetMs = BUDGET_MS;
  #until = 0;
  #timer: NodeJS.Timeout | undefined;

  /** @param roundTripMs  shortest one so far, in ms; undefined where none is known */
  constructor(
    lines: readonly Line[],
    roundTripMs: () => number | undefined,
    times: LineTimes = LINE_TIMES,
  ) {
    this.#lines = lines;
    this.#roundTripMs = roundTripMs;
    this.#times = times;
  }

  /**
   * They are in use, or about to be: opens those that are not open, and keeps them so for the budget from now.
   * @param budgetMs  from now on; 0: not at all
   */
  keep(budgetMs = this.#budgetMs): void {
    this.#budgetMs = budgetMs;
    if (budgetMs === 0) {
      this.stop();
      return;
    }
    this.#until = performance.now() + budgetMs;
    if (this.#timer !== undefined) return;
    this.#timer = setInterval(() => this.#look(), this.#times.keepMs / 2);
    this.#timer.unref();
    // Those that something is just being asked for over are opened by that.
    setImmediate(() => this.#look());
  }

  /** Call it before a request on idle lines: those that may have died are tried, all at once. */
  tryIdle(): void {
    const now = performance.now();
    for (const line of this.#lines) {
      const { connected, size } = line.stats();
      const isIdle = connected && size === 0 && line.usedAt !== 0;
      if (isIdle && now - line.usedAt >= this.#times.suspectMs) this.#say(line, true);
    }
  }

  #look(): void {
    if (performance.now() > this.#until) {
      this.stop();
      return;
    }
    for (const line of this.#lines) {
      const isFresh = line.usedAt === 0;
      if (isFresh || performance.now() - line.usedAt >= this.#times.keepMs) {
        this.#say(line, line.stats().connected);
      }
    }
  }

  #say(line: Line, connected: boolean): void {
    line.usedAt = performance.now();
    const { leastDeadMs, mostDeadMs } = this.#times;
    const roundTrips = (this.#roundTripMs() ?? Number.POSITIVE_INFINITY) * DEAD_ROUND_TRIPS;
    const boundMs = Math.max(leastDeadMs, Math.min(mostDeadMs, roundTrips));
    line.say(connected ? boundMs : boundMs + CONNECT_MS).catch(() => {
      // Whoever asks for something hears of a server that is not there.
    });
  }

  stop(): void {
    clearInterval(this.#timer);
    this.#timer = undefined;
  }
}
