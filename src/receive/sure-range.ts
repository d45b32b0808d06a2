// A range that a reader waits for: where the connection that is to bring it falls silent, the rest of it is asked for
// over another, and whichever answers first brings it. What does not live here: what the bytes mean, and what
// is asked again when all has failed (out-of-order.ts).
import type { BodyReader } from './body-reader.ts';
import { awaitSilence } from './silence.ts';

/** Requests that may be under way beside one that is silent. */
const RIVALS_MOST = 2;

/** Asks for bytes `from` to `to` (exclusive) over a connection that has nothing else to bring. */
export type AskRange = (
  from: number,
  to: number,
  signal: AbortSignal,
) => Promise<BodyReader | 'gone'>;

/** One request for what is left. */
interface Attempt {
  answer: Promise<BodyReader | 'gone'>;
  /** Once its head is in. */
  body: BodyReader | undefined;
  askedAt: number;
  abort: AbortController;
}

/** What is asked of it one after the other; no call before the last one has ended. */
export class SureRange {
  readonly #ask: AskRange;
  readonly #signal: AbortSignal;
  /** The first byte that has not been taken, and the one after the last. */
  #at: number;
  readonly #to: number;
  /** The one that brings it, and those that are to take its place. */
  #attempt: Attempt;
  #rivals: Attempt[] = [];
  /** Doubles with each attempt: others may be as slow, and what has come of a piece is lost. */
  #silentMs: number;

  /** @param silentMs  that a connection may bring nothing while something is awaited of it */
  constructor(ask: AskRange, from: number, to: number, silentMs: number, signal: AbortSignal) {
    this.#ask = ask;
    this.#signal = signal;
    this.#at = from;
    this.#to = to;
    this.#silentMs = silentMs;
    this.#attempt = this.#begin();
  }

  #begin(): Attempt {
    const abort = new AbortController();
    const answer = this.#ask(this.#at, this.#to, AbortSignal.any([abort.signal, this.#signal]));
    const askedAt = performance.now();
    const attempt: Attempt = { answer, body: undefined, askedAt, abort };
    answer.then(
      (body) => {
        if (body === 'gone') return;
        attempt.body = body;
        if (abort.signal.aborted) body.destroy();
      },
      // Whoever waits for it hears of it.
      () => undefined,
    );
    return attempt;
  }

  /**
   * The next bytes, or 'gone' where the server no longer has what they are of.
   * @throws FirstlightError of the connection, once no other is left that could bring them
   */
  async take(bytes: number): Promise<Buffer | 'gone'> {
    for (;;) {
      const taken = this.#takeOf(this.#attempt, bytes);
      const other = await this.#firstOf(taken);
      if (other === undefined) {
        const data = await taken;
        this.#at += bytes;
        this.#giveUpRivals();
        return data;
      }
      // Nobody waits for it any more.
      taken.catch(() => undefined);
      giveUp(this.#attempt);
      this.#attempt = other;
      this.#rivals = this.#rivals.filter((rival) => rival !== other);
      this.#giveUpRivals();
    }
  }

  async #takeOf({ answer }: Attempt, bytes: number): Promise<Buffer | 'gone'> {
    const body = await answer;
    return body === 'gone' ? 'gone' : await body.take(bytes);
  }

  /** The attempt that is to bring what is awaited from now on; undefined where the present one has, or all have failed. */
  async #firstOf(taken: Promise<unknown>): Promise<Attempt | undefined> {
    // Where one of them fails, another may still bring it.
    const ways: Promise<Attempt | undefined>[] = [taken.then(() => undefined)];
    for (;;) {
      const first = await this.#firstUnlessSilent(ways);
      if (first !== 'silent') return first;
      this.#silentMs *= 2;
      const rival = this.#begin();
      this.#rivals.push(rival);
      ways.push(rival.answer.then(() => rival));
    }
  }

  async #firstUnlessSilent(
    ways: Promise<Attempt | undefined>[],
  ): Promise<Attempt | 'silent' | undefined> {
    // Then the error of the present one is the one to be told.
    const first = Promise.any(ways).catch(() => undefined);
    if (this.#rivals.length >= RIVALS_MOST) return await first;
    const silence = awaitSilence(() => this.#idleMs(), this.#silentMs);
    try {
      return await Promise.race([first, silence.begun]);
    } finally {
      silence.stop();
    }
  }

  /** How long nothing has come of any attempt, in ms. */
  #idleMs(): number {
    const now = performance.now();
    const all = [this.#attempt, ...this.#rivals];
    return Math.min(...all.map(({ body, askedAt }) => body?.idleMs ?? now - askedAt));
  }

  #giveUpRivals(): void {
    for (const rival of this.#rivals.splice(0)) giveUp(rival);
  }

  /** Sees the end of the answer, so that its connection can serve another request. */
  async end(): Promise<void> {
    await this.#attempt.body?.end();
  }

  /** Ends what is under way. */
  destroy(): void {
    giveUp(this.#attempt);
    this.#giveUpRivals();
  }
}

function giveUp({ abort, body }: Attempt): void {
  abort.abort();
  body?.destroy();
}
