// Little-endian base-128 numbers (as in LEB128), zigzag for signed ones: what the bundle's header is
// written with. A reader trusts nothing: it throws where a number is cut off, too long or not safe.
import { FirstlightError } from '../errors/errors.ts';

/** Largest number of bytes that one number takes: 8 groups of 7 bits hold 2^53 - 1. */
const MAX_BYTES = 8;

/** Collects numbers and raw bytes into one buffer. */
export class VarintWriter {
  #buffer = Buffer.allocUnsafe(1024);
  #at = 0;

  get bytes(): number {
    return this.#at;
  }

  #room(bytes: number): void {
    if (this.#at + bytes <= this.#buffer.length) return;
    const larger = Buffer.allocUnsafe(Math.max(this.#buffer.length * 2, this.#at + bytes));
    this.#buffer.copy(larger, 0, 0, this.#at);
    this.#buffer = larger;
  }

  /** Writes a whole number from 0 to 2^53 - 1. */
  unsigned(value: number): void {
    if (!Number.isSafeInteger(value) || value < 0) {
      throw new FirstlightError('internal', `no varint can hold ${value}`);
    }
    this.#room(MAX_BYTES);
    let rest = value;
    while (rest > 0x7f) {
      this.#buffer[this.#at++] = (rest % 128) | 0x80;
      rest = Math.floor(rest / 128);
    }
    this.#buffer[this.#at++] = rest;
  }

  /** Writes a whole number from -2^52 to 2^52 - 1, small ones of either sign in few bytes. */
  signed(value: number): void {
    this.unsigned(value < 0 ? -2 * value - 1 : 2 * value);
  }

  /** Writes one byte. */
  byte(value: number): void {
    this.#room(1);
    this.#buffer[this.#at++] = value;
  }

  /** Writes bytes as they are. */
  raw(bytes: Uint8Array): void {
    this.#room(bytes.length);
    this.#buffer.set(bytes, this.#at);
    this.#at += bytes.length;
  }

  /** What has been written; a view that the next write may overwrite. */
  done(): Buffer {
    return this.#buffer.subarray(0, this.#at);
  }
}

/** Reads what a {@link VarintWriter} wrote; `field` names the bytes in errors. */
export class VarintReader {
  readonly #bytes: Uint8Array;
  readonly #field: string;
  #at = 0;

  constructor(bytes: Uint8Array, field: string) {
    this.#bytes = bytes;
    this.#field = field;
  }

  /** Bytes that have not been read yet. */
  get left(): number {
    return this.#bytes.length - this.#at;
  }

  #fail(what: string): never {
    throw new FirstlightError('corrupt', `${this.#field}: ${what} at byte ${this.#at}`);
  }

  /** A whole number from 0 to 2^53 - 1. */
  unsigned(): number {
    const bytes = this.#bytes;
    const first = bytes[this.#at];
    if (first === undefined) this.#fail('cut off');
    this.#at++;
    if (first < 0x80) return first;
    let value = first & 0x7f;
    let scale = 128;
    for (let i = 1; i < MAX_BYTES; i++) {
      const byte = bytes[this.#at];
      if (byte === undefined) this.#fail('cut off');
      this.#at++;
      value += (byte & 0x7f) * scale;
      if (byte < 0x80) {
        // One number, one form: a last group of zero would be a second way to write it.
        if (byte === 0 || value > Number.MAX_SAFE_INTEGER) this.#fail('bad number');
        return value;
      }
      scale *= 128;
    }
    return this.#fail('number too long');
  }

  /** A whole number from 0 to `limit`. */
  atMost(limit: number, what: string): number {
    const value = this.unsigned();
    if (value > limit) this.#fail(`${what} is ${value}, more than ${limit}`);
    return value;
  }

  /** A whole number from -2^52 to 2^52 - 1. */
  signed(): number {
    const value = this.unsigned();
    return value % 2 === 0 ? value / 2 : -(value + 1) / 2;
  }

  /** The next byte. */
  byte(): number {
    const byte = this.#bytes[this.#at];
    if (byte === undefined) this.#fail('cut off');
    this.#at++;
    return byte;
  }

  /** A view of the next `length` bytes. */
  raw(length: number): Uint8Array {
    if (length > this.left) this.#fail(`${length} bytes wanted, ${this.left} left`);
    this.#at += length;
    return this.#bytes.subarray(this.#at - length, this.#at);
  }

  /** Throws where bytes are left over. */
  end(): void {
    if (this.left !== 0) this.#fail(`${this.left} bytes too many`);
  }
}
