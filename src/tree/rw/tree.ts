// The writable tree of one mount: template and upper/ as one view, and every change that a program can
// make. Each method finds the nodes that it is about and hands over to the file that knows how; none
// of it knows FUSE. What does not live here: threads, requests and the kernel (fuse/).
//
// Everything runs at once on one thread, and system calls wait for the disk. A method that throws has
// changed nothing that can be seen, but for a directory's attributes set in part by a failing disk.
import type { Toc } from '../../delta/toc.ts';
import { toFirstlightError } from '../../errors/errors.ts';
import type { Logger } from '../../log/log.ts';
import { ATTR_SLOTS } from '../../native/upcalls.ts';
import type { NativeUpper } from '../../native/upper.ts';
import {
  errnoOf,
  fail,
  O_ACCMODE,
  O_RDONLY,
  O_RDWR,
  S_IFDIR,
  S_IFLNK,
  S_IFMT,
  S_IFREG,
  S_IPERM,
} from './abi.ts';
import { applyChanges, applyToLast, entryOf, snapshot, whereIs } from './attr.ts';
import { type Child, Core } from './core.ts';
import { list } from './list.ts';
import { link, make, type Wanted } from './make.ts';
import { Directory, FileNode, isOwn, type Node } from './node.ts';
import { createFile, createUnnamed, hasReaders, openFile, takeUpper } from './open.ts';
import {
  type Caller,
  type Changes,
  type Entry,
  Errno,
  type Listed,
  type Opened,
  type TreeHost,
  type TreeOperations,
  Wait,
} from './operations.ts';
import { promote, promoteFile } from './promote.ts';
import { letGo, rmdir, unlink } from './remove.ts';
import { rename } from './rename.ts';
import { emptyDirectory, scan } from './scan.ts';
import { UpperDirectories } from './upper-directories.ts';
import { getXattr, listXattrs, removeXattr, setXattr } from './xattr.ts';

/** What a tree is made of. */
export interface WritableTreeOptions {
  toc: Toc;
  /** Absolute paths (byte strings) of the snapshot's directories; both exist, on one filesystem. */
  upper: string;
  work: string;
  io: NativeUpper;
  host: TreeHost;
  /** O_RDONLY descriptor of a whole, verified content, the caller's to close; undefined: it has not arrived. */
  openContent(content: number): number | undefined;
  log: Logger;
  /** How long a copy that nobody comes for is kept (copy-jobs.ts), ms. */
  unclaimedMs?: number | undefined;
}

/** A tree; see TreeOperations for what it does. */
export class WritableTree implements TreeOperations {
  readonly #core: Core;
  readonly #attributes = new Float64Array(ATTR_SLOTS);
  #closed = false;

  /**
   * Empties work/ and rebuilds the view from upper/.
   * @throws FirstlightError
   */
  static open(options: WritableTreeOptions): WritableTree {
    const { io } = options;
    const opened: number[] = [];
    try {
      const work = io.openDirectory(-1, options.work);
      opened.push(work);
      emptyDirectory(io, work);
      const upper = io.openDirectory(-1, options.upper);
      const upperDirectories = new UpperDirectories(io, upper);
      const core = new Core({ ...options, upperDirectories, work });
      try {
        scan(core);
      } catch (error) {
        upperDirectories.close();
        throw error;
      }
      return new WritableTree(core);
    } catch (error) {
      for (const fd of opened) io.close(fd);
      throw toFirstlightError(error);
    }
  }

  private constructor(core: Core) {
    this.#core = core;
  }

  /** Runs one operation; errors of system calls become those that a program sees. */
  #run<T>(operation: (core: Core) => T): T {
    const core = this.#core;
    if (this.#closed) throw fail('EIO', 'the tree is closed');
    core.upperDirectories.trim();
    try {
      return operation(core);
    } catch (error) {
      if (error instanceof Errno || error instanceof Wait) throw error;
      const errno = errnoOf(error);
      if (errno === 0) throw error;
      throw new Errno(errno, (error as Error).message);
    }
  }

  #entry(child: Child, id?: number): Entry {
    return entryOf(this.#core, child, this.#attributes, id);
  }

  /** An entry that counts a lookup. */
  #looked(child: Child): Entry {
    const entry = this.#entry(child);
    if (typeof child !== 'number') child.lookups++;
    return entry;
  }

  /** What a node id is about. */
  #child(id: number): Child {
    const core = this.#core;
    const known = core.files.get(id) ?? core.directories.get(id);
    if (known !== undefined) return known;
    const { toc } = core;
    if (isOwn(id) || id < 1 || id > toc.rows || toc.inode(id - 1) !== id - 1)
      throw fail('ESTALE', `node ${id}`);
    return id - 1;
  }

  /** The object of a node id, made where there is none. */
  #node(id: number): Node {
    const child = this.#child(id);
    if (typeof child !== 'number') return child;
    return this.#core.toc.isDirectory(child)
      ? this.#core.anyDirectory(id)
      : this.#core.fileOfRow(child);
  }

  lookup(parent: number, name: string): Entry | undefined {
    return this.#run((core) => {
      if (name.length > 255) throw fail('ENAMETOOLONG', 'name');
      const directory = core.directory(parent);
      const child = core.child(directory, name);
      if (child !== undefined) return this.#looked(child);
      core.lent.missed(directory);
      return undefined;
    });
  }

  forget(node: number, lookups: number): void {
    this.#run((core) => {
      const directory = core.directories.get(node);
      if (directory !== undefined && isOwn(node)) {
        directory.lookups = Math.max(0, directory.lookups - lookups);
        if (directory.removed && directory.lookups === 0) core.directories.delete(node);
      }
      const file = core.files.get(node);
      if (file === undefined || file.id !== node) return;
      if (isOwn(node)) {
        file.lookups = Math.max(0, file.lookups - lookups);
        if (file.removed && file.lookups === 0) letGo(core, file);
      } else if (file.removed && core.host.openHandles(node) === 0) {
        // Lookups that native answered were not counted, but the kernel forgets all at once.
        letGo(core, file);
      }
    });
  }

  getattr(node: number): Entry {
    return this.#run((core) => {
      const child = this.#child(node);
      if (child instanceof Directory) core.adopted.asked(child);
      return this.#entry(child, node);
    });
  }

  setattr(id: number, changes: Changes): Entry {
    return this.#run((core) => {
      const node = this.#node(id);
      if (node instanceof Directory && node.removed) {
        applyToLast(node.last ?? new Float64Array(ATTR_SLOTS), changes, Date.now());
        return this.#entry(node, id);
      }
      // Sizes are doubles here: the largest of all would wrap.
      if ((changes.size ?? 0) > Number.MAX_SAFE_INTEGER) throw fail('EFBIG', 'truncate');
      core.thaw(id);
      if (node instanceof FileNode) this.#makeReady(node, id, changes);
      else promote(core, node);
      const where = whereIs(core, node);
      if (where === undefined) {
        node.last ??= snapshot(core, node);
        applyToLast(node.last, changes, Date.now());
        return this.#entry(node, id);
      }
      applyChanges(core, node, where, changes);
      // By an old handle: what the kernel knows of the node that the name leads to is old now.
      if (node.id !== id) core.host.invalidateAttributes(node.id);
      return this.#entry(node, id);
    });
  }

  /** A file comes into upper/ before it changes. @throws Wait */
  #makeReady(file: FileNode, id: number, changes: Changes): void {
    const core = this.#core;
    if (file.last !== undefined) return;
    if (changes.size !== undefined && file.id !== id) takeUpper(core, file, id);
    promoteFile(core, file, changes.size === 0 && !hasReaders(core, file));
    if (changes.size !== undefined) takeUpper(core, file, id);
  }

  readlink(node: number): Uint8Array {
    return this.#run((core) => {
      const child = this.#child(node);
      if (child instanceof Directory) throw fail('EINVAL', 'readlink');
      const where = typeof child === 'number' ? undefined : whereIs(core, child);
      if (where !== undefined) return core.io.readlink(where.fd, where.name);
      const row = typeof child === 'number' ? child : child.row;
      if (row < 0 || !core.toc.isSymlink(row)) throw fail('EINVAL', 'readlink');
      return core.toc.target(row);
    });
  }

  #make(parent: number, name: string, wanted: Wanted, caller: Caller): Entry {
    return this.#run((core) => {
      const { node, fd } = make(core, core.directory(parent), name, wanted, caller);
      if (fd >= 0) core.io.close(fd);
      return this.#looked(node);
    });
  }

  symlink(parent: number, name: string, target: Uint8Array, caller: Caller): Entry {
    return this.#make(parent, name, { mode: S_IFLNK | 0o777, target }, caller);
  }

  mknod(parent: number, name: string, mode: number, rdev: number, caller: Caller): Entry {
    const type = (mode & S_IFMT) === 0 ? S_IFREG : mode & S_IFMT;
    return this.#make(parent, name, { mode: type | (mode & S_IPERM), rdev }, caller);
  }

  mkdir(parent: number, name: string, mode: number, caller: Caller): Entry {
    // As mkdir(2): of the special bits only the sticky one; setgid comes from the parent.
    return this.#make(parent, name, { mode: S_IFDIR | (mode & 0o1777) }, caller);
  }

  unlink(parent: number, name: string): void {
    this.#run((core) => unlink(core, core.directory(parent), name));
  }

  rmdir(parent: number, name: string): void {
    this.#run((core) => rmdir(core, core.directory(parent), name));
  }

  rename(parent: number, name: string, toParent: number, toName: string, flags: number): void {
    this.#run((core) => {
      const from = { directory: core.directory(parent), name };
      rename(core, from, { directory: core.directory(toParent), name: toName }, flags);
    });
  }

  link(node: number, toParent: number, toName: string): Entry {
    return this.#run((core) => {
      const child = this.#node(node);
      if (child instanceof Directory) throw fail('EPERM', 'link to a directory');
      link(core, child, core.directory(toParent), toName);
      return this.#looked(child);
    });
  }

  open(node: number, flags: number, killSuidgid: boolean): Opened {
    return this.#run((core) => {
      const child = this.#child(node);
      const isDirectory =
        typeof child === 'number' ? core.toc.isDirectory(child) : child instanceof Directory;
      if (isDirectory) throw fail('EISDIR', 'open');
      return openFile(core, node, flags, killSuidgid);
    });
  }

  create(
    parent: number,
    name: string,
    flags: number,
    mode: number,
    caller: Caller,
  ): { entry: Entry; opened: Opened & { kind: 'upper' } } {
    return this.#run((core) => {
      const made = createFile(core, core.directory(parent), name, flags, mode, caller);
      return { entry: this.#openedEntry(made.file), opened: made.opened };
    });
  }

  tmpfile(
    parent: number,
    flags: number,
    mode: number,
    caller: Caller,
  ): { entry: Entry; opened: Opened & { kind: 'upper' } } {
    return this.#run((core) => {
      const made = createUnnamed(core, core.directory(parent), flags, mode, caller);
      return { entry: this.#openedEntry(made.file), opened: made.opened };
    });
  }

  /** The file is open as soon as the answer is there: its attributes are not to be kept. */
  #openedEntry(file: FileNode): Entry {
    return { ...this.#looked(file), attrValidMs: 0 };
  }

  release(): void {
    // No open asks for it: the kernel's FORGET says when a removed file is done with.
  }

  created(parent: number, name: string, node: number, ino: number, flags: number): void {
    const writable = (flags & O_ACCMODE) === O_RDWR;
    this.#run((core) => core.lent.created(core.directory(parent), name, node, ino, writable));
  }

  removed(parent: number, name: string, fd: number): void {
    this.#run((core) => core.lent.removed(core.directory(parent), name, fd));
  }

  list(node: number, cookie: number): Iterable<Listed> {
    return this.#run((core) => list(core, core.anyDirectory(node), cookie, this.#attributes));
  }

  looked(node: number): void {
    const core = this.#core;
    const known = core.files.get(node) ?? core.directories.get(node);
    if (known !== undefined) known.lookups++;
  }

  parentOf(node: number): Entry {
    return this.#run((core) => this.#entry(core.anyDirectory(node).parent));
  }

  getxattr(node: number, attribute: string): Uint8Array {
    return this.#run((core) => getXattr(core, this.#child(node), attribute));
  }

  listxattr(node: number, caller: Caller): string[] {
    return this.#run((core) => {
      const names = listXattrs(core, this.#child(node));
      return caller.uid === 0 ? names : names.filter((name) => !name.startsWith('trusted.'));
    });
  }

  setxattr(
    node: number,
    attribute: string,
    value: Uint8Array,
    flags: number,
    killSgid: boolean,
  ): void {
    this.#run((core) => {
      core.thaw(node);
      setXattr(core, this.#node(node), attribute, value, flags, killSgid);
    });
  }

  removexattr(node: number, attribute: string): void {
    this.#run((core) => {
      core.thaw(node);
      removeXattr(core, this.#node(node), attribute);
    });
  }

  async fsync(node: number): Promise<void> {
    await this.#settle((core) => {
      const child = this.#child(node);
      const where = child instanceof FileNode ? whereIs(core, child) : undefined;
      // What is not in upper/ is the image's, and durable; what has no name left is nobody's.
      if (where === undefined || where.name === '') return undefined;
      const fd = core.io.openFile(where.fd, where.name, O_RDONLY);
      return core.io.fsync(fd, false).finally(() => core.io.close(fd));
    });
  }

  async fsyncDirectory(node: number): Promise<void> {
    await this.#settle((core) => {
      const directory = core.anyDirectory(node);
      // What is not in upper/ is the image's, and durable.
      if (!directory.upper || directory.removed) return undefined;
      return core.io.fsyncDirectory(core.fd(directory));
    });
  }

  async syncfs(): Promise<void> {
    await this.#settle((core) => core.io.syncfs(core.fd(core.root)));
  }

  async #settle(operation: (core: Core) => Promise<void> | undefined): Promise<void> {
    try {
      await this.#run(operation);
    } catch (error) {
      const errno = errnoOf(error);
      throw error instanceof Errno || errno === 0
        ? error
        : new Errno(errno, (error as Error).message);
    }
  }

  statfs(into: Float64Array): void {
    this.#run((core) => core.io.statfs(core.fd(core.root), into));
  }

  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    const { copies, files, upperDirectories, io, work, log } = this.#core;
    copies.close();
    for (const file of new Set(files.values())) if (file.fd >= 0) io.close(file.fd);
    try {
      emptyDirectory(io, work);
    } catch (error) {
      log.warn({ error: String(error) }, 'work/ keeps files until the next mount');
    }
    upperDirectories.close();
    io.close(work);
  }
}
