// A large content while its parts arrive, in any order, in its own file of incoming/. What does not
// live here: contents of one part (arrivals.ts), and what is told to whom.
//
// After kill -9 the parts' hashes decide what of the file counts. After power loss too: the slot of
// a part and its bytes may reach the disk in either order, and only both together are believed.
import { createHash, type Hash } from 'node:crypto';
import { open } from 'node:fs/promises';
import { PART_BYTES } from '../delta/toc-layout.ts';
import type { ContentStore } from '../store/contents.ts';
import type { StoreIo } from '../store/io.ts';

/** Size and place of a large content. */
export interface PartialFacts {
  content: number;
  /** Bytes of the whole. */
  bytes: number;
  /** Number of its first part through all contents, and of its parts. */
  firstPart: number;
  parts: number;
  path: string;
}

/** One large content that is not whole yet. */
export class PartialContent {
  readonly facts: PartialFacts;
  readonly #io: StoreIo;
  /** Hash of the first `#hashed` parts: saves reading back a content that arrives in order. */
  #hash: Hash = createHash('sha256');
  #hashed = 0;

  constructor(facts: PartialFacts, io: StoreIo) {
    this.facts = facts;
    this.#io = io;
  }

  /** Writes parts at their places. `index` counts within the content. */
  async write(parts: { index: number; data: Buffer }[]): Promise<void> {
    const file = await this.#io.openForParts(this.facts.path);
    try {
      for (const { index, data } of parts) {
        // Bytes that were hashed are replaced (a write after them had failed): all is read back.
        if (index < this.#hashed) this.#forget();
        await this.#io.writeAt(file, data, index * PART_BYTES);
        if (index !== this.#hashed) continue;
        this.#hash.update(data);
        this.#hashed++;
      }
    } finally {
      await file.close();
    }
  }

  /**
   * Indexes of the parts in the file that match their slots; used after a restart.
   * @param slots  sha256 of each part of the image, zeros where unknown, 32 bytes each
   */
  async check(slots: Buffer): Promise<number[]> {
    const found: number[] = [];
    const { path, parts, bytes, firstPart } = this.facts;
    const file = await open(path, 'r');
    try {
      const part = Buffer.allocUnsafe(PART_BYTES);
      for (let index = 0; index < parts; index++) {
        const at = (firstPart + index) * 32;
        const length = Math.min(PART_BYTES, bytes - index * PART_BYTES);
        const { bytesRead } = await file.read(part, 0, length, index * PART_BYTES);
        if (bytesRead < length) continue;
        const digest = createHash('sha256').update(part.subarray(0, length)).digest();
        if (digest.compare(slots, at, at + 32) !== 0) continue;
        if (index === this.#hashed) {
          this.#hash.update(part.subarray(0, length));
          this.#hashed++;
        }
        found.push(index);
      }
    } finally {
      await file.close();
    }
    return found;
  }

  /**
   * Verifies the whole, which must be there, and gives it to the store under its own name.
   * @returns false where the whole does not have this digest: the file is gone then
   */
  async finish(hex: string, contents: ContentStore): Promise<boolean> {
    if ((await this.#digest()) !== hex) {
      await this.discard();
      return false;
    }
    await this.#io.seal(this.facts.path);
    await contents.adoptFile(this.facts.path, hex, this.facts.bytes);
    return true;
  }

  async #digest(): Promise<string> {
    const { path, parts, bytes } = this.facts;
    if (this.#hashed < parts) {
      const file = await open(path, 'r');
      try {
        const part = Buffer.allocUnsafe(PART_BYTES);
        for (; this.#hashed < parts; this.#hashed++) {
          const at = this.#hashed * PART_BYTES;
          const { bytesRead } = await file.read(part, 0, Math.min(PART_BYTES, bytes - at), at);
          this.#hash.update(part.subarray(0, bytesRead));
        }
      } finally {
        await file.close();
      }
    }
    // A copy, so that a finish that fails later on (a full disk) can be tried again.
    return this.#hash.copy().digest('hex');
  }

  /** Removes the file and forgets what was hashed. */
  async discard(): Promise<void> {
    this.#forget();
    await this.#io.remove(this.facts.path);
  }

  #forget(): void {
    this.#hash = createHash('sha256');
    this.#hashed = 0;
  }
}
