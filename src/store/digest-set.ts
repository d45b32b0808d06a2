// A set of sha256 digests in flat arrays: open addressing, linear probing, 32 bytes a slot. A store
// holds some hundred thousand contents, and a Set of hex strings would cost four times as much.

const DIGEST_BYTES = 32;
/** Words of 32 bits in a digest. */
const WORDS = 8;

/** True where the 32 bytes at `offset` are all zero: no digest. */
export function isZero(digests: Buffer, offset: number): boolean {
  for (let word = 0; word < WORDS; word++) {
    if (digests.readUInt32LE(offset + word * 4) !== 0) return false;
  }
  return true;
}

/** Set of digests. The digest of 32 zero bytes stands for "none" and cannot be a member. */
export class DigestSet {
  /** Words of the digests; slots of zeros are free. */
  #words: Uint32Array;
  #mask: number;
  #size = 0;

  /** @param capacity  members that fit without growing */
  constructor(capacity = 700) {
    let slots = 16;
    while (slots * 0.7 < capacity) slots *= 2;
    this.#words = new Uint32Array(slots * WORDS);
    this.#mask = slots - 1;
  }

  get size(): number {
    return this.#size;
  }

  #isFree(slot: number): boolean {
    const at = slot * WORDS;
    for (let word = at; word < at + WORDS; word++) if (this.#words[word] !== 0) return false;
    return true;
  }

  #holds(slot: number, digests: Buffer, offset: number): boolean {
    const at = slot * WORDS;
    for (let word = 0; word < WORDS; word++) {
      if (this.#words[at + word] !== digests.readUInt32LE(offset + word * 4)) return false;
    }
    return true;
  }

  /** Slot of the digest, or of the free place where it would stand. */
  #find(digests: Buffer, offset: number): number {
    // A sha256 is evenly spread already: its first bytes are the hash.
    let slot = digests.readUInt32LE(offset) & this.#mask;
    while (!this.#isFree(slot) && !this.#holds(slot, digests, offset))
      slot = (slot + 1) & this.#mask;
    return slot;
  }

  /** True where the 32 bytes at `offset` of `digests` are a member. */
  has(digests: Buffer, offset = 0): boolean {
    return !isZero(digests, offset) && !this.#isFree(this.#find(digests, offset));
  }

  /** Adds the 32 bytes at `offset` of `digests`; false where they were in or are zeros. */
  add(digests: Buffer, offset = 0): boolean {
    if (isZero(digests, offset)) return false;
    const slot = this.#find(digests, offset);
    if (!this.#isFree(slot)) return false;
    for (let word = 0; word < WORDS; word++) {
      this.#words[slot * WORDS + word] = digests.readUInt32LE(offset + word * 4);
    }
    this.#size++;
    if (this.#size > (this.#mask + 1) * 0.7) this.#grow();
    return true;
  }

  /** Removes a digest; false where it was not in. */
  delete(digests: Buffer, offset = 0): boolean {
    if (isZero(digests, offset)) return false;
    let hole = this.#find(digests, offset);
    if (this.#isFree(hole)) return false;
    this.#size--;
    // Backward shift: what follows in the same run moves up unless it stands at or after its home.
    for (let slot = (hole + 1) & this.#mask; !this.#isFree(slot); slot = (slot + 1) & this.#mask) {
      const home = this.#words[slot * WORDS]! & this.#mask;
      if (((slot - home) & this.#mask) < ((slot - hole) & this.#mask)) continue;
      this.#words.copyWithin(hole * WORDS, slot * WORDS, (slot + 1) * WORDS);
      hole = slot;
    }
    this.#words.fill(0, hole * WORDS, (hole + 1) * WORDS);
    return true;
  }

  /** Every member, as a copy. */
  *values(): Generator<Buffer> {
    for (let slot = 0; slot <= this.#mask; slot++) if (!this.#isFree(slot)) yield this.#copy(slot);
  }

  #copy(slot: number): Buffer {
    const digest = Buffer.allocUnsafe(DIGEST_BYTES);
    for (let word = 0; word < WORDS; word++) {
      digest.writeUInt32LE(this.#words[slot * WORDS + word]!, word * 4);
    }
    return digest;
  }

  #grow(): void {
    const old = this.#words;
    this.#words = new Uint32Array(old.length * 2);
    this.#mask = this.#words.length / WORDS - 1;
    for (let at = 0; at < old.length; at += WORDS) {
      // The first word of a real digest is zero once in four thousand million: look further then.
      if (old[at] === 0 && old.subarray(at, at + WORDS).every((word) => word === 0)) continue;
      let slot = old[at]! & this.#mask;
      while (!this.#isFree(slot)) slot = (slot + 1) & this.#mask;
      this.#words.set(old.subarray(at, at + WORDS), slot * WORDS);
    }
  }
}
