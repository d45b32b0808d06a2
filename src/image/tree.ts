// The merged tree of an image in memory, as intake builds it and delta/ reads it.
//
// Names, link targets and xattr names are *byte strings*: JavaScript strings in which every code
// unit is one byte (latin1). Linux names are bytes, not text; this keeps them exact and still
// usable as map keys. `bytesOf` and `textOf` convert at the edges.

/** What an inode is; the names are those of stat(2)'s S_IF* types. */
export type InodeType = 'dir' | 'file' | 'symlink' | 'char' | 'block' | 'fifo' | 'socket';

/** S_IFMT bits of each type (inode(7)). */
export const S_IF: Record<InodeType, number> = {
  socket: 0o140000,
  symlink: 0o120000,
  file: 0o100000,
  block: 0o060000,
  dir: 0o040000,
  char: 0o020000,
  fifo: 0o010000,
};

/** Attributes and content reference of one file; hard links share one Inode object. */
export interface Inode {
  type: InodeType;
  /** Permission bits with setuid, setgid and sticky: 0 to 0o7777. */
  mode: number;
  uid: number;
  gid: number;
  /** Modification time: whole seconds since 1970 (may be negative) and 0 to 999,999,999 ns. */
  mtimeSec: number;
  mtimeNsec: number;
  /** Bytes of a regular file; 0 for the others. */
  size: number;
  /** sha256 of a regular file's content, 64 lower-case hex digits; undefined where size is 0. */
  digest?: string;
  /** Link target (byte string) of a symlink. */
  target?: string;
  /** Device numbers of `char` and `block`. */
  major?: number;
  minor?: number;
  /** Extended attributes: full name (byte string, such as `security.capability`) to value. */
  xattrs?: Map<string, Buffer>;
  /** Index of the layer that gave the inode, 0 for the lowest. */
  layer: number;
}

/** One name in the tree. Only directories have children, and every directory has the map. */
export interface TreeNode {
  /** Byte string without `/` or NUL; empty for the root alone. */
  name: string;
  inode: Inode;
  children?: Map<string, TreeNode>;
}

/** Bytes of a byte string. */
export function bytesOf(name: string): Buffer {
  return Buffer.from(name, 'latin1');
}

/** A byte string read as UTF-8, for people. */
export function textOf(name: string): string {
  return Buffer.from(name, 'latin1').toString('utf8');
}

/** Text as the byte string of its UTF-8 form. */
export function fromText(text: string): string {
  return Buffer.from(text, 'utf8').toString('latin1');
}

/** A fresh directory node, owned by root, mode 0755. */
export function makeDirectory(name: string, layer: number): TreeNode {
  return {
    name,
    inode: { type: 'dir', mode: 0o755, uid: 0, gid: 0, mtimeSec: 0, mtimeNsec: 0, size: 0, layer },
    children: new Map(),
  };
}
