// Byte layout of the flat TOC: the constants that TypeScript and native/toc.h share, with the
// picture in docs/FORMAT.md. Little-endian, fixed-width rows, readable in place.
//
//   header | rows | contents | xattrs | names
//
// Row 0 is the root. Rows stand in breadth-first order: the children of a directory are contiguous
// and sorted by name (bytes, ascending), and the directories' ranges follow each other in row
// order. So every row but the root has exactly one parent, and a cycle cannot be written down.

export const TOC_MAGIC = 0x31544c46; // "FLT1"
export const TOC_VERSION = 1;
/** No content, no xattrs. */
export const NONE = 0xffffffff;
/** A content is split into parts of this many bytes; the last one may be shorter. */
export const PART_BYTES = 1 << 20;
/** Most parts that an image may have (16 TiB of content): what readers keep for each part stays small. */
export const PARTS_MAX = 1 << 24;
/** Longest name, as on every Linux filesystem (NAME_MAX). */
export const NAME_MAX = 255;
/** Longest symlink target (PATH_MAX without its NUL). */
export const TARGET_MAX = 4095;

/** Header: 64 bytes. */
export const HEADER = {
  bytes: 64,
  magic: 0, // u32
  version: 4, // u32
  rows: 8, // u32 number of rows
  contents: 12, // u32 number of contents
  parts: 16, // u32 number of parts of all contents
  inodes: 20, // u32 number of distinct inodes
  totalBytes: 24, // u64 sum of the contents' sizes
  rowsOffset: 32, // u32, always 64
  contentsOffset: 36, // u32
  xattrsOffset: 40, // u32
  xattrsBytes: 44, // u32
  namesOffset: 48, // u32
  namesBytes: 52, // u32
  fileBytes: 56, // u32 size of the whole table
  reserved: 60, // u32, 0
} as const;

/** One row: 64 bytes. */
export const ROW = {
  bytes: 64,
  nameOffset: 0, // u32 from the start of the names section
  nameLength: 4, // u16
  layer: 6, // u16 index of the layer that gave the inode
  mode: 8, // u32 S_IFMT and permission bits, as st_mode
  uid: 12, // u32
  gid: 16, // u32
  mtimeNsec: 20, // u32
  mtimeSec: 24, // i64
  size: 32, // u64 st_size: file bytes, target length of a symlink, 4096 for a directory, else 0
  parent: 40, // u32 row of the directory that holds this name; the root's own is 0
  // u32: directory: row of the first child (0 where there is none); file: content index, or NONE where empty;
  // symlink: offset of the target in the names section; device: st_rdev as the kernel's
  // new_encode_dev: (minor & 0xff) | (major << 8) | ((minor & ~0xff) << 12); else 0
  a: 44,
  // u32: directory: number of children; symlink: target length; else 0
  b: 48,
  nlink: 52, // u32: directory: 2 + subdirectories; else the number of rows that share the inode
  inode: 56, // u32 row that names the inode: the first row of the hard-link group, itself where alone
  xattrs: 60, // u32 offset of the xattr set in the xattrs section, or NONE
} as const;

/** One content: 16 bytes. Contents are numbered in the order of the first row that uses them. */
export const CONTENT = {
  bytes: 16,
  size: 0, // u64, never 0
  firstPart: 8, // u32 number of its first part; parts are numbered through all contents
  firstRow: 12, // u32 first row that uses it
} as const;

// An xattr set: u16 count, then for each, sorted by name: u16 name length, u32 value length, name,
// value. Packed, unaligned. Equal sets are stored once.
export const XATTR_NAME_MAX = 255;
export const XATTR_VALUE_MAX = 65536;

/** Number of parts of a content of `size` bytes. */
export function partsOf(size: number): number {
  return Math.ceil(size / PART_BYTES);
}
