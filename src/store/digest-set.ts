// A set of sha256 digests in one buffer: open addressing, linear probing, 32 bytes a slot. A store
// holds some hundred thousand contents, and a Set of hex strings would cost four times as much.

const SLOT = 32;
const ZERO = Buffer.alloc(SLOT);

/** True where the 32 bytes at `offset` are all zero: no digest. */
export function isZero(digests: Buffer, offset: number): boolean {
  return digests.compare(ZERO, 0, SLOT, offset, offset + SLOT) === 0;
}

/** Set of digests. The digest of 32 zero bytes stands for "none" and cannot be a member. */
export class DigestSet {
  #slots: Buffer;
  #mask: number;
  #size = 0;

  constructor(capacity = 1024) {
    let slots = 16;
    while (slots * 0.7 < capacity) slots *= 2;
    this.#slots = Buffer.alloc(slots * SLOT);
    this.#mask = slots - 1;
  }

  get size(): number {
    return this.#size;
  }

  /** Slot of the digest, or of the empty place where it would stand. */
  #find(digests: Buffer, offset: number): number {
    // A sha256 is evenly spread already: its first bytes are the hash.
    let slot = digests.readUInt32LE(offset) & this.#mask;
    for (;;) {
      const at = slot * SLOT;
      if (isZero(this.#slots, at)) return slot;
      if (this.#slots.compare(digests, offset, offset + SLOT, at, at + SLOT) === 0) return slot;
      slot = (slot + 1) & this.#mask;
    }
  }

  /** True where the 32 bytes at `offset` of `digests` are a member. */
  has(digests: Buffer, offset = 0): boolean {
    if (isZero(digests, offset)) return false;
    return !isZero(this.#slots, this.#find(digests, offset) * SLOT);
  }

  /** Adds the 32 bytes at `offset` of `digests`; false where they were in or are zeros. */
  add(digests: Buffer, offset = 0): boolean {
    if (isZero(digests, offset)) return false;
    const at = this.#find(digests, offset) * SLOT;
    if (!isZero(this.#slots, at)) return false;
    digests.copy(this.#slots, at, offset, offset + SLOT);
    this.#size++;
    if (this.#size > (this.#mask + 1) * 0.7) this.#grow();
    return true;
  }

  /** Removes a digest; false where it was not in. */
  delete(digests: Buffer, offset = 0): boolean {
    if (isZero(digests, offset)) return false;
    let hole = this.#find(digests, offset);
    if (isZero(this.#slots, hole * SLOT)) return false;
    this.#size--;
    // Backward shift: what follows in the same run moves up unless it stands at or after its home.
    let slot = hole;
    for (;;) {
      slot = (slot + 1) & this.#mask;
      const at = slot * SLOT;
      if (isZero(this.#slots, at)) break;
      const home = this.#slots.readUInt32LE(at) & this.#mask;
      if (((slot - home) & this.#mask) < ((slot - hole) & this.#mask)) continue;
      this.#slots.copy(this.#slots, hole * SLOT, at, at + SLOT);
      hole = slot;
    }
    this.#slots.fill(0, hole * SLOT, hole * SLOT + SLOT);
    return true;
  }

  /** Every member, as a view that is valid until the set changes. */
  *values(): Generator<Buffer> {
    for (let at = 0; at < this.#slots.length; at += SLOT) {
      if (!isZero(this.#slots, at)) yield this.#slots.subarray(at, at + SLOT);
    }
  }

  #grow(): void {
    const old = this.#slots;
    this.#slots = Buffer.alloc(old.length * 2);
    this.#mask = this.#slots.length / SLOT - 1;
    for (let at = 0; at < old.length; at += SLOT) {
      if (!isZero(old, at)) old.copy(this.#slots, this.#find(old, at) * SLOT, at, at + SLOT);
    }
  }
}
