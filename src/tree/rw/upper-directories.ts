// Descriptors of directories in upper/, kept for the next call: O_PATH, so a directory that is moved
// keeps its own. What does not live here: which directories there are.
import type { NativeUpper } from '../../native/upper.ts';
import type { Directory } from './node.ts';

/** Descriptors that stay open between operations. */
const KEPT = 1024;

export class UpperDirectories {
  readonly #io: NativeUpper;
  readonly #root: number;
  /** Least recently used first. */
  readonly #open = new Map<Directory, number>();
  readonly #kept: number;

  /** @param root  descriptor of upper/ itself, taken over */
  constructor(io: NativeUpper, root: number, kept = KEPT) {
    this.#io = io;
    this.#root = root;
    this.#kept = kept;
  }

  /**
   * Descriptor of a directory that is in upper/; valid until the next `trim` or `drop`.
   * @throws errors of openat(2)
   */
  fd(directory: Directory): number {
    const missing: Directory[] = [];
    let fd = this.#root;
    for (let at = directory; at.parent !== at; at = at.parent) {
      const known = this.#open.get(at);
      if (known !== undefined) {
        fd = known;
        this.#open.delete(at);
        this.#open.set(at, known);
        break;
      }
      missing.push(at);
    }
    for (let i = missing.length - 1; i >= 0; i--) {
      const next = missing[i]!;
      fd = this.#io.openDirectory(fd, next.name);
      this.#open.set(next, fd);
    }
    return fd;
  }

  /** Closes what is too much; between two operations, since one may use several. */
  trim(): void {
    for (const [directory, fd] of this.#open) {
      if (this.#open.size <= this.#kept) return;
      this.#open.delete(directory);
      this.#io.close(fd);
    }
  }

  /** The directory is gone. */
  drop(directory: Directory): void {
    const fd = this.#open.get(directory);
    if (fd === undefined) return;
    this.#open.delete(directory);
    this.#io.close(fd);
  }

  close(): void {
    for (const fd of this.#open.values()) this.#io.close(fd);
    this.#open.clear();
    this.#io.close(this.#root);
  }
}
