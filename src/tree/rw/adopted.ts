// Files whose opens for reading, and attributes, the session answers by itself from a descriptor: those
// that are read again and again after they were written. What does not live here: opens for writing,
// which come to the tree always.

import { O_RDONLY } from './abi.ts';
import { isMapped, type Where } from './attr.ts';
import type { Core } from './core.ts';
import type { FileNode } from './node.ts';

/** Descriptors that the session holds for it. */
const KEPT = 2048;
/** Opens for reading that come to the tree before. */
const OPENS_BEFORE = 2;

export class AdoptedFiles {
  readonly #core: Core;
  /** Longest adopted first. */
  readonly #files = new Set<FileNode>();

  constructor(core: Core) {
    this.#core = core;
  }

  /**
   * A file in upper/ is opened for reading. Where it is open already it stays with the tree: what is open
   * for writing may be mapped, and then its attributes are not to be kept.
   */
  opened(file: FileNode, where: Where): void {
    const { host, io, log } = this.#core;
    if (++file.opensForReading <= OPENS_BEFORE || this.#files.has(file)) return;
    if (file.state !== 'upper' || host.openHandles(file.id) > 0 || isMapped(this.#core, file))
      return;
    try {
      host.adopt(file.id, io.openFile(where.fd, where.name, O_RDONLY), file.ino);
    } catch (error) {
      // Only a saving: every open goes on to come to the tree.
      log.debug({ error: String(error) }, 'a file could not be adopted');
      return;
    }
    file.cached = true;
    this.#files.add(file);
    for (const oldest of this.#files) {
      if (this.#files.size <= KEPT) return;
      this.drop(oldest);
    }
  }

  /** The tree answers for the file again. */
  drop(file: FileNode): void {
    if (this.#files.delete(file)) this.#core.host.disown(file.id);
  }
}
