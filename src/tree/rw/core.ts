// What all operations of a writable tree share: the merged view (which node stands under which name),
// identity, thawing. What does not live here: any change (make.ts, remove.ts, rename.ts, promote.ts,
// attr.ts, xattr.ts), and the rebuilding of it all at the start (scan.ts).
//
// The merged view: a directory shows the names of its template row that no slot covers, and its slots
// that are no whiteouts. A slot stands for every name that upper/ holds, and for nothing else. Files
// and directories that nobody has touched have no object here: they are rows.
//
// Thawing: native threads answer for a node from the template until it is thawed. A node is thawed
// before anything that native would answer for it becomes wrong: that is so for everything in upper/,
// for its parents (whose LOOKUP carries the attributes of the child), and for a hard link whose
// other names go, with the parents of all its names.
import type { Toc } from '../../delta/toc.ts';
import type { Logger } from '../../log/log.ts';
import { FIRST_OWN_NODE } from '../../native/upcalls.ts';
import type { NativeUpper } from '../../native/upper.ts';
import { fail, NAME_MAX } from './abi.ts';
import { AdoptedFiles } from './adopted.ts';
import { CopyJobs } from './copy-jobs.ts';
import { LentDirectories } from './lent.ts';
import { LinkGroups } from './link-groups.ts';
import { Directory, FileNode, isOwn, type Node } from './node.ts';
import type { TreeHost } from './operations.ts';
import type { UpperDirectories } from './upper-directories.ts';

/** st_ino of a file that is in no template: this much more than that of the file in upper/. */
export const OWN_INO = 2 ** 32;
/** Names that the work directory's entries get. */
const WORK_PREFIX = 'new-';

/** What stands under a name: an object, or the row of the template's inode where nobody has touched it. */
export type Child = Node | number;

export interface CoreOptions {
  toc: Toc;
  io: NativeUpper;
  host: TreeHost;
  openContent(content: number): number | undefined;
  log: Logger;
  upperDirectories: UpperDirectories;
  /** Descriptor of work/. */
  work: number;
  /** How long a copy waits for whoever asked for it, ms. */
  unclaimedMs?: number | undefined;
}

export class Core {
  readonly toc: Toc;
  readonly io: NativeUpper;
  readonly host: TreeHost;
  readonly openContent: (content: number) => number | undefined;
  readonly log: Logger;
  readonly upperDirectories: UpperDirectories;
  readonly work: number;
  readonly root: Directory;
  /** By node id. Directories that are in the template and untouched may have no object. */
  readonly directories = new Map<number, Directory>();
  /** By node id, former ids included. */
  readonly files = new Map<number, FileNode>();
  readonly groups: LinkGroups;
  readonly copies: CopyJobs;
  readonly adopted: AdoptedFiles;
  readonly lent: LentDirectories;
  readonly #thawed = new Set<number>();
  #nextNode = FIRST_OWN_NODE;
  #nextWork = 0;

  constructor(options: CoreOptions) {
    this.toc = options.toc;
    this.io = options.io;
    this.host = options.host;
    this.openContent = options.openContent;
    this.log = options.log;
    this.upperDirectories = options.upperDirectories;
    this.work = options.work;
    this.groups = new LinkGroups(options.toc);
    this.copies = new CopyJobs(this, options.unclaimedMs);
    this.adopted = new AdoptedFiles(this);
    this.lent = new LentDirectories(this);
    this.root = this.#addDirectory(0, undefined, '');
    this.root.upper = true;
  }

  /** Descriptor of a directory that is in upper/. */
  fd(directory: Directory): number {
    return this.upperDirectories.fd(directory);
  }

  /** A name in work/ that nothing has. */
  workName(): string {
    return WORK_PREFIX + this.#nextWork++;
  }

  nextNode(): number {
    return this.#nextNode++;
  }

  /** Node ids that somebody else gives out; the first of them. */
  leaseNodes(count: number): number {
    const first = this.#nextNode;
    this.#nextNode += count;
    return first;
  }

  /** Requests on the node come to the tree from now on. */
  thaw(node: number): void {
    if (isOwn(node) || this.#thawed.has(node)) return;
    this.host.thaw(node);
    this.#thawed.add(node);
  }

  // Names.

  /** Row of the template's name in a directory, or -1. */
  rowOf(directory: Directory, name: string): number {
    return directory.row < 0 ? -1 : this.toc.lookup(directory.row, Buffer.from(name, 'latin1'));
  }

  /** What stands under a name, or undefined. */
  child(directory: Directory, name: string): Child | undefined {
    const slot = directory.slot(name);
    if (slot !== undefined) return slot.node;
    const row = this.rowOf(directory, name);
    return row < 0 ? undefined : this.childOfRow(row);
  }

  /** The same for a row of the template that no slot covers. */
  childOfRow(row: number): Child {
    if (this.toc.isDirectory(row)) return this.directories.get(row + 1) ?? row;
    const inode = this.toc.inode(row);
    return this.files.get(inode + 1) ?? inode;
  }

  /** The object of a child, made where there is none yet. */
  nodeOf(child: Child, directory: Directory, name: string): Node {
    if (typeof child !== 'number') return child;
    return this.toc.isDirectory(child)
      ? this.#addDirectory(child, directory, name)
      : this.fileOfRow(child);
  }

  /** The object of a template's inode that is no directory. */
  fileOfRow(inode: number): FileNode {
    const known = this.files.get(inode + 1);
    if (known !== undefined) return known;
    const file = new FileNode(inode + 1, inode + 1, inode, 'template', this.toc.nlink(inode));
    this.files.set(file.id, file);
    return file;
  }

  /** A name as it may be made. */
  checkName(name: string): void {
    if (name.length > NAME_MAX) throw fail('ENAMETOOLONG', 'name');
    if (name === '' || name === '.' || name === '..') throw fail('EEXIST', name);
  }

  // Directories.

  /**
   * The directory of a node id that a caller names.
   * @throws Errno ENOTDIR, ENOENT of one that was removed, ESTALE of a node that never was
   */
  directory(id: number): Directory {
    const directory = this.anyDirectory(id);
    if (directory.removed) throw fail('ENOENT', 'removed directory');
    return directory;
  }

  /** The same, removed ones too. */
  anyDirectory(id: number): Directory {
    const known = this.directories.get(id);
    if (known !== undefined) return known;
    if (this.files.has(id)) throw fail('ENOTDIR', `node ${id}`);
    if (isOwn(id) || id < 1 || id > this.toc.rows) throw fail('ESTALE', `node ${id}`);
    if (!this.toc.isDirectory(id - 1)) throw fail('ENOTDIR', `node ${id}`);
    const directory = this.directoryOfRow(id - 1);
    if (directory === undefined) throw fail('ESTALE', `node ${id}`);
    return directory;
  }

  /**
   * The directory that shows a directory row of the template, wherever it stands now; undefined where
   * it is in the view no more.
   */
  directoryOfRow(row: number): Directory | undefined {
    const missing: number[] = [];
    let found: Directory | undefined;
    for (let at = row; ; at = this.toc.parent(at)) {
      found = this.directories.get(at + 1);
      if (found !== undefined) {
        if (found.row !== at) return undefined; // an opaque one has taken its place
        break;
      }
      missing.push(at);
    }
    for (let i = missing.length - 1; i >= 0; i--) {
      if (found.removed) return undefined;
      const name = this.toc.name(missing[i]!);
      // Something else stands there, or nothing: had it been moved, it would have an object.
      if (found.slot(name) !== undefined) return undefined;
      found = this.#addDirectory(missing[i]!, found, name);
    }
    return found.removed ? undefined : found;
  }

  #addDirectory(row: number, parent: Directory | undefined, name: string): Directory {
    const directory = new Directory(row + 1, row + 1, row, parent, name);
    directory.subdirectories = this.toc.nlink(row) - 2;
    this.directories.set(directory.id, directory);
    return directory;
  }

  /** Object of a directory that is in upper/; `row` -1 where nothing is merged into it, then `ino` is its st_ino. */
  addUpperDirectory(row: number, ino: number, parent: Directory, name: string): Directory {
    if (row >= 0) {
      const directory = this.directories.get(row + 1) ?? this.#addDirectory(row, parent, name);
      directory.parent = parent;
      directory.name = name;
      directory.upper = true;
      return directory;
    }
    const directory = new Directory(this.nextNode(), ino, -1, parent, name);
    this.directories.set(directory.id, directory);
    return directory;
  }

  /** True where `directory` is `ancestor` or stands below it. */
  isBelow(directory: Directory, ancestor: Directory): boolean {
    for (let at = directory; ; at = at.parent) {
      if (at === ancestor) return true;
      if (at.parent === at) return false;
    }
  }

  /** True where the merged view of a directory has no names. */
  isEmpty(directory: Directory): boolean {
    for (const slot of directory.slots()) if (slot.node !== undefined) return false;
    if (directory.row < 0) return true;
    const { first, end } = this.toc.children(directory.row);
    for (let row = first; row < end; row++) {
      if (directory.slot(this.toc.name(row)) === undefined) return false;
    }
    return true;
  }

  // Files.

  /** Names of a template's inode that still are the template's. */
  *templatePlaces(inode: number): Generator<{ directory: Directory; name: string; row: number }> {
    for (const row of this.groups.rows(inode)) {
      const directory = this.directoryOfRow(this.toc.parent(row));
      const name = this.toc.name(row);
      if (directory === undefined || directory.slot(name) !== undefined) continue;
      yield { directory, name, row };
    }
  }

  /** Before a name of an inode goes or comes: its number of names is in the answers for all of them. */
  thawFile(file: FileNode): void {
    this.thaw(file.id);
    if (file.row < 0) return;
    this.thaw(file.row + 1);
    if (file.state !== 'template') return;
    for (const { directory } of this.templatePlaces(file.row)) this.thaw(directory.id);
  }

  /** A new id for a file; under the old one only handles that are open go on. */
  renumber(file: FileNode): void {
    file.id = this.nextNode();
    file.lookups = 0;
    file.backing = 'upper';
    this.files.set(file.id, file);
    for (const { directory, name } of file.places) this.host.invalidate(directory.id, name);
  }
}
