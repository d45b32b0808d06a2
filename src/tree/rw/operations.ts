// What a writable tree does, as its callers see it: the kernel session (fuse/), tests, the model. It
// knows nothing of FUSE: nodes are numbers, files are descriptors, errors are errnos. What does not
// live here: how it is done (tree.ts and its neighbours).
//
// Every operation runs to its end at once and is one step for all others. One that has to wait first
// (for a content that has not arrived, for the copy of a large file) throws Wait before it has
// changed anything that can be seen, and is called again, the same, when the wait is over.
import type { Owner } from '../../native/upper.ts';

/** An error of an operation, as a program sees it. */
export class Errno extends Error {
  /** Positive. */
  readonly errno: number;
  constructor(errno: number, what: string) {
    super(`${what} (errno ${errno})`);
    this.errno = errno;
  }
}

/** Thrown by an operation that cannot be done yet: for a whole content, or for a promise. */
export class Wait extends Error {
  readonly content: number | undefined;
  /** Never rejects. */
  readonly done: Promise<void> | undefined;
  constructor(wait: { content: number } | { done: Promise<void> }) {
    super('wait');
    this.content = 'content' in wait ? wait.content : undefined;
    this.done = 'done' in wait ? wait.done : undefined;
  }
}

/** Who asks. The kernel has checked permissions (default_permissions). */
export interface Caller extends Owner {
  pid: number;
  umask: number;
}

/** A node as it is given out: attributes are in the slots of ATTR (native/upcalls.ts), the tree's own array, valid until the next call. */
export interface Entry {
  node: number;
  attributes: Float64Array;
  /** ms the kernel may keep the attributes; Infinity = until told otherwise. */
  attrValidMs: number;
}

/** A file that was opened. */
export type Opened =
  /** Its content is the template's still, or equal to it: the session opens it as it would without a tree. */
  | { kind: 'template' }
  /** `fd` goes over to the caller. `direct`: not by passthrough (it would keep a setuid bit alive). `tag`: 0, or a number for `release`. `ino` is the inode number that is shown. */
  | { kind: 'upper'; fd: number; direct: boolean; tag: number; ino: number };

/** Attributes to set; what is undefined stays. */
export interface Changes {
  mode?: number;
  uid?: number;
  gid?: number;
  size?: number;
  /** Seconds and ns; 'now' is the moment of the change. */
  atime?: { sec: number; nsec: number } | 'now';
  mtime?: { sec: number; nsec: number } | 'now';
  /** Setuid, setgid of a file that its group may run, and capabilities go. */
  killSuidgid?: boolean;
}

/** One name of a listing. */
export interface Listed {
  name: string;
  /** Where the listing goes on after this name: template row + 2 (as native counts), numbers from 2^32 upwards for others, in order of creation. */
  cookie: number;
  entry: Entry;
}

/** What the tree needs of whoever serves it to the kernel; tests give one that only notes. */
export interface TreeHost {
  /** Requests on the node come to the tree from now on; on return none is being answered without it. */
  thaw(node: number): void;
  /** Handles that are open on the node. */
  openHandles(node: number): number;
  /** The kernel forgets a name (or, '' as name, the attributes and pages of a node); later, in order. */
  invalidate(node: number, name: string): void;
  /** The kernel forgets the attributes of a node, before the call returns. */
  invalidateAttributes(node: number): void;
  /**
   * The session may answer opens and attributes of the node from this descriptor, which it takes over;
   * `links`: link count of a directory, else 0; `writable`: 1 where it may answer opens to write too. From
   * then on it makes the kernel forget the attributes with every O_RDWR open, also with the tree's.
   */
  adopt(node: number, fd: number, ino: number, links: number, writable: number): void;
  disown(node: number): void;
  /**
   * The session may say which names a directory has not, from this descriptor of it in upper/, which it takes
   * over. `row`: template's directory that is merged into it, or -1. `changes`: 1 where it may also make
   * files, and remove those that have one name, where the template has none of that name. It does so while
   * no operation is being worked on, and tells it (`created`, `removed`) before the next one.
   */
  lend(node: number, fd: number, row: number, changes: number): void;
  recall(node: number): void;
  /** Ids for the files that the session makes. */
  leaseNodes(first: number, count: number): void;
  /** The session may answer for extended attributes of the root from this descriptor of upper/, which it takes over. */
  holdRoot(fd: number): void;
}

/** The tree of one mount. All throw Errno, or Wait. Names are byte strings. */
export interface TreeOperations {
  /** undefined: no such name. Counts one lookup of the node, as every Entry that is returned does (listings with attributes too, by `looked`). */
  lookup(parent: number, name: string): Entry | undefined;
  /** The kernel has let go of so many lookups; at none left, a removed file is let go for good. */
  forget(node: number, lookups: number): void;
  getattr(node: number): Entry;
  setattr(node: number, changes: Changes, caller: Caller): Entry;
  readlink(node: number): Uint8Array;
  symlink(parent: number, name: string, target: Uint8Array, caller: Caller): Entry;
  mknod(parent: number, name: string, mode: number, rdev: number, caller: Caller): Entry;
  mkdir(parent: number, name: string, mode: number, caller: Caller): Entry;
  unlink(parent: number, name: string): void;
  rmdir(parent: number, name: string): void;
  /** @param flags  of renameat2(2) */
  rename(parent: number, name: string, toParent: number, toName: string, flags: number): void;
  link(node: number, toParent: number, toName: string): Entry;
  /** @param flags  of open(2) */
  open(node: number, flags: number, killSuidgid: boolean): Opened;
  create(
    parent: number,
    name: string,
    flags: number,
    mode: number,
    caller: Caller,
  ): { entry: Entry; opened: Opened & { kind: 'upper' } };
  tmpfile(
    parent: number,
    flags: number,
    mode: number,
    caller: Caller,
  ): { entry: Entry; opened: Opened & { kind: 'upper' } };
  release(tag: number): void;
  /** The session has made a file in a lent directory, opened and adopted it; counts one lookup. `flags` of open(2). */
  created(parent: number, name: string, node: number, ino: number, flags: number): void;
  /** The session has removed a file of one name; `fd` is an O_PATH descriptor of it, taken over. */
  removed(parent: number, name: string, fd: number): void;
  /** Names of a directory after `cookie` (0 = from its start), without "." and "..", which `parentOf` helps with. */
  list(node: number, cookie: number): Iterable<Listed>;
  /** A listed entry was given out as a lookup. */
  looked(node: number): void;
  parentOf(node: number): Entry;
  getxattr(node: number, attribute: string): Uint8Array;
  /** Without trusted.*, where the caller is not root. */
  listxattr(node: number, caller: Caller): string[];
  setxattr(
    node: number,
    attribute: string,
    value: Uint8Array,
    flags: number,
    killSgid: boolean,
  ): void;
  removexattr(node: number, attribute: string): void;
  /** Of a file whose handle is the template's still; a handle on the file in upper/ needs no tree. */
  fsync(node: number): Promise<void>;
  fsyncDirectory(node: number): Promise<void>;
  syncfs(): Promise<void>;
  /** Slots as UpperIo.statfs. */
  statfs(into: Float64Array): void;
  /** Ends the tree: descriptors are closed, work/ is emptied. */
  close(): void;
}
