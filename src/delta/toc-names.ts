// The names section of a TOC while it is being rebuilt: a heap in which equal byte strings stand
// once. A packed TOC says names twice that are equal, so the heap finds them again by hash.
import { FirstlightError } from '../errors/errors.ts';
import { TARGET_MAX } from './toc-layout.ts';

function fail(what: string): never {
  throw new FirstlightError('corrupt', `TOC names: ${what}`);
}

// Odd multiplier and start value of the hash, different in each process: whoever sends a TOC cannot
// choose names that all collide.
const MULTIPLIER = Math.floor(Math.random() * 2 ** 31) * 2 + 1;
const START = Math.floor(Math.random() * 2 ** 32);

/** Heap of byte strings in memory that the caller gave. */
export class NameHeap {
  readonly #memory: Uint8Array;
  readonly #limit: number;
  #mask: number;
  /** Open addressing: hash, offset + 1 (0 = free) and length of each string. */
  #hashes: Int32Array;
  #offsets: Int32Array;
  #lengths: Int32Array;
  #count = 0;
  #targetAt = 0;
  /** Bytes in use. */
  bytes = 0;
  /** Where the last added string stands, and how long it is. */
  offset = 0;
  length = 0;
  #nameOffset = 0;
  #nameLength = 0;

  /**
   * @param memory  at least `limit` + 4096 bytes: a string is written behind the heap before it is
   *                known whether it is new
   * @param limit   bytes that the heap may take in the end
   * @param expected  number of strings to make room for at first
   */
  constructor(memory: Uint8Array, limit: number, expected: number) {
    this.#memory = memory;
    this.#limit = limit;
    let slots = 64;
    while (slots < expected * 2) slots *= 2;
    this.#mask = slots - 1;
    this.#hashes = new Int32Array(slots);
    this.#offsets = new Int32Array(slots);
    this.#lengths = new Int32Array(slots);
  }

  /**
   * Adds the name that shares its first `shared` bytes with the name added before; the rest ends
   * with a NUL in `text` at `textAt`.
   * @returns where the next name begins in `text`
   */
  addName(text: Uint8Array, textAt: number, shared: number, limit: number): number {
    if (shared > this.#nameLength) fail(`${shared} bytes shared with ${this.#nameLength}`);
    const memory = this.#memory;
    const base = this.bytes;
    let hash = START;
    for (let i = 0; i < shared; i++) {
      const byte = memory[this.#nameOffset + i]!;
      memory[base + i] = byte;
      hash = Math.imul(hash ^ byte, MULTIPLIER);
      hash ^= hash >>> 15;
    }
    const end = this.#append(text, textAt, shared, limit, hash);
    this.#nameOffset = this.offset;
    this.#nameLength = this.length;
    return end;
  }

  /** Adds the next target of a symlink. */
  addTarget(targets: Uint8Array): void {
    this.#targetAt = this.#append(targets, this.#targetAt, 0, TARGET_MAX, START);
  }

  /** Throws where targets are left over. */
  end(targets: Uint8Array): void {
    if (this.#targetAt !== targets.length) fail('targets left over');
  }

  #append(
    text: Uint8Array,
    textAt: number,
    shared: number,
    limit: number,
    startHash: number,
  ): number {
    const memory = this.#memory;
    const base = this.bytes;
    let hash = startHash;
    let length = shared;
    let at = textAt;
    for (;;) {
      if (at >= text.length) fail('the last one has no end');
      const byte = text[at++]!;
      if (byte === 0) break;
      if (length === limit) fail(`one is longer than ${limit} bytes`);
      memory[base + length++] = byte;
      hash = Math.imul(hash ^ byte, MULTIPLIER);
      hash ^= hash >>> 15;
    }
    if (length === 0) fail('an empty one');
    this.#place(hash, length);
    return at;
  }

  /** Finds the string that stands behind the heap, or makes it part of the heap. */
  #place(hash: number, length: number): void {
    const memory = this.#memory;
    const base = this.bytes;
    let slot = hash & this.#mask;
    for (; this.#offsets[slot] !== 0; slot = (slot + 1) & this.#mask) {
      if (this.#hashes[slot] !== hash || this.#lengths[slot] !== length) continue;
      const known = this.#offsets[slot]! - 1;
      let i = 0;
      while (i < length && memory[known + i] === memory[base + i]) i++;
      if (i < length) continue;
      this.offset = known;
      this.length = length;
      return;
    }
    if (base + length > this.#limit) fail(`more than the declared ${this.#limit} bytes`);
    this.#hashes[slot] = hash;
    this.#offsets[slot] = base + 1;
    this.#lengths[slot] = length;
    this.offset = base;
    this.length = length;
    this.bytes += length;
    if (++this.#count * 2 > this.#mask) this.#grow();
  }

  #grow(): void {
    const { length } = this.#hashes;
    const [hashes, offsets, lengths] = [this.#hashes, this.#offsets, this.#lengths];
    this.#mask = length * 2 - 1;
    this.#hashes = new Int32Array(length * 2);
    this.#offsets = new Int32Array(length * 2);
    this.#lengths = new Int32Array(length * 2);
    for (let i = 0; i < length; i++) {
      if (offsets[i] === 0) continue;
      let slot = hashes[i]! & this.#mask;
      while (this.#offsets[slot] !== 0) slot = (slot + 1) & this.#mask;
      this.#hashes[slot] = hashes[i]!;
      this.#offsets[slot] = offsets[i]!;
      this.#lengths[slot] = lengths[i]!;
    }
  }
}
