// The native boundary of the writable tree: requests that native hands to TypeScript, and what
// TypeScript tells native about nodes that have diverged from the template. native/ decodes and
// encodes the kernel's structs, so no layout of the FUSE protocol is seen on this side.
//
// Threads: an Upcalls object belongs to the JavaScript thread that made it (a worker thread for the
// tree, so that no other work of the daemon delays a change). Every call returns at once, except
// `thaw`, which waits for answers that other threads are just giving: microseconds.
//
// Nodes: a node id up to the number of rows is the template's (row of the inode + 1). The tree gives
// ids from FIRST_OWN_NODE upwards to everything that is in no template.

/** First node id of files that are in no template. */
export const FIRST_OWN_NODE = 2 ** 32;

/** Operations that come as upcalls; the numbers are the kernel's opcodes (linux/fuse.h). */
export const UPCALL = {
  Lookup: 1,
  Forget: 2,
  Getattr: 3,
  Setattr: 4,
  Readlink: 5,
  Symlink: 6,
  Mknod: 8,
  Mkdir: 9,
  Unlink: 10,
  Rmdir: 11,
  Rename: 12,
  Link: 13,
  Open: 14,
  Statfs: 17,
  Release: 18,
  Fsync: 20,
  Setxattr: 21,
  Getxattr: 22,
  Listxattr: 23,
  Removexattr: 24,
  Fsyncdir: 30,
  Create: 35,
  Readdir: 44,
  Syncfs: 50,
  Tmpfile: 51,
  /** No requests, but what native has done in a lent directory. */
  Created: 200,
  Removed: 201,
} as const;

/**
 * Slots of the numbers that come with an upcall. The first six come with every one; what the others
 * mean depends on the operation (ARG). 64-bit values are given as doubles.
 */
export const IN = { op: 0, node: 1, uid: 2, gid: 3, pid: 4, umask: 5, arg: 6 } as const;

/**
 * Slots from IN.arg on:
 *   Setattr    ATTR_SET bits, mode, uid, gid, size, atime sec, nsec, mtime sec, nsec, ctime sec, nsec, fh or -1
 *   Mknod      mode, rdev (new_encode_dev)      Mkdir, Tmpfile  mode (Tmpfile: then open flags)
 *   Rename     node of the new parent, flags of renameat2(2); names: old, new
 *   Link       node of the file that gets one more name (node: the new parent)
 *   Open       flags of open(2), 1 where setuid and setgid are to be cleared (FUSE_OPEN_KILL_SUIDGID)
 *   Create     flags, mode, the same 1
 *   Readdir    cookie, room in bytes, 1 where entries are wanted with attributes (READDIRPLUS)
 *   Setxattr   flags of setxattr(2), 1 where the setgid bit is to be cleared (FUSE_SETXATTR_ACL_KILL_SGID)
 *   Getxattr, Listxattr   room in bytes (0: the size is asked for)
 *   Forget     pairs of a node and the number of its lookups that are forgotten, up to a node 0 or the end of the
 *              slots; IN.node is 0. Comes when nothing else does, or when there are enough for one
 *   Release    what `replyOpen` was given as `tag` (sent for opens with a tag only)
 *   Fsync      nothing: through a handle on the template's content, of a node that has diverged
 *   Fsyncdir   1 for data only
 *   Created    node (of a lease), inode number that is shown, flags of open(2); it is open, looked up once, and adopted
 *   Removed    O_PATH descriptor of the file, which is the tree's
 * Strings: `name` of Created, Removed, Lookup, Symlink (and `value`: the target), Mknod, Mkdir, Unlink, Rmdir, Link, Create, xattrs;
 * Rename has the new name in `name2`.
 */
export type UpcallNumbers = Float64Array;

/** Bits of Setattr's first argument: what is to be set. The kernel's FATTR_*. */
export const ATTR_SET = {
  mode: 1 << 0,
  uid: 1 << 1,
  gid: 1 << 2,
  size: 1 << 3,
  atime: 1 << 4,
  mtime: 1 << 5,
  fh: 1 << 6,
  atimeNow: 1 << 7,
  mtimeNow: 1 << 8,
  ctime: 1 << 10,
  /** Setuid, setgid and capabilities go (a truncate by somebody without CAP_FSETID). */
  killSuidgid: 1 << 11,
} as const;

/** Slots of a node's attributes, in replies and from `UpperIo.stat`. */
export const ATTR = {
  ino: 0,
  size: 1,
  blocks: 2,
  atimeSec: 3,
  atimeNsec: 4,
  mtimeSec: 5,
  mtimeNsec: 6,
  ctimeSec: 7,
  ctimeNsec: 8,
  mode: 9,
  nlink: 10,
  uid: 11,
  gid: 12,
  /** Device number as new_encode_dev. */
  rdev: 13,
  blksize: 14,
  /** Birth time; of `stat` only, 0 where the filesystem has none. */
  btimeSec: 15,
  btimeNsec: 16,
} as const;
export const ATTR_SLOTS = 17;

/** How a file is opened, in `replyOpen` and `replyCreate`. */
export const OPEN_AS = {
  /** Reads, writes and mappings go to the file itself, in the kernel. */
  Passthrough: 0,
  /**
   * Native reads and writes the descriptor, and clears setuid, setgid and capabilities where the kernel
   * asks for it; mappings are the file's own. May stand beside passthrough opens of the same file.
   */
  Direct: 1,
} as const;

/**
 * Takes one request. It is answered, at once or later, by exactly one reply that names `call`
 * (Forget, Release, Created and Removed have no reply, `call` is 0). A request that the handler returns from without
 * a reply waits: should its caller be killed meanwhile, native answers it with EINTR, and what names
 * `call` later does nothing. So by then nothing may have been done that can be seen.
 * @param numbers  valid until the function returns
 * @param name, name2  byte strings (latin1)
 * @param value  target of a symlink, value of an xattr; the receiver's own
 */
export type UpcallHandler = (
  call: number,
  numbers: UpcallNumbers,
  name: string,
  name2: string,
  value: Uint8Array | undefined,
) => void;

/** The tree's side of one mount. */
export interface NativeUpcalls {
  /**
   * From now on every request on the node is an upcall. When it returns, no thread is answering for
   * it from the template any more. One-way; thawing twice does nothing. Own nodes are thawed from the start.
   * Before the session's start: for when it begins.
   */
  thaw(node: number): void;
  /** Handles that are open on the node now, mappings included; a close that the kernel has not told us of yet counts. */
  openHandles(node: number): number;
  /**
   * Answers the open of a template's row that was thawed from the template, as if it were not: its
   * content is still the image's, or equal to it. The flags are those of reading.
   */
  openTemplate(call: number): void;
  /**
   * Lets the request wait until the whole content is verified, then sends the upcall again, under the
   * same `call`. Bound, INTERRUPT and failed contents are treated as for any wait: then it is
   * answered with an errno and not sent again.
   */
  waitForContent(call: number, content: number): void;
  /** Sends the upcall again, for what waits for something else; `numbers` and names are kept. */
  again(call: number): void;

  replyError(call: number, errno: number): void;
  /** Success with nothing else: unlink, rename, setxattr ... */
  replyOk(call: number): void;
  /**
   * LOOKUP, MKDIR, MKNOD, SYMLINK, LINK. Where the caller is gone, returns false: the kernel has not
   * counted the lookup.
   * @param validMs  how long the kernel may keep name and attributes; Infinity = until it is told otherwise
   */
  replyEntry(
    call: number,
    node: number,
    attributes: Float64Array,
    entryValidMs: number,
    attrValidMs: number,
  ): boolean;
  /** LOOKUP of a name that is not there; the kernel remembers it. */
  replyNoEntry(call: number): void;
  replyAttr(call: number, attributes: Float64Array, attrValidMs: number): void;
  /**
   * OPEN. Takes over `fd`, open with the access that `flags` asked for. While handles with passthrough
   * are open on a node, further ones share the backing file of the first, which the caller sees to (EIO
   * for the program where it does not).
   * @param tag  0, or a number that comes back as Release when this handle is closed
   * @param ino  inode number that is shown of the file; 0: the tree is asked for it
   * @returns false where the caller is gone: nothing is open, no Release comes
   */
  replyOpen(call: number, fd: number, as: number, tag: number, ino: number): boolean;
  /** CREATE and TMPFILE: entry and open file in one. */
  replyCreate(
    call: number,
    node: number,
    attributes: Float64Array,
    attrValidMs: number,
    fd: number,
    as: number,
    tag: number,
  ): boolean;
  /** READLINK, GETXATTR, LISTXATTR. */
  replyData(call: number, data: Uint8Array): void;
  /** Size of an xattr or of the list, where the size was asked for. */
  replySize(call: number, bytes: number): void;
  /** STATFS: bsize, frsize, blocks, bfree, bavail, files, ffree, namelen. */
  replyStatfs(call: number, numbers: Float64Array): void;
  /**
   * Adds an entry to the listing that is being built for READDIR; false where it does not fit any more.
   * @param node  0: the kernel gets no node with it ("." and "..", or a listing without attributes)
   * @param attributes  at least ino and mode are filled in; all of them where `node` is not 0
   */
  addDirent(
    call: number,
    name: string,
    cookie: number,
    node: number,
    attributes: Float64Array,
    attrValidMs: number,
  ): boolean;
  /** Sends the listing; an empty one is its end. False where the caller is gone. */
  replyListing(call: number): boolean;

  /**
   * Native answers OPEN without O_TRUNC (with passthrough), GETATTR and GETXATTR of an own or thawed node
   * by itself from now on, from this O_RDONLY descriptor of the upper file, which it takes over: attributes
   * are those of fstat(2), with this inode number; the kernel keeps them as long as nobody has the file open
   * to write, or mapped so. Opens to write only where `writable` is 1, and not with O_SYNC or O_DSYNC. An
   * O_RDWR open of an adopted node, whoever answers it, makes the kernel forget the node's attributes. The
   * file, and its room on the disk, is held until `disown`.
   *
   * Of a directory, attributes alone are answered, with the link count that is given here. What the kernel
   * is told while the tree works on any request it does not keep. Before anything but upper/ itself
   * changes what the directory shows, it is disowned.
   *
   * While a node is open with a file that `replyOpen` or `replyCreate` gave, GETATTR and GETXATTR of it
   * are answered from that as well, and the kernel keeps nothing of it. The inode number is that of the
   * last `replyOpen`, `replyCreate` or `replyAttr`; where there was none, the tree is asked once. Attributes of
   * trusted.* are the tree's always.
   * @param links  0 of anything but a directory
   * @param writable  1: a write takes no setuid, setgid or capability away, so passthrough may do it
   */
  adopt(node: number, fd: number, ino: number, links: number, writable: number): void;
  /** Every request on the node is an upcall again; when it returns, none is being answered by native. */
  disown(node: number): void;
  /**
   * Native answers LOOKUP of names that are not there in a thawed or own directory by itself from now on: that
   * neither this O_PATH descriptor of the directory in upper/ has, which it takes over, nor the template's
   * directory `row` that is merged into it (-1: none).
   *
   * With `changes` 1 also CREATE of such a name (but of setuid and setgid files), with the permissions that are
   * asked for and not masked, and UNLINK of regular files that have one link and whose name is none of the
   * template's directory. That happens while the handler is not called, and is told by Created and Removed
   * before the next request or Forget; at some time where there is none. Native makes no file without an id
   * from `leaseNodes`.
   */
  lend(node: number, fd: number, row: number, changes: number): void;
  /** All of that comes as upcalls again; a LOOKUP that has begun may be answered still. */
  recall(node: number): void;
  /** Node ids for files that native makes; they come on top of those that it has. */
  leaseNodes(first: number, count: number): void;
  /**
   * Native answers GETXATTR of the root (but for trusted.*) from this descriptor of upper/, which it takes
   * over, as long as the session lives: the kernel caches no ACL of a root.
   */
  holdRoot(fd: number): void;

  /**
   * Tells the kernel to forget a name of a directory, or (name empty) the attributes and cached pages of a
   * node. Done by a thread of its own, in order: these notifications wait for locks that requests hold.
   */
  invalidate(node: number, name: string): void;
  /** The kernel forgets the attributes of a node alone: at once, since it takes no lock for it that a request holds. */
  invalidateAttributes(node: number): void;
  /** Resolves when every `invalidate` before it has been done. */
  invalidated(): Promise<void>;
  /** Counters for the metrics: upcalls so far. */
  count(): number;
  /** Times that this thread was woken for them. */
  wakes(): number;
  /** Detaches: requests that would be upcalls end with EIO from then on. */
  close(): void;
}
