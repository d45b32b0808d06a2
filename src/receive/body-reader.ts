// Reads an HTTP body in pieces of exact length. What does not live here: what the pieces mean.
import type { Readable } from 'node:stream';
import { FirstlightError } from '../errors/errors.ts';

/** A body with a position. Every method but `destroy` may be called only when the last has ended. */
export class BodyReader {
  readonly #body: Readable;
  readonly #translate: (error: unknown) => Error;
  readonly #chunks: AsyncIterator<Buffer>;
  #chunk: Buffer = Buffer.alloc(0);
  #received = 0;

  /** @param translate  gives the connection's own errors their words */
  constructor(body: Readable, translate: (error: unknown) => Error) {
    this.#body = body;
    this.#translate = translate;
    // An error between two calls would end the process for want of a listener; the next call gets it.
    body.on('error', () => undefined);
    this.#chunks = body[Symbol.asyncIterator]() as AsyncIterator<Buffer>;
  }

  /** Bytes taken or skipped so far. */
  get received(): number {
    return this.#received;
  }

  /**
   * The next `bytes` bytes; a view of what the connection gave where they lie together.
   * @throws FirstlightError 'unreachable' or 'timeout' where the body ends before, or stalls
   */
  async take(bytes: number): Promise<Buffer> {
    if (this.#chunk.length >= bytes) return this.#cut(bytes);
    const whole = Buffer.allocUnsafe(bytes);
    let filled = 0;
    while (filled < bytes) {
      const piece = await this.#some(bytes - filled);
      piece.copy(whole, filled);
      filled += piece.length;
    }
    return whole;
  }

  /** Drops the next `bytes` bytes. */
  async skip(bytes: number): Promise<void> {
    for (let left = bytes; left > 0; ) left -= (await this.#some(left)).length;
  }

  /** Ends the connection; a `take` under way is rejected. */
  destroy(): void {
    this.#body.destroy();
  }

  /**
   * Sees the end of the body, so that the connection can serve another request.
   * @throws FirstlightError 'corrupt' where there is more
   */
  async end(): Promise<void> {
    if (this.#chunk.length === 0 && (await this.#next()).done === true) return;
    this.destroy();
    throw new FirstlightError('corrupt', 'the server sent more than was asked for');
  }

  async #next(): Promise<IteratorResult<Buffer>> {
    try {
      return await this.#chunks.next();
    } catch (error) {
      throw this.#translate(error);
    }
  }

  async #some(most: number): Promise<Buffer> {
    while (this.#chunk.length === 0) {
      const { done, value } = await this.#next();
      if (done === true) {
        throw new FirstlightError('unreachable', 'the server ended its answer too early');
      }
      this.#chunk = value;
    }
    return this.#cut(Math.min(most, this.#chunk.length));
  }

  #cut(bytes: number): Buffer {
    const piece = this.#chunk.subarray(0, bytes);
    this.#chunk = this.#chunk.subarray(bytes);
    this.#received += bytes;
    return piece;
  }
}
