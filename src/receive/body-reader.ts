// Reads an HTTP body in pieces of exact length. What does not live here: what the pieces mean.
import type { Readable } from 'node:stream';
import { FirstlightError } from '../errors/errors.ts';

/** Bytes that are kept ready before the connection is told to wait. */
const READY_BYTES = 1 << 20;

/**
 * A body with a position. It is read ahead a little, and what has come before an error is given out
 * before the error is: a connection that breaks costs nothing of what it has brought. Every method
 * but `destroy` may be called only when the last call has ended.
 */
export class BodyReader {
  readonly #body: Readable;
  readonly #chunks: Buffer[] = [];
  /** Bytes of the first chunk that are used up, and bytes in all chunks that are not. */
  #used = 0;
  #ready = 0;
  #lastByteAt = performance.now();
  /** Set at the end: null for a proper one. */
  #ended: Error | null | undefined;
  #wake: (() => void) | undefined;

  /** @param translate  gives the connection's own errors their words */
  constructor(body: Readable, translate: (error: unknown) => Error) {
    this.#body = body;
    body.on('data', (chunk: Buffer) => {
      this.#chunks.push(chunk);
      this.#ready += chunk.length;
      this.#lastByteAt = performance.now();
      if (this.#ready >= READY_BYTES) body.pause();
      this.#wakeUp();
    });
    body.on('end', () => this.#finish(null));
    body.on('error', (error) => this.#finish(translate(error)));
    body.on('close', () => this.#finish(tooEarly()));
  }

  #finish(error: Error | null): void {
    this.#ended = this.#ended === undefined ? error : this.#ended;
    this.#wakeUp();
  }

  #wakeUp(): void {
    this.#wake?.();
    this.#wake = undefined;
  }

  /** How long nothing has come, in ms; 0 while there are bytes that nobody has taken. */
  get idleMs(): number {
    return this.#ready > 0 ? 0 : performance.now() - this.#lastByteAt;
  }

  /**
   * The next `bytes` bytes; a view of what the connection gave where they lie together.
   * @throws FirstlightError 'unreachable' or 'timeout' where the body ends before, or stalls
   */
  async take(bytes: number): Promise<Buffer> {
    if (bytes === 0) return Buffer.alloc(0);
    const first = await this.#some(bytes);
    if (first.length === bytes) return first;
    const whole = Buffer.allocUnsafe(bytes);
    let filled = first.copy(whole);
    while (filled < bytes) filled += (await this.#some(bytes - filled)).copy(whole, filled);
    return whole;
  }

  /** Drops the next `bytes` bytes. */
  async skip(bytes: number): Promise<void> {
    for (let left = bytes; left > 0; ) left -= (await this.#some(left)).length;
  }

  /**
   * Sees the end of the body, so that the connection can serve another request.
   * @throws FirstlightError 'corrupt' where there is more
   */
  async end(): Promise<void> {
    await this.#arrival();
    if (this.#ready === 0 && this.#ended === null) return;
    this.destroy();
    if (this.#ready === 0 && this.#ended) throw this.#ended;
    throw new FirstlightError('corrupt', 'the server sent more than was asked for');
  }

  /** Ends the connection; a `take` under way is rejected. */
  destroy(): void {
    this.#body.destroy();
  }

  /** Resolves when there are bytes, or no more will come. */
  async #arrival(): Promise<void> {
    while (this.#ready === 0 && this.#ended === undefined) {
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
      });
    }
  }

  /** At most `most` bytes of the next chunk, at least one. */
  async #some(most: number): Promise<Buffer> {
    await this.#arrival();
    const chunk = this.#chunks[0];
    if (chunk === undefined) throw this.#ended ?? tooEarly();
    const piece = chunk.subarray(this.#used, Math.min(chunk.length, this.#used + most));
    this.#used += piece.length;
    this.#ready -= piece.length;
    if (this.#used === chunk.length) {
      this.#chunks.shift();
      this.#used = 0;
    }
    if (this.#ready < READY_BYTES / 2 && this.#body.isPaused()) this.#body.resume();
    return piece;
  }
}

function tooEarly(): FirstlightError {
  return new FirstlightError('unreachable', 'the server ended its answer too early', {
    hint: 'look at its log, and for a proxy in between that cuts connections',
  });
}
