// Directories of upper/ in which the session looks for names by itself. What does not live here: the names.
//
// What the session goes by: a descriptor of the directory in upper/, and the row of the template that is
// merged into it. Both are the directory's for as long as it has a name, wherever it is moved, with one
// exception: a directory that another is to be renamed over gets a new one in upper/ (rename.ts). It is
// recalled before that, and when it goes.
import type { Core } from './core.ts';
import type { Directory } from './node.ts';

/** Descriptors that the session holds for it. */
const KEPT = 512;

export class LentDirectories {
  readonly #core: Core;
  /** Longest lent first. */
  readonly #lent = new Set<Directory>();

  constructor(core: Core) {
    this.#core = core;
  }

  /** Somebody has looked for a name that is not there: more will follow. */
  missed(directory: Directory): void {
    if (!directory.upper || directory.removed || this.#lent.has(directory)) return;
    const { host, io, log } = this.#core;
    try {
      const fd = io.openDirectory(this.#core.fd(directory), '');
      host.lend(directory.id, fd, directory.row, 0);
    } catch (error) {
      // Only a saving: everything goes on to come to the tree.
      log.debug({ error: String(error) }, 'a directory could not be lent');
      return;
    }
    this.#lent.add(directory);
    for (const oldest of this.#lent) {
      if (this.#lent.size <= KEPT) break;
      this.recall(oldest);
    }
  }

  /** Names in the directory are asked of the tree again. */
  recall(directory: Directory): void {
    if (this.#lent.delete(directory)) this.#core.host.recall(directory.id);
  }
}
