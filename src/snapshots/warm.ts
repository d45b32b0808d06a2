// Keeps the connection to the delta server open between pulls. On a wide-area line a connection that has
// to be made costs round trips before the first byte, and one that is old and in use has a wide window. What
// does not live here: the connections themselves (receive/).
import { toFirstlightError } from '../errors/errors.ts';
import type { Logger } from '../log/log.ts';
import type { DeltaClient } from '../receive/delta-client.ts';

/** Shorter than servers and middleboxes keep an idle connection: Node's and nginx' own are above a minute. */
const EVERY_MS = 25_000;
const PING_MS = 5000;

export class WarmConnection {
  readonly #client: Pick<DeltaClient, 'ping'>;
  readonly #budgetMs: number;
  readonly #log: Logger;
  #timer: NodeJS.Timeout | undefined;
  #until = 0;

  /** @param budgetMs  how long it is kept after the last use; 0: not at all */
  constructor(client: Pick<DeltaClient, 'ping'>, budgetMs: number, log: Logger) {
    this.#client = client;
    this.#budgetMs = budgetMs;
    this.#log = log;
    // The first pull finds a connection, too.
    this.used();
  }

  /** A pull uses it: the budget begins anew. */
  used(): void {
    if (this.#budgetMs === 0) return;
    this.#until = performance.now() + this.#budgetMs;
    if (this.#timer !== undefined) return;
    this.#timer = setInterval(() => void this.#ping(), EVERY_MS);
    this.#timer.unref();
    void this.#ping();
  }

  async #ping(): Promise<void> {
    if (performance.now() > this.#until) {
      this.stop();
      return;
    }
    try {
      await this.#client.ping(PING_MS);
    } catch (error) {
      // Nothing depends on it: the next pull says what is wrong, to whom it matters.
      this.#log.debug({ err: toFirstlightError(error) }, 'the delta server was not reached');
    }
  }

  stop(): void {
    clearInterval(this.#timer);
    this.#timer = undefined;
  }
}
