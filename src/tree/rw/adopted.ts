// What the session answers by itself from a descriptor: opens for reading, and attributes, of files that are
// read again and again after they were written; attributes of directories that change again and again, for
// which the kernel asks after each change; extended attributes of the root, whose ACL it never keeps. What
// does not live here: opens for writing, which come to the tree always.

import { O_RDONLY } from './abi.ts';
import { isMapped, type Where } from './attr.ts';
import type { Core } from './core.ts';
import { Directory, type FileNode, type Node } from './node.ts';

/** Descriptors that the session holds for it. */
const KEPT = 2048;
/** Opens for reading that come to the tree before. */
const OPENS_BEFORE = 2;
/** Looks at the attributes of a directory that come to the tree before. */
const LOOKS_BEFORE = 2;

export class AdoptedFiles {
  readonly #core: Core;
  /** Longest adopted first. */
  readonly #nodes = new Set<Node>();

  constructor(core: Core) {
    this.#core = core;
  }

  /**
   * A file in upper/ is opened for reading. Where it is open already it stays with the tree: what is open
   * for writing may be mapped, and then its attributes are not to be kept.
   */
  opened(file: FileNode, where: Where): void {
    const { host } = this.#core;
    if (++file.opensForReading <= OPENS_BEFORE || this.#nodes.has(file)) return;
    if (file.state !== 'upper' || host.openHandles(file.id) > 0 || isMapped(this.#core, file))
      return;
    if (this.#adopt(file, where, 0)) file.cached = true;
  }

  /** Attributes of a directory are asked for. */
  asked(directory: Directory): void {
    if (!directory.upper || directory.removed || this.#nodes.has(directory)) return;
    if (++directory.asked <= LOOKS_BEFORE) return;
    const where = { fd: this.#core.fd(directory), name: '.' };
    if (this.#adopt(directory, where, 2 + directory.subdirectories))
      directory.disown = () => this.drop(directory);
  }

  /** The root is in upper/ from the start, and stays there. */
  holdRoot(): void {
    const { host, io, log, root } = this.#core;
    try {
      host.holdRoot(io.openFile(this.#core.fd(root), '', O_RDONLY));
    } catch (error) {
      // Only a saving, as below.
      log.debug({ error: String(error) }, 'the root could not be held');
    }
  }

  #adopt(node: Node, { fd, name }: Where, links: number): boolean {
    const { host, io, log } = this.#core;
    try {
      host.adopt(node.id, io.openFile(fd, name, O_RDONLY), node.ino, links);
    } catch (error) {
      // Only a saving: everything goes on to come to the tree.
      log.debug({ error: String(error) }, 'a file could not be adopted');
      return false;
    }
    this.#nodes.add(node);
    for (const oldest of this.#nodes) {
      if (this.#nodes.size <= KEPT) break;
      this.drop(oldest);
    }
    return true;
  }

  /** The tree answers for the node again. */
  drop(node: Node): void {
    if (node instanceof Directory) {
      node.disown = undefined;
      node.asked = 0;
    }
    if (this.#nodes.delete(node)) this.#core.host.disown(node.id);
  }
}
