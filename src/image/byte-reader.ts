// Pulls exact numbers of bytes out of a stream of chunks, and counts them. The formats above it
// (tar.ts) need no buffering of their own.

/** Reads a chunked byte source sequentially. One reader at a time. */
export class ByteReader {
  readonly #source: AsyncIterator<Buffer>;
  #chunk: Buffer = Buffer.alloc(0);
  #at = 0;
  #ended = false;
  /** Bytes handed out so far. */
  position = 0;

  constructor(source: AsyncIterable<Buffer>) {
    this.#source = source[Symbol.asyncIterator]();
  }

  /** Bytes at hand without waiting. */
  get buffered(): number {
    return this.#chunk.length - this.#at;
  }

  async #fill(): Promise<boolean> {
    while (!this.#ended && this.buffered === 0) {
      const { value, done } = await this.#source.next();
      if (done === true) this.#ended = true;
      else {
        this.#chunk = value;
        this.#at = 0;
      }
    }
    return this.buffered > 0;
  }

  /** Up to `limit` bytes that are at hand, as a view; undefined where none are. Never waits. */
  take(limit: number): Buffer | undefined {
    if (this.buffered === 0) return undefined;
    const end = Math.min(this.#chunk.length, this.#at + limit);
    const view = this.#chunk.subarray(this.#at, end);
    this.position += end - this.#at;
    this.#at = end;
    return view;
  }

  /** Between 1 and `limit` bytes, or undefined at the end. */
  async some(limit: number): Promise<Buffer | undefined> {
    if (this.buffered === 0 && !(await this.#fill())) return undefined;
    return this.take(limit);
  }

  /** Exactly `bytes` bytes, or fewer where the source ends before. Held in memory. */
  async exactly(bytes: number): Promise<Buffer> {
    if (this.buffered >= bytes) return this.take(bytes) ?? Buffer.alloc(0);
    const parts: Buffer[] = [];
    let missing = bytes;
    while (missing > 0) {
      const part = await this.some(missing);
      if (part === undefined) break;
      parts.push(part);
      missing -= part.length;
    }
    return Buffer.concat(parts);
  }

  /** Passes over `bytes` bytes; returns how many there were. */
  async skip(bytes: number): Promise<number> {
    let missing = bytes;
    while (missing > 0) {
      const part = await this.some(missing);
      if (part === undefined) break;
      missing -= part.length;
    }
    return bytes - missing;
  }

  /** Lets the source clean up where it was not read to its end. */
  async close(): Promise<void> {
    this.#ended = true;
    await this.#source.return?.();
  }
}
