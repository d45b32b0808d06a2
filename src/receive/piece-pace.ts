// How large the pieces of a bundle are, and how many bytes of them are asked for ahead of what has come. What does not
// live here: pieces, and what brings them (striped.ts).

/** Bytes of the first pieces: with the answer's head an initial window of ten segments. */
const FIRST_BYTES = 13 << 10;
/** Most bytes of a piece: a connection that breaks loses no more than its pieces. */
export const MOST_BYTES = 512 << 10;
/** Bytes that come in pieces, but no more than the line brings in this time. */
export const STRIPED_BYTES = 4 << 20;
const STRIPED_MS = 4000;
/**
 * Beyond the first pieces so many bytes are asked for, for each that has come: slow start doubles what is under
 * way with each round trip, which takes 2, and one more for answers that come late.
 */
const ASK_FACTOR = 3;
/**
 * Or what the line would bring in this time at the rate seen so far, if that is more: then a processor that
 * decodes the header meanwhile keeps no round trip waiting. On a slow line it is not, and the
 * header does not share the line with much else.
 */
const ASK_MS = 500;
/** A few packets that come at once say nothing of a rate. */
const BURST_MS = 20;

/** See the head of this file. */
export class PiecePace {
  readonly #connections: number;
  readonly #now: () => number;
  /** Bytes that have come, and when the first of them did. */
  #received = 0;
  #firstByteAt = 0;

  /** @param now  a clock, in ms */
  constructor(connections: number, now: () => number) {
    this.#connections = connections;
    this.#now = now;
  }

  received(bytes: number): void {
    if (this.#received === 0) this.#firstByteAt = this.#now();
    this.#received += bytes;
  }

  /** Bytes of a piece by its index. */
  bytesOf(index: number): number {
    const round = Math.floor(index / this.#connections);
    return Math.min(MOST_BYTES, FIRST_BYTES * 2 ** Math.min(round, 16));
  }

  /** So many bytes come in pieces at least; on a slow line fewer than on one that is worth so many connections. */
  get leastBytes(): number {
    return Math.ceil(Math.min(STRIPED_BYTES, this.#bytesPerMs() * STRIPED_MS));
  }

  /** Bytes that may have been asked for by now. */
  get mostAsked(): number {
    const first = FIRST_BYTES * this.#connections;
    return first + Math.max(ASK_FACTOR * this.#received, ASK_MS * this.#bytesPerMs());
  }

  /** Since the first byte; rather too low. */
  #bytesPerMs(): number {
    return this.#received / (this.#now() - this.#firstByteAt + BURST_MS);
  }
}
