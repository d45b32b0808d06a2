// Entries of a tree, for callers that know nothing of FUSE: tests, listings, the portable session.
// TemplateEntry is one TOC row, immutable and shared; FsEntry is the same file as one mount sees it,
// made only when it diverges. What does not live here: how a change reaches the kernel.
import type { Toc } from '../delta/toc.ts';
import { FirstlightError } from '../errors/errors.ts';
import { S_IF } from '../image/tree.ts';
import { type FileEvent, type FileState, transition } from './file-state.ts';

/** Attributes as stat(2) gives them. */
export interface Attributes {
  /** Inode number: row of the inode + 1, the same for all names of a hard link. */
  ino: number;
  /** Type and permission bits. */
  mode: number;
  nlink: number;
  uid: number;
  gid: number;
  /** Device number as new_encode_dev; 0 where the file is no device. */
  rdev: number;
  size: number;
  /** Blocks of 512 bytes; a file that has not arrived counts as if it were all there. */
  blocks: number;
  mtimeSec: number;
  mtimeNsec: number;
}

const BLOCK_BYTES = 512;
const S_IFMT = 0o170000;

/** One row of a TOC. Two entries of the same row are equal in every answer. */
export class TemplateEntry {
  readonly toc: Toc;
  readonly row: number;

  constructor(toc: Toc, row: number) {
    this.toc = toc;
    this.row = row;
  }

  /** Name as a byte string; empty for the root. */
  get name(): string {
    return this.toc.name(this.row);
  }

  /** Path from the root as a byte string, without a slash at its start; empty for the root. */
  get path(): string {
    return this.toc.path(this.row);
  }

  get isRoot(): boolean {
    return this.row === 0;
  }

  get isDirectory(): boolean {
    return this.toc.isDirectory(this.row);
  }

  /** The directory that holds the entry; the root's is the root. */
  get parent(): TemplateEntry {
    return new TemplateEntry(this.toc, this.toc.parent(this.row));
  }

  /** Content index of a regular file with bytes, or -1. */
  get content(): number {
    return this.toc.content(this.row);
  }

  attributes(): Attributes {
    const { toc, row } = this;
    const size = toc.size(row);
    const type = toc.mode(row) & S_IFMT;
    const stored = type === S_IF.file || type === S_IF.dir;
    return {
      ino: toc.inode(row) + 1,
      mode: toc.mode(row),
      nlink: toc.nlink(row),
      uid: toc.uid(row),
      gid: toc.gid(row),
      rdev: toc.rdev(row),
      size,
      blocks: stored ? Math.ceil(size / BLOCK_BYTES) : 0,
      mtimeSec: toc.mtimeSec(row),
      mtimeNsec: toc.mtimeNsec(row),
    };
  }

  /** The child of this name (a byte string), or undefined; also where this is no directory. */
  lookup(name: string): TemplateEntry | undefined {
    const row = this.toc.lookup(this.row, Buffer.from(name, 'latin1'));
    return row < 0 ? undefined : new TemplateEntry(this.toc, row);
  }

  /** The children of a directory, in the order of their names; none for anything else. */
  *children(): Generator<TemplateEntry> {
    if (!this.isDirectory) return;
    const { first, end } = this.toc.children(this.row);
    for (let row = first; row < end; row++) yield new TemplateEntry(this.toc, row);
  }

  /** Target of a symlink as a byte string, or undefined. */
  target(): string | undefined {
    return this.toc.isSymlink(this.row) ? this.toc.target(this.row).toString('latin1') : undefined;
  }

  /** Extended attributes, full name (byte string) to value. */
  xattrs(): Map<string, Buffer> {
    return this.toc.xattrs(this.row);
  }

  /**
   * The entry of a path below this one. Symlinks are not followed; `..` is a name like any other and
   * no tree has it.
   */
  resolve(path: string): TemplateEntry | undefined {
    let entry: TemplateEntry | undefined = this;
    for (const name of path.split('/')) {
      if (name === '' || name === '.') continue;
      entry = entry.lookup(name);
      if (entry === undefined) return undefined;
    }
    return entry;
  }
}

/**
 * An entry that one mount sees differently from its template, or is about to. Its state is read and
 * changed on the JavaScript thread only, so a read and the change after it are one step as long as
 * nothing is awaited between them.
 */
export class FsEntry {
  readonly template: TemplateEntry;
  #state: FileState;

  constructor(template: TemplateEntry, state: FileState) {
    this.template = template;
    this.#state = state;
  }

  get state(): FileState {
    return this.#state;
  }

  /**
   * Moves the state by an event.
   * @throws FirstlightError 'internal' where the event cannot happen in the present state
   */
  apply(event: FileEvent): FileState {
    const next = transition(this.#state, event);
    if (next === undefined) {
      const path = this.template.path;
      throw new FirstlightError('internal', `${path}: ${event} in state ${this.#state}`);
    }
    this.#state = next;
    return next;
  }

  /** Attributes; those of the template until the entry has its own. */
  attributes(): Attributes {
    return this.template.attributes();
  }
}
