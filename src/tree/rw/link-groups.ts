// Which names of the template share an inode.
import type { Toc } from '../../delta/toc.ts';

/** Hard links of a template, found by one pass when the first is asked for. */
export class LinkGroups {
  readonly #toc: Toc;
  #groups: Map<number, number[]> | undefined;

  constructor(toc: Toc) {
    this.#toc = toc;
  }

  /** All rows of an inode that is no directory. */
  rows(inode: number): readonly number[] {
    if (this.#toc.nlink(inode) < 2) return [inode];
    return this.all().get(inode) ?? [inode];
  }

  /** Inodes with several names, each with its rows in order. */
  all(): ReadonlyMap<number, readonly number[]> {
    if (this.#groups !== undefined) return this.#groups;
    const toc = this.#toc;
    const groups = new Map<number, number[]>();
    for (let row = 1; row < toc.rows; row++) {
      if (toc.nlink(row) < 2 || toc.isDirectory(row)) continue;
      const inode = toc.inode(row);
      const rows = groups.get(inode);
      if (rows === undefined) groups.set(inode, [row]);
      else rows.push(row);
    }
    this.#groups = groups;
    return groups;
  }
}
