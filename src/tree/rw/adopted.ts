// What the session answers by itself from a descriptor: opens and attributes of files that are opened again
// and again after they were written; attributes of directories that change again and again, for which the
// kernel asks after each change; extended attributes of the root, whose ACL it never keeps. What does not
// live here: opens that the tree has a say in always, since they empty the file or ask for what promotion
// gave it to last.
//
// Why an open that the session answers cannot be wrong: a file in upper/ that is read from there stays there,
// and the descriptor stays its own, whatever becomes of its names. What else the tree would see to is that
// writes take setuid, setgid and capabilities away: before a file gets any, the session may not open it for
// writing any more (mayGetPrivileges).

import { O_RDONLY } from './abi.ts';
import type { Where } from './attr.ts';
import type { Core } from './core.ts';
import { Directory, FileNode, type Node } from './node.ts';

/** Descriptors that the session holds for it. */
const KEPT = 2048;
/** The same, of files that have been made and perhaps never opened since: they push out none but each other. */
const KEPT_NEW = 1024;
/** Opens for reading that come to the tree before; one for writing alone shows that more will follow. */
const OPENS_BEFORE = 2;
/** Looks at the attributes of a directory that come to the tree before. */
const LOOKS_BEFORE = 2;

export class AdoptedFiles {
  readonly #core: Core;
  /** Longest adopted first. */
  readonly #nodes = new Set<Node>();
  /** Those that the session has made, and adopted with that. */
  readonly #made = new Set<FileNode>();

  constructor(core: Core) {
    this.#core = core;
  }

  /**
   * A file in upper/ is opened.
   * @param writes  for writing
   * @param privileged  a write takes something away from it
   */
  opened(file: FileNode, where: Where, writes: boolean, privileged: () => boolean): void {
    if (this.has(file) || file.state !== 'upper') return;
    if (!writes && ++file.opensForReading <= OPENS_BEFORE) return;
    this.#adopt(file, where, 0, privileged() ? 0 : 1);
  }

  /** The session has made a file, and answers for it. */
  made(file: FileNode): void {
    this.#made.add(file);
    for (const oldest of this.#made) {
      if (this.#made.size <= KEPT_NEW) break;
      this.drop(oldest);
    }
  }

  /** The session answers for it, so it may have been opened, and its attributes given out, without the tree. */
  has(node: Node): boolean {
    return this.#nodes.has(node) || (node instanceof FileNode && this.#made.has(node));
  }

  /** Before a file gets setuid, setgid or a capability. */
  mayGetPrivileges(node: Node): void {
    if (!(node instanceof Directory)) this.drop(node);
  }

  /** Attributes of a directory are asked for. */
  asked(directory: Directory): void {
    if (!directory.upper || directory.removed || this.#nodes.has(directory)) return;
    if (++directory.asked <= LOOKS_BEFORE) return;
    const where = { fd: this.#core.fd(directory), name: '.' };
    if (this.#adopt(directory, where, 2 + directory.subdirectories, 0))
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

  #adopt(node: Node, { fd, name }: Where, links: number, writable: number): boolean {
    const { host, io, log } = this.#core;
    try {
      host.adopt(node.id, io.openFile(fd, name, O_RDONLY), node.ino, links, writable);
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
    if (!this.has(node)) return;
    this.#nodes.delete(node);
    this.#core.host.disown(node.id);
    if (node instanceof Directory) return;
    this.#made.delete(node);
    // What the session has done meanwhile the tree was not told.
    node.mayBeMapped = true;
    node.cached = true;
  }
}
