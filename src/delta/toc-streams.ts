// The packed TOC's outer form, which packing and unpacking share: the counts, then the columns one
// after another. What stands in each column: toc-pack.ts writes it, toc-unpack.ts reads it,
// docs/FORMAT.md describes it.

/** Columns of the packed TOC, in the order in which they stand in it. */
export const STREAMS = [
  'kinds', // dictionary of (mode, uid, gid)
  'kindOf', // for each inode: index in that dictionary
  'times', // dictionary of modification times
  'timeOf', // for each inode: index in that dictionary
  'layers', // runs of inodes that one layer gave
  'children', // for each directory: number of its children
  'prefixes', // for each row but the root: bytes shared with the name before it in the directory
  'names', // for each row but the root: the rest of its name, and a NUL
  'targets', // for each symlink inode: its target, and a NUL
  'sizes', // for each file inode that is not a copy: bytes
  'copies', // file inodes whose content stands earlier in the table
  'links', // rows that are further names of an inode
  'devices', // for each device inode: its number
  'xattrs', // inodes with extended attributes
  'sets', // the xattrs section as it is
] as const;

export type StreamName = (typeof STREAMS)[number];

/** Largest flat table that is packed or unpacked, in bytes. */
export const TOC_MAX_BYTES = 256 << 20;

/** Modification times lie within this many seconds of 1970, in both directions (35 million years). */
export const MTIME_MAX_SECONDS = 2 ** 50;
