// Directories of upper/ in which the session looks for names, makes files and removes them by itself. What
// does not live here: the names.
//
// What the session goes by: a descriptor of the directory in upper/, the row of the template that is merged
// into it, and that it has no default ACL. The first two are the directory's for as long as it has a name,
// wherever it is moved, with one exception: a directory that another is to be renamed over gets a new one in
// upper/ (rename.ts). It is recalled before that, when it goes, and when its default ACL changes.
//
// The session changes nothing while the tree works on a request, and tells what it has done before the next
// one begins. So it is enough that all of this is true whenever no request is being worked on.
import type { Core } from './core.ts';
import { hasDefaultAcl } from './make.ts';
import { type Directory, FileNode } from './node.ts';
import { nameGone } from './remove.ts';

/** Descriptors that the session holds for it. */
const KEPT = 512;
/** Node ids that the session gets at a time, and how many it has left when it gets more. */
const LEASE = 1024;
const LEASE_LEFT = 256;

export class LentDirectories {
  readonly #core: Core;
  /** Longest lent first. */
  readonly #lent = new Set<Directory>();
  /** Node ids that the session has. */
  #leased = 0;

  constructor(core: Core) {
    this.#core = core;
  }

  /** Somebody has looked for a name that is not there: more will follow. */
  missed(directory: Directory): void {
    if (!directory.upper || directory.removed || this.#lent.has(directory)) return;
    const { host, io, log } = this.#core;
    try {
      // With it, permissions of new files are not what their makers ask for.
      const changes = hasDefaultAcl(this.#core, directory) ? 0 : 1;
      const fd = io.openDirectory(this.#core.fd(directory), '');
      host.lend(directory.id, fd, directory.row, changes);
    } catch (error) {
      // Only a saving: everything goes on to come to the tree.
      log.debug({ error: String(error) }, 'a directory could not be lent');
      return;
    }
    this.#lent.add(directory);
    this.#lease();
    for (const oldest of this.#lent) {
      if (this.#lent.size <= KEPT) break;
      this.recall(oldest);
    }
  }

  /** Names in the directory are asked of the tree again. */
  recall(directory: Directory): void {
    if (this.#lent.delete(directory)) this.#core.host.recall(directory.id);
  }

  #lease(): void {
    if (this.#leased >= LEASE_LEFT) return;
    this.#core.host.leaseNodes(this.#core.leaseNodes(LEASE), LEASE);
    this.#leased += LEASE;
  }

  /** The session has made a file, which is open, and adopted it. @param writable  for reading and writing */
  created(parent: Directory, name: string, node: number, ino: number, writable: boolean): void {
    const file = new FileNode(node, ino, -1, 'upper');
    file.lookups = 1;
    // Nothing else is made without the tree.
    file.privileged = false;
    file.mayBeMapped = writable;
    this.#core.files.set(node, file);
    file.places.add(parent.names.put(parent, name, -1, file));
    this.#core.adopted.made(file);
    this.#leased--;
    this.#lease();
  }

  /**
   * The session has removed the only name of a file.
   * @param fd  O_PATH descriptor of the file, taken over
   */
  removed(parent: Directory, name: string, fd: number): void {
    const file = parent.slot(name)?.node;
    if (!(file instanceof FileNode) || file.places.size !== 1) {
      this.#core.io.close(fd);
      throw new Error(`a file that is not known has been removed from node ${parent.id}`);
    }
    parent.names.delete(name);
    nameGone(this.#core, file, parent, name, { fd, last: undefined });
  }
}
