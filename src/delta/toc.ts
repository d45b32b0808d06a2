// Reader of the flat TOC. Building one from a merged tree is toc-build.ts, checking one that came
// from outside is toc-check.ts; both layouts stand in toc-layout.ts.
import { S_IF } from '../image/tree.ts';
import { CONTENT, HEADER, NONE, PART_BYTES, partsOf, ROW } from './toc-layout.ts';

const S_IFMT = 0o170000;

/** A u64 below 2^53. Not by way of BigInt, which is made on the heap: a large image asks half a million times. */
function u64(bytes: Buffer, at: number): number {
  return bytes.readUInt32LE(at) + bytes.readUInt32LE(at + 4) * 2 ** 32;
}

/** Reads a flat TOC in place. The bytes must have passed `checkToc`, or come from `buildToc`. */
export class Toc {
  readonly bytes: Buffer;
  /** Number of rows (names), the root included. */
  readonly rows: number;
  /** Number of unique, non-empty file contents. */
  readonly contents: number;
  /** Number of parts of all contents. */
  readonly parts: number;
  /** Sum of all contents' sizes in bytes. */
  readonly totalBytes: number;
  readonly inodes: number;
  readonly #names: number;
  readonly #xattrs: number;
  readonly #contents: number;

  constructor(bytes: Buffer) {
    this.bytes = bytes;
    this.rows = bytes.readUInt32LE(HEADER.rows);
    this.contents = bytes.readUInt32LE(HEADER.contents);
    this.parts = bytes.readUInt32LE(HEADER.parts);
    this.inodes = bytes.readUInt32LE(HEADER.inodes);
    this.totalBytes = Number(bytes.readBigUInt64LE(HEADER.totalBytes));
    this.#names = bytes.readUInt32LE(HEADER.namesOffset);
    this.#xattrs = bytes.readUInt32LE(HEADER.xattrsOffset);
    this.#contents = bytes.readUInt32LE(HEADER.contentsOffset);
  }

  #at(row: number, field: number): number {
    return HEADER.bytes + row * ROW.bytes + field;
  }

  #u32(row: number, field: number): number {
    return this.bytes.readUInt32LE(this.#at(row, field));
  }

  /** The row's name as bytes (a view, not a copy). */
  nameBytes(row: number): Buffer {
    const start = this.#names + this.#u32(row, ROW.nameOffset);
    return this.bytes.subarray(
      start,
      start + this.bytes.readUInt16LE(this.#at(row, ROW.nameLength)),
    );
  }

  /** The row's name as a byte string. */
  name(row: number): string {
    return this.nameBytes(row).toString('latin1');
  }

  /** Path from the root as a byte string, without a leading slash; empty for the root. */
  path(row: number): string {
    const names: string[] = [];
    for (let r = row; r !== 0; r = this.parent(r)) names.push(this.name(r));
    return names.reverse().join('/');
  }

  mode(row: number): number {
    return this.#u32(row, ROW.mode);
  }
  uid(row: number): number {
    return this.#u32(row, ROW.uid);
  }
  gid(row: number): number {
    return this.#u32(row, ROW.gid);
  }
  mtimeSec(row: number): number {
    return Number(this.bytes.readBigInt64LE(this.#at(row, ROW.mtimeSec)));
  }
  mtimeNsec(row: number): number {
    return this.#u32(row, ROW.mtimeNsec);
  }
  /** st_size in bytes. */
  size(row: number): number {
    return u64(this.bytes, this.#at(row, ROW.size));
  }
  parent(row: number): number {
    return this.#u32(row, ROW.parent);
  }
  layer(row: number): number {
    return this.bytes.readUInt16LE(this.#at(row, ROW.layer));
  }
  nlink(row: number): number {
    return this.#u32(row, ROW.nlink);
  }
  /** The first row of the hard-link group; the row itself where it stands alone. */
  inode(row: number): number {
    return this.#u32(row, ROW.inode);
  }
  isDirectory(row: number): boolean {
    return (this.mode(row) & S_IFMT) === S_IF.dir;
  }
  isFile(row: number): boolean {
    return (this.mode(row) & S_IFMT) === S_IF.file;
  }
  isSymlink(row: number): boolean {
    return (this.mode(row) & S_IFMT) === S_IF.symlink;
  }

  /** Content index of a regular file, or -1 where it is empty or no regular file. */
  content(row: number): number {
    if (!this.isFile(row)) return -1;
    const content = this.#u32(row, ROW.a);
    return content === NONE ? -1 : content;
  }

  /** Device number as new_encode_dev gives it; 0 where the row is no device. */
  rdev(row: number): number {
    const type = this.mode(row) & S_IFMT;
    return type === S_IF.char || type === S_IF.block ? this.#u32(row, ROW.a) : 0;
  }

  /** Target of a symlink, as bytes. */
  target(row: number): Buffer {
    const start = this.#names + this.#u32(row, ROW.a);
    return this.bytes.subarray(start, start + this.#u32(row, ROW.b));
  }

  /** Rows of a directory's children: [first, end). */
  children(row: number): { first: number; end: number } {
    const count = this.#u32(row, ROW.b);
    const first = this.#u32(row, ROW.a);
    return { first, end: first + count };
  }

  /** Row of the child with this name, or -1. */
  lookup(directory: number, name: Buffer): number {
    if (!this.isDirectory(directory)) return -1;
    let { first: low, end: high } = this.children(directory);
    while (low < high) {
      const middle = (low + high) >>> 1;
      const order = Buffer.compare(this.nameBytes(middle), name);
      if (order === 0) return middle;
      if (order < 0) low = middle + 1;
      else high = middle;
    }
    return -1;
  }

  /** Row of a path given as a byte string (slashes at either end are ignored), or -1. */
  resolve(path: string): number {
    let row = 0;
    for (const name of path.split('/')) {
      if (name === '' || name === '.') continue;
      row = this.lookup(row, Buffer.from(name, 'latin1'));
      if (row < 0) return -1;
    }
    return row;
  }

  /** Extended attributes, full name (byte string) to value (a view); empty where there are none. */
  xattrs(row: number): Map<string, Buffer> {
    const found = new Map<string, Buffer>();
    const offset = this.#u32(row, ROW.xattrs);
    if (offset === NONE) return found;
    let at = this.#xattrs + offset;
    const count = this.bytes.readUInt16LE(at);
    at += 2;
    for (let i = 0; i < count; i++) {
      const nameLength = this.bytes.readUInt16LE(at);
      const valueLength = this.bytes.readUInt32LE(at + 2);
      at += 6;
      const name = this.bytes.toString('latin1', at, at + nameLength);
      at += nameLength;
      found.set(name, this.bytes.subarray(at, at + valueLength));
      at += valueLength;
    }
    return found;
  }

  /** Bytes of a content; never 0. */
  contentSize(content: number): number {
    return u64(this.bytes, this.#contents + content * CONTENT.bytes + CONTENT.size);
  }
  /** Number of the content's first part. */
  firstPart(content: number): number {
    return this.bytes.readUInt32LE(this.#contents + content * CONTENT.bytes + CONTENT.firstPart);
  }
  /** Number of the content's parts. */
  partCount(content: number): number {
    return partsOf(this.contentSize(content));
  }
  /** First row that uses the content. */
  firstRow(content: number): number {
    return this.bytes.readUInt32LE(this.#contents + content * CONTENT.bytes + CONTENT.firstRow);
  }
  /** Content that a part belongs to (binary search). */
  contentOfPart(part: number): number {
    let low = 0;
    let high = this.contents - 1;
    while (low < high) {
      const middle = (low + high + 1) >>> 1;
      if (this.firstPart(middle) <= part) low = middle;
      else high = middle - 1;
    }
    return low;
  }
  /** Bytes of one part of a content; `index` counts from 0 within the content. */
  partSize(content: number, index: number): number {
    return Math.min(PART_BYTES, this.contentSize(content) - index * PART_BYTES);
  }
}
