// Checks a flat TOC that came from outside: after it, every reader may follow every number in the
// table without looking. One pass over the rows, one over the contents, one over the xattr sets;
// errors name the row and the field. What does not live here: reading (toc.ts), building
// (toc-build.ts), the wire form (toc-unpack.ts).
import { FirstlightError } from '../errors/errors.ts';
import { S_IF } from '../image/tree.ts';
import { Toc } from './toc.ts';
import {
  CONTENT,
  HEADER,
  NAME_MAX,
  NONE,
  PARTS_MAX,
  partsOf,
  ROW,
  TARGET_MAX,
  TOC_MAGIC,
  TOC_VERSION,
  XATTR_NAME_MAX,
  XATTR_VALUE_MAX,
} from './toc-layout.ts';
import { MTIME_MAX_SECONDS, TOC_MAX_BYTES } from './toc-streams.ts';

const S_IFMT = 0o170000;
const U32 = 2 ** 32;
/** st_size of every directory. */
const DIRECTORY_SIZE = 4096;
const SLASH = 0x2f;
const DOT = 0x2e;

function fail(what: string): never {
  throw new FirstlightError('corrupt', `TOC: ${what}`);
}

class Checker {
  readonly #view: DataView;
  readonly #bytes: Uint8Array;
  readonly #rows: number;
  readonly #contents: number;
  readonly #contentsAt: number;
  readonly #xattrsAt: number;
  readonly #namesAt: number;
  readonly #namesBytes: number;
  /** Rows seen of each hard-link group, by the group's first row. */
  readonly #links: Uint32Array;
  /** Subdirectories seen of each directory. */
  readonly #subdirectories: Uint32Array;
  /** Offsets at which an xattr set begins. */
  readonly #sets = new Set<number>();
  #inodes = 0;
  #nextContent = 0;
  #parts = 0;
  #totalBytes = 0;

  constructor(bytes: Buffer) {
    if (bytes.length < HEADER.bytes) fail(`${bytes.length} bytes, fewer than its header has`);
    if (bytes.length > TOC_MAX_BYTES) fail(`${bytes.length} bytes, more than ${TOC_MAX_BYTES}`);
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
    const at = (field: number) => view.getUint32(field, true);
    if (at(HEADER.magic) !== TOC_MAGIC) fail('magic: not a TOC');
    if (at(HEADER.version) !== TOC_VERSION) fail(`version ${at(HEADER.version)}, not known here`);
    this.#bytes = bytes;
    this.#view = view;
    this.#rows = at(HEADER.rows);
    this.#contents = at(HEADER.contents);
    this.#contentsAt = HEADER.bytes + this.#rows * ROW.bytes;
    this.#xattrsAt = this.#contentsAt + this.#contents * CONTENT.bytes;
    this.#namesAt = this.#xattrsAt + at(HEADER.xattrsBytes);
    this.#namesBytes = at(HEADER.namesBytes);
    // Sums of u32 stay exact in a double: no overflow can hide here.
    const expected: [string, number, number][] = [
      ['rowsOffset', HEADER.rowsOffset, HEADER.bytes],
      ['contentsOffset', HEADER.contentsOffset, this.#contentsAt],
      ['xattrsOffset', HEADER.xattrsOffset, this.#xattrsAt],
      ['namesOffset', HEADER.namesOffset, this.#namesAt],
      ['fileBytes', HEADER.fileBytes, this.#namesAt + this.#namesBytes],
      ['reserved', HEADER.reserved, 0],
    ];
    for (const [name, field, value] of expected) {
      if (at(field) !== value) fail(`${name} is ${at(field)}, not ${value}`);
    }
    if (at(HEADER.fileBytes) !== bytes.length)
      fail(`fileBytes is ${at(HEADER.fileBytes)}, but there are ${bytes.length}`);
    if (this.#rows === 0) fail('rows: none');
    this.#links = new Uint32Array(this.#rows);
    this.#subdirectories = new Uint32Array(this.#rows);
  }

  run(): void {
    this.#xattrSets();
    let nextChild = 1;
    // The directory whose children come next, and the first row that is not its child.
    let directory = -1;
    let childrenEnd = 1;
    for (let row = 0; row < this.#rows; row++) {
      const at = HEADER.bytes + row * ROW.bytes;
      if (row > 0) {
        while (row >= childrenEnd) {
          directory = this.#nextDirectory(directory + 1, row);
          childrenEnd = this.#endOfChildren(directory);
        }
        this.#place(row, at, directory);
      } else this.#root(at);
      this.#attributes(row, at);
      const mode = this.#view.getUint32(at + ROW.mode, true);
      if ((mode & S_IFMT) === S_IF.dir) nextChild = this.#directory(row, at, nextChild);
      else this.#other(row, at, mode & S_IFMT);
      this.#hardLinks(row, at, mode & S_IFMT);
    }
    if (nextChild !== this.#rows) fail(`the directories name ${nextChild} rows of ${this.#rows}`);
    this.#linkCounts();
    this.#totals();
  }

  #u32(row: number, field: number): number {
    return this.#view.getUint32(HEADER.bytes + row * ROW.bytes + field, true);
  }

  #root(at: number): void {
    const view = this.#view;
    if ((view.getUint32(at + ROW.mode, true) & S_IFMT) !== S_IF.dir)
      fail('row 0: mode: the root is no directory');
    if (view.getUint16(at + ROW.nameLength, true) !== 0) fail('row 0: name: the root has one');
    if (view.getUint32(at + ROW.nameOffset, true) !== 0) fail('row 0: nameOffset is not 0');
    if (view.getUint32(at + ROW.parent, true) !== 0) fail('row 0: parent is not 0');
  }

  /** First directory at or after `from` that has children; it must stand before `row`. */
  #nextDirectory(from: number, row: number): number {
    for (let candidate = from; candidate < row; candidate++) {
      const isDirectory = (this.#u32(candidate, ROW.mode) & S_IFMT) === S_IF.dir;
      if (isDirectory && this.#u32(candidate, ROW.b) > 0) return candidate;
    }
    return fail(`row ${row}: parent: no directory before it names it`);
  }

  #endOfChildren(directory: number): number {
    return this.#u32(directory, ROW.a) + this.#u32(directory, ROW.b);
  }

  #place(row: number, at: number, directory: number): void {
    const view = this.#view;
    const parent = view.getUint32(at + ROW.parent, true);
    if (parent !== directory) fail(`row ${row}: parent is ${parent}, not ${directory}`);
    const offset = view.getUint32(at + ROW.nameOffset, true);
    const length = view.getUint16(at + ROW.nameLength, true);
    if (length === 0 || length > NAME_MAX) fail(`row ${row}: nameLength is ${length}`);
    if (offset + length > this.#namesBytes) fail(`row ${row}: nameOffset: the name ends outside`);
    const bytes = this.#bytes;
    const start = this.#namesAt + offset;
    for (let i = start; i < start + length; i++) {
      const byte = bytes[i]!;
      if (byte === 0 || byte === SLASH) fail(`row ${row}: name: holds ${byte === 0 ? 'NUL' : '/'}`);
    }
    if (bytes[start] === DOT && (length === 1 || (length === 2 && bytes[start + 1] === DOT)))
      fail(`row ${row}: name: is ${length === 1 ? '.' : '..'}`);
    if (row > this.#u32(directory, ROW.a)) this.#ascends(row, at, start, length);
  }

  /** The name must be greater than the one before it in the directory. */
  #ascends(row: number, at: number, start: number, length: number): void {
    const bytes = this.#bytes;
    const before = at - ROW.bytes;
    const beforeStart = this.#namesAt + this.#view.getUint32(before + ROW.nameOffset, true);
    const beforeLength = this.#view.getUint16(before + ROW.nameLength, true);
    const common = Math.min(length, beforeLength);
    let i = 0;
    while (i < common && bytes[beforeStart + i] === bytes[start + i]) i++;
    const greater =
      i < common ? bytes[start + i]! > bytes[beforeStart + i]! : length > beforeLength;
    if (!greater) fail(`row ${row}: name: not greater than the name before it`);
  }

  #attributes(row: number, at: number): void {
    const view = this.#view;
    const mode = view.getUint32(at + ROW.mode, true);
    if (mode > (S_IFMT | 0o7777)) fail(`row ${row}: mode has unknown bits (${mode.toString(8)})`);
    const nanoseconds = view.getUint32(at + ROW.mtimeNsec, true);
    if (nanoseconds > 999_999_999) fail(`row ${row}: mtimeNsec is ${nanoseconds}`);
    const seconds =
      view.getInt32(at + ROW.mtimeSec + 4, true) * U32 + view.getUint32(at + ROW.mtimeSec, true);
    if (seconds > MTIME_MAX_SECONDS || seconds < -MTIME_MAX_SECONDS)
      fail(`row ${row}: mtimeSec is too far from 1970`);
    const set = view.getUint32(at + ROW.xattrs, true);
    if (set !== NONE && !this.#sets.has(set)) fail(`row ${row}: xattrs: no set begins at ${set}`);
  }

  #size(row: number, at: number): number {
    const high = this.#view.getUint32(at + 4, true);
    if (high >= 2 ** 21) fail(`row ${row}: size is 2^53 or more`);
    return high * U32 + this.#view.getUint32(at, true);
  }

  /** @returns row of the next directory's first child */
  #directory(row: number, at: number, nextChild: number): number {
    const view = this.#view;
    const first = view.getUint32(at + ROW.a, true);
    const count = view.getUint32(at + ROW.b, true);
    if (first !== (count === 0 ? 0 : nextChild))
      fail(`row ${row}: a (first child) is ${first}, not ${count === 0 ? 0 : nextChild}`);
    if (nextChild + count > this.#rows) fail(`row ${row}: b (children) goes past the last row`);
    if (this.#size(row, at + ROW.size) !== DIRECTORY_SIZE)
      fail(`row ${row}: size of a directory is not ${DIRECTORY_SIZE}`);
    if (row > 0) this.#subdirectories[view.getUint32(at + ROW.parent, true)]!++;
    return nextChild + count;
  }

  #other(row: number, at: number, type: number): void {
    const view = this.#view;
    const size = this.#size(row, at + ROW.size);
    const a = view.getUint32(at + ROW.a, true);
    const b = view.getUint32(at + ROW.b, true);
    if (type === S_IF.symlink) {
      this.#symlink(row, size, a, b);
      return;
    }
    if (b !== 0) fail(`row ${row}: b is ${b}, not 0`);
    if (type === S_IF.file) {
      this.#file(row, size, a);
      return;
    }
    if (size !== 0) fail(`row ${row}: size is ${size}, but only files have one`);
    if (type === S_IF.char || type === S_IF.block) return;
    if (type !== S_IF.fifo && type !== S_IF.socket) fail(`row ${row}: mode: unknown type`);
    if (a !== 0) fail(`row ${row}: a is ${a}, not 0`);
  }

  #symlink(row: number, size: number, offset: number, length: number): void {
    if (length === 0 || length > TARGET_MAX) fail(`row ${row}: b (target length) is ${length}`);
    if (size !== length) fail(`row ${row}: size is not the target's length`);
    if (offset + length > this.#namesBytes) fail(`row ${row}: a: the target ends outside`);
    const start = this.#namesAt + offset;
    for (let i = start; i < start + length; i++) {
      if (this.#bytes[i] === 0) fail(`row ${row}: target: holds NUL`);
    }
  }

  #file(row: number, size: number, content: number): void {
    if (size === 0 || content === NONE) {
      if (size !== 0 || content !== NONE)
        fail(`row ${row}: a (content) and size do not agree that the file is empty`);
      return;
    }
    if (content > this.#nextContent || content >= this.#contents)
      fail(`row ${row}: a (content) is ${content}, ${this.#nextContent} at most`);
    const at = this.#contentsAt + content * CONTENT.bytes;
    if (this.#size(row, at + CONTENT.size) !== size)
      fail(`row ${row}: size is not that of content ${content}`);
    if (content < this.#nextContent) return;
    this.#nextContent++;
    const firstPart = this.#view.getUint32(at + CONTENT.firstPart, true);
    if (firstPart !== this.#parts)
      fail(`content ${content}: firstPart is ${firstPart}, not ${this.#parts}`);
    const firstRow = this.#view.getUint32(at + CONTENT.firstRow, true);
    if (firstRow !== row) fail(`content ${content}: firstRow is ${firstRow}, not ${row}`);
    this.#parts += partsOf(size);
    this.#totalBytes += size;
    if (this.#parts > PARTS_MAX) fail(`content ${content}: more than ${PARTS_MAX} parts`);
    if (!Number.isSafeInteger(this.#totalBytes)) fail(`content ${content}: total is 2^53 or more`);
  }

  #hardLinks(row: number, at: number, type: number): void {
    const inode = this.#view.getUint32(at + ROW.inode, true);
    if (inode === row) {
      this.#inodes++;
      this.#links[row] = 1;
      return;
    }
    if (inode > row) fail(`row ${row}: inode is ${inode}, a later row`);
    if (type === S_IF.dir) fail(`row ${row}: inode: a second name of a directory`);
    if (this.#u32(inode, ROW.inode) !== inode)
      fail(`row ${row}: inode is ${inode}, which is a link itself`);
    const from = HEADER.bytes + inode * ROW.bytes;
    const bytes = this.#bytes;
    for (let i: number = ROW.layer; i < ROW.bytes; i++) {
      if (i >= ROW.parent && i < ROW.a) continue; // a link has a parent of its own
      if (bytes[at + i] !== bytes[from + i])
        fail(`row ${row}: byte ${i} differs from row ${inode}, of which it is a link`);
    }
    this.#links[inode]!++;
  }

  #linkCounts(): void {
    for (let row = 0; row < this.#rows; row++) {
      const at = HEADER.bytes + row * ROW.bytes;
      const isDirectory = (this.#view.getUint32(at + ROW.mode, true) & S_IFMT) === S_IF.dir;
      const inode = this.#view.getUint32(at + ROW.inode, true);
      const expected = isDirectory ? 2 + this.#subdirectories[row]! : this.#links[inode]!;
      const nlink = this.#view.getUint32(at + ROW.nlink, true);
      if (nlink !== expected) fail(`row ${row}: nlink is ${nlink}, not ${expected}`);
    }
  }

  /** Sets follow each other from the section's start to its end. */
  #xattrSets(): void {
    const view = this.#view;
    const bytes = Buffer.from(this.#bytes.buffer, this.#bytes.byteOffset, this.#bytes.length);
    const end = this.#namesAt;
    for (let at = this.#xattrsAt; at < end; ) {
      const offset = at - this.#xattrsAt;
      this.#sets.add(offset);
      if (at + 2 > end) fail(`xattr set at ${offset}: count: ends outside`);
      const count = view.getUint16(at, true);
      if (count === 0) fail(`xattr set at ${offset}: count is 0`);
      at += 2;
      let before: Buffer | undefined;
      for (let i = 0; i < count; i++) {
        if (at + 6 > end) fail(`xattr set at ${offset}: entry ${i} ends outside`);
        const nameLength = view.getUint16(at, true);
        const valueLength = view.getUint32(at + 2, true);
        at += 6;
        if (nameLength === 0 || nameLength > XATTR_NAME_MAX)
          fail(`xattr set at ${offset}: entry ${i}: name length is ${nameLength}`);
        if (valueLength > XATTR_VALUE_MAX)
          fail(`xattr set at ${offset}: entry ${i}: value length is ${valueLength}`);
        if (at + nameLength + valueLength > end)
          fail(`xattr set at ${offset}: entry ${i} ends outside`);
        const name = bytes.subarray(at, at + nameLength);
        if (name.includes(0)) fail(`xattr set at ${offset}: entry ${i}: name holds NUL`);
        if (before !== undefined && Buffer.compare(before, name) >= 0)
          fail(`xattr set at ${offset}: entry ${i}: name not greater than the one before`);
        before = name;
        at += nameLength + valueLength;
      }
    }
  }

  #totals(): void {
    const expected: [string, number, number][] = [
      ['contents', HEADER.contents, this.#nextContent],
      ['parts', HEADER.parts, this.#parts],
      ['inodes', HEADER.inodes, this.#inodes],
      ['totalBytes (low half)', HEADER.totalBytes, this.#totalBytes % U32],
      ['totalBytes (high half)', HEADER.totalBytes + 4, Math.floor(this.#totalBytes / U32)],
    ];
    for (const [name, field, value] of expected) {
      const stands = this.#view.getUint32(field, true);
      if (stands !== value) fail(`${name} is ${stands}, not ${value}`);
    }
  }
}

/** The reader of a flat TOC in which everything has been checked; throws 'corrupt' naming the field. */
export function checkToc(bytes: Buffer): Toc {
  new Checker(bytes).run();
  return new Toc(bytes);
}
