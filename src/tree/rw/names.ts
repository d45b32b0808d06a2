// The names of one directory that stand in upper/, with their order for listings. What does not live
// here: the template's names, which stand for themselves as long as none of these covers them.
import type { Directory, FileNode } from './node.ts';

/** Cookies of names that are in no template begin here: 32 bits are for rows. */
export const FIRST_OWN_COOKIE = 2 ** 32;
/** Cookie of a template's name minus its row, as native counts: 1 and 2 are "." and "..". */
export const ROW_COOKIE = 2;
/** Holes in the order that are borne before it is made anew. */
const HOLES_MIN = 64;

/** One name that stands in upper/. */
export interface Slot {
  readonly directory: Directory;
  readonly name: string;
  readonly cookie: number;
  /** undefined: a whiteout. */
  node: Directory | FileNode | undefined;
}

/** Names of one directory in upper/. */
export class Names {
  readonly #slots = new Map<string, Slot>();
  /** Slots with own cookies, ascending; those that are no longer in #slots are holes. */
  #order: Slot[] = [];
  #own = 0;
  #nextCookie = FIRST_OWN_COOKIE;

  get(name: string): Slot | undefined {
    return this.#slots.get(name);
  }

  /**
   * A node, or undefined as a whiteout, stands under the name from now on. A name that is there
   * keeps its place in listings.
   * @param row  of the template's name that it covers, or -1
   */
  put(directory: Directory, name: string, row: number, node: Slot['node']): Slot {
    const known = this.#slots.get(name);
    if (known !== undefined) {
      known.node = node;
      return known;
    }
    const cookie = row >= 0 ? row + ROW_COOKIE : this.#nextCookie++;
    const slot: Slot = { directory, name, cookie, node };
    this.#slots.set(name, slot);
    if (row < 0) {
      this.#order.push(slot);
      this.#own++;
    }
    return slot;
  }

  delete(name: string): void {
    const slot = this.#slots.get(name);
    if (slot === undefined) return;
    this.#slots.delete(name);
    if (slot.cookie < FIRST_OWN_COOKIE) return;
    this.#own--;
    if (this.#order.length > 2 * this.#own + HOLES_MIN) {
      this.#order = this.#order.filter((other) => this.#slots.get(other.name) === other);
    }
  }

  values(): IterableIterator<Slot> {
    return this.#slots.values();
  }

  /** Slots with own cookies above `cookie`, whiteouts included. The names may change between two steps. */
  *after(cookie: number): Generator<Slot> {
    for (let last = cookie; ; ) {
      const slot = this.#next(last);
      if (slot === undefined) return;
      last = slot.cookie;
      yield slot;
    }
  }

  #next(cookie: number): Slot | undefined {
    let low = 0;
    let high = this.#order.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if (this.#order[middle]!.cookie <= cookie) low = middle + 1;
      else high = middle;
    }
    for (; low < this.#order.length; low++) {
      const slot = this.#order[low]!;
      if (this.#slots.get(slot.name) === slot) return slot;
    }
    return undefined;
  }
}
