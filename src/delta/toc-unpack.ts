// Rebuilds the flat TOC from its wire form (toc-pack.ts). What it allocates is declared at the start
// and capped, and every count is bounded by what is there; whether the table makes sense as a tree
// is for `checkToc`, which a caller that got the bytes from outside runs on the result.
import { FirstlightError } from '../errors/errors.ts';
import { S_IF } from '../image/tree.ts';
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
} from './toc-layout.ts';
import { NameHeap } from './toc-names.ts';
import { STREAMS, type StreamName, TOC_MAX_BYTES } from './toc-streams.ts';
import { VarintReader } from './varint.ts';

const S_IFMT = 0o170000;
const U32 = 2 ** 32;

function fail(what: string): never {
  throw new FirstlightError('corrupt', `TOC: ${what}`);
}

/** Counts and columns of a packed TOC. */
interface Packed {
  rows: number;
  contents: number;
  namesBytes: number;
  columns: Record<StreamName, Uint8Array>;
}

function split(bytes: Uint8Array): Packed {
  const reader = new VarintReader(bytes, 'TOC');
  const rows = reader.atMost(TOC_MAX_BYTES / ROW.bytes, 'number of rows');
  if (rows === 0) fail('no rows');
  const contents = reader.atMost(rows, 'number of contents');
  const namesBytes = reader.atMost(TOC_MAX_BYTES, 'bytes of names');
  const lengths = STREAMS.map((name) => reader.atMost(bytes.length, `bytes of ${name}`));
  const columns = Object.fromEntries(
    STREAMS.map((name, i) => [name, reader.raw(lengths[i]!)]),
  ) as Record<StreamName, Uint8Array>;
  reader.end();
  // Every row has a byte here and another among the names: few bytes cannot ask for much memory.
  if (columns.prefixes.length !== rows - 1 || columns.names.length < rows - 1)
    fail(`prefixes: ${columns.prefixes.length} for ${rows} rows`);
  return { rows, contents, namesBytes, columns };
}

/** Pairs of (distance from the pair before, value): what only few rows have. */
class Sparse {
  readonly #reader: VarintReader;
  /** Where the next value belongs; past every index where there is none. */
  next = 0;
  value = 0;

  constructor(bytes: Uint8Array, field: string) {
    this.#reader = new VarintReader(bytes, `TOC ${field}`);
    this.advance();
  }

  advance(): void {
    if (this.#reader.left === 0) {
      this.next = Number.POSITIVE_INFINITY;
      return;
    }
    this.next += this.#reader.unsigned();
    this.value = this.#reader.unsigned();
  }

  end(field: string): void {
    if (this.next !== Number.POSITIVE_INFINITY) fail(`${field} beyond the last row`);
  }
}

/** All numbers of a dictionary, `width` columns of them. */
function dictionary(bytes: Uint8Array, field: string, width: number): Float64Array[] {
  const reader = new VarintReader(bytes, `TOC ${field}`);
  const values: number[] = [];
  while (reader.left > 0) values.push(reader.unsigned());
  if (values.length % width !== 0) fail(`${field}: ${values.length} numbers`);
  return Array.from({ length: width }, (_, column) =>
    Float64Array.from({ length: values.length / width }, (_, i) => values[i * width + column]!),
  );
}

/** The table under construction. */
class Unpacker {
  readonly #packed: Packed;
  readonly #view: DataView;
  readonly #contentsAt: number;
  readonly #names: NameHeap;
  readonly #kinds: Float64Array[];
  readonly #times: Float64Array[];
  readonly #kindOf: VarintReader;
  readonly #timeOf: VarintReader;
  readonly #layers: VarintReader;
  readonly #children: VarintReader;
  readonly #sizes: VarintReader;
  readonly #devices: VarintReader;
  readonly #copies: Sparse;
  readonly #links: Sparse;
  readonly #xattrs: Sparse;
  readonly #directories: Uint32Array;
  #directoryCount = 0;
  #nextChild = 1;
  #layer = 0;
  #layerRun = 0;
  #inodes = 0;
  #fileInodes = 0;
  #contents = 0;
  #parts = 0;
  #totalBytes = 0;
  /** The flat table; a view of a little more memory, which the heap of names works in. */
  readonly bytes: Buffer;

  constructor(packed: Packed) {
    const { rows, contents, namesBytes, columns } = packed;
    const contentsAt = HEADER.bytes + rows * ROW.bytes;
    const xattrsAt = contentsAt + contents * CONTENT.bytes;
    const namesAt = xattrsAt + columns.sets.length;
    const total = namesAt + namesBytes;
    if (total > TOC_MAX_BYTES) fail(`${total} bytes, more than ${TOC_MAX_BYTES}`);
    const memory = new ArrayBuffer(total + TARGET_MAX + 1);
    this.bytes = Buffer.from(memory, 0, total);
    this.bytes.set(columns.sets, xattrsAt);
    this.#packed = packed;
    this.#view = new DataView(memory);
    this.#contentsAt = contentsAt;
    this.#names = new NameHeap(new Uint8Array(memory, namesAt), namesBytes, rows);
    this.#kinds = dictionary(columns.kinds, 'kinds', 3);
    this.#times = dictionary(columns.times, 'times', 2);
    this.#sumTimes();
    this.#kindOf = new VarintReader(columns.kindOf, 'TOC kindOf');
    this.#timeOf = new VarintReader(columns.timeOf, 'TOC timeOf');
    this.#layers = new VarintReader(columns.layers, 'TOC layers');
    this.#children = new VarintReader(columns.children, 'TOC children');
    this.#sizes = new VarintReader(columns.sizes, 'TOC sizes');
    this.#devices = new VarintReader(columns.devices, 'TOC devices');
    this.#copies = new Sparse(columns.copies, 'copies');
    this.#links = new Sparse(columns.links, 'links');
    this.#xattrs = new Sparse(columns.xattrs, 'xattrs');
    this.#directories = new Uint32Array(rows);
  }

  /** Makes the seconds, which stand as differences, absolute. */
  #sumTimes(): void {
    const [seconds, nanoseconds] = this.#times as [Float64Array, Float64Array];
    let sum = 0;
    for (let i = 0; i < seconds.length; i++) {
      const zigzag = seconds[i]!;
      sum += zigzag % 2 === 0 ? zigzag / 2 : -(zigzag + 1) / 2;
      if (!Number.isSafeInteger(sum)) fail(`times: entry ${i} is too far from 1970`);
      if (nanoseconds[i]! >= U32) fail(`times: entry ${i} has ${nanoseconds[i]} ns`);
      seconds[i] = sum;
    }
    for (const column of this.#kinds) {
      for (const value of column) if (value >= U32) fail(`kinds: ${value} is too large`);
    }
  }

  run(): void {
    const { rows, columns } = this.#packed;
    const { prefixes, names: text } = columns;
    const names = this.#names;
    const view = this.#view;
    let textAt = 0;
    let directory = -1;
    let parent = 0;
    let left = 0;
    for (let row = 0; row < rows; row++) {
      const at = HEADER.bytes + row * ROW.bytes;
      let shared = 0;
      if (row > 0) {
        shared = prefixes[row - 1]!;
        if (left === 0) {
          if (shared !== 0) fail(`prefixes: row ${row} shares with no name`);
          do {
            if (++directory >= this.#directoryCount)
              fail(`children: row ${row} is in no directory`);
            parent = this.#directories[directory]!;
            left = view.getUint32(HEADER.bytes + parent * ROW.bytes + ROW.b, true);
          } while (left === 0);
        }
        left--;
        view.setUint32(at + ROW.parent, parent, true);
      }
      if (this.#links.next === row) this.#link(row);
      else this.#inode(row, at, parent);
      // A link's target goes into the heap before its name: the order in which the table is built.
      if (row > 0) {
        textAt = names.addName(text, textAt, shared, NAME_MAX);
        view.setUint32(at + ROW.nameOffset, names.offset, true);
        view.setUint16(at + ROW.nameLength, names.length, true);
      }
    }
    if (textAt !== text.length) fail('names: bytes left over');
    this.#finish();
  }

  #link(row: number): void {
    const target = row - this.#links.value;
    if (target < 0 || target === row) fail(`links: row ${row} names an inode outside the table`);
    const view = this.#view;
    const at = HEADER.bytes + row * ROW.bytes;
    const from = HEADER.bytes + target * ROW.bytes;
    if (view.getUint32(from + ROW.inode, true) !== target)
      fail(`links: row ${row} names row ${target}, which is a link itself`);
    if ((view.getUint32(from + ROW.mode, true) & S_IFMT) === S_IF.dir)
      fail(`links: row ${row} is a second name of a directory`);
    view.setUint32(at + ROW.inode, target, true);
    view.setUint32(from + ROW.nlink, view.getUint32(from + ROW.nlink, true) + 1, true);
    this.#links.advance();
  }

  #inode(row: number, at: number, parent: number): void {
    const view = this.#view;
    const kind = this.#kindOf.unsigned();
    const [modes, uids, gids] = this.#kinds as [Float64Array, Float64Array, Float64Array];
    if (kind >= modes.length) fail(`kindOf: row ${row} has kind ${kind} of ${modes.length}`);
    const mode = modes[kind]!;
    view.setUint32(at + ROW.mode, mode, true);
    view.setUint32(at + ROW.uid, uids[kind]!, true);
    view.setUint32(at + ROW.gid, gids[kind]!, true);
    const time = this.#timeOf.unsigned();
    const [seconds, nanoseconds] = this.#times as [Float64Array, Float64Array];
    if (time >= seconds.length) fail(`timeOf: row ${row} has time ${time} of ${seconds.length}`);
    const second = seconds[time]!;
    view.setUint32(at + ROW.mtimeSec, second, true);
    view.setInt32(at + ROW.mtimeSec + 4, Math.floor(second / U32), true);
    view.setUint32(at + ROW.mtimeNsec, nanoseconds[time]!, true);
    if (this.#layerRun === 0) this.#nextLayer(row);
    this.#layerRun--;
    view.setUint16(at + ROW.layer, this.#layer, true);
    view.setUint32(at + ROW.inode, row, true);
    view.setUint32(at + ROW.nlink, 1, true);
    const type = mode & S_IFMT;
    if (type === S_IF.file) this.#file(row, at);
    else if (type === S_IF.dir) this.#directory(row, at, parent);
    else if (type === S_IF.symlink) this.#symlink(at);
    else if (type === S_IF.char || type === S_IF.block) {
      view.setUint32(at + ROW.a, this.#devices.atMost(U32 - 1, 'device number'), true);
    }
    let set = NONE;
    if (this.#xattrs.next === this.#inodes) {
      set = this.#xattrs.value;
      if (set >= this.#packed.columns.sets.length) fail(`xattrs: row ${row} points past the sets`);
      this.#xattrs.advance();
    }
    view.setUint32(at + ROW.xattrs, set, true);
    this.#inodes++;
  }

  #nextLayer(row: number): void {
    this.#layer = this.#layers.atMost(0xffff, 'layer');
    this.#layerRun = this.#layers.unsigned();
    if (this.#layerRun === 0) fail(`layers: empty run at row ${row}`);
  }

  #directory(row: number, at: number, parent: number): void {
    const view = this.#view;
    const count = this.#children.unsigned();
    if (count > this.#packed.rows - this.#nextChild)
      fail(`children: row ${row} has ${count}, more than there are rows`);
    view.setUint32(at + ROW.size, 4096, true);
    view.setUint32(at + ROW.a, count === 0 ? 0 : this.#nextChild, true);
    view.setUint32(at + ROW.b, count, true);
    view.setUint32(at + ROW.nlink, 2, true);
    this.#nextChild += count;
    this.#directories[this.#directoryCount++] = row;
    if (row === 0) return;
    const links = HEADER.bytes + parent * ROW.bytes + ROW.nlink;
    view.setUint32(links, view.getUint32(links, true) + 1, true);
  }

  #symlink(at: number): void {
    this.#names.addTarget(this.#packed.columns.targets);
    const view = this.#view;
    view.setUint32(at + ROW.size, this.#names.length, true);
    view.setUint32(at + ROW.a, this.#names.offset, true);
    view.setUint32(at + ROW.b, this.#names.length, true);
  }

  #file(row: number, at: number): void {
    const view = this.#view;
    let size: number;
    let content: number;
    if (this.#copies.next === this.#fileInodes) {
      content = this.#contents - 1 - this.#copies.value;
      if (content < 0) fail(`copies: row ${row} names a content before the first`);
      const from = this.#contentsAt + content * CONTENT.bytes;
      size = view.getUint32(from, true) + view.getUint32(from + 4, true) * U32;
      this.#copies.advance();
    } else {
      size = this.#sizes.unsigned();
      content = size === 0 ? NONE : this.#content(row, size);
    }
    this.#fileInodes++;
    view.setUint32(at + ROW.size, size, true);
    view.setUint32(at + ROW.size + 4, Math.floor(size / U32), true);
    view.setUint32(at + ROW.a, content, true);
  }

  /** Adds the content that `row` is the first to use. */
  #content(row: number, size: number): number {
    const content = this.#contents++;
    if (content >= this.#packed.contents) fail(`contents: more than ${this.#packed.contents}`);
    const at = this.#contentsAt + content * CONTENT.bytes;
    const view = this.#view;
    view.setUint32(at + CONTENT.size, size, true);
    view.setUint32(at + CONTENT.size + 4, Math.floor(size / U32), true);
    view.setUint32(at + CONTENT.firstPart, this.#parts, true);
    view.setUint32(at + CONTENT.firstRow, row, true);
    this.#parts += partsOf(size);
    this.#totalBytes += size;
    if (this.#parts > PARTS_MAX) fail(`sizes: row ${row}: more than ${PARTS_MAX} parts`);
    return content;
  }

  /** Gives the further names of inodes their attributes, and checks that nothing is left over. */
  #finish(): void {
    const { rows, contents, namesBytes, columns } = this.#packed;
    if (this.#nextChild !== rows) fail(`children: ${this.#nextChild} rows named of ${rows}`);
    if (this.#contents !== contents) fail(`contents: ${this.#contents} used of ${contents}`);
    if (this.#layerRun !== 0) fail('layers: a run goes on past the last row');
    if (this.#names.bytes !== namesBytes) fail('names: fewer bytes than declared');
    this.#names.end(columns.targets);
    for (const reader of [this.#kindOf, this.#timeOf, this.#layers, this.#children]) reader.end();
    for (const reader of [this.#sizes, this.#devices]) reader.end();
    this.#copies.end('copies');
    this.#links.end('links');
    this.#xattrs.end('xattrs');
    if (this.#inodes !== rows) this.#copyLinks();
    this.#header();
  }

  #copyLinks(): void {
    const { bytes } = this;
    const view = this.#view;
    for (let row = 0; row < this.#packed.rows; row++) {
      const at = HEADER.bytes + row * ROW.bytes;
      const inode = view.getUint32(at + ROW.inode, true);
      if (inode === row) continue;
      const from = HEADER.bytes + inode * ROW.bytes;
      // Everything but the name and the parent is the inode's.
      bytes.copy(bytes, at + ROW.layer, from + ROW.layer, from + ROW.parent);
      bytes.copy(bytes, at + ROW.a, from + ROW.a, from + ROW.bytes);
    }
  }

  #header(): void {
    const { rows, contents, namesBytes, columns } = this.#packed;
    const view = this.#view;
    const xattrsAt = this.#contentsAt + contents * CONTENT.bytes;
    const fields: [number, number][] = [
      [HEADER.magic, TOC_MAGIC],
      [HEADER.version, TOC_VERSION],
      [HEADER.rows, rows],
      [HEADER.contents, contents],
      [HEADER.parts, this.#parts],
      [HEADER.inodes, this.#inodes],
      [HEADER.totalBytes, this.#totalBytes % U32],
      [HEADER.totalBytes + 4, Math.floor(this.#totalBytes / U32)],
      [HEADER.rowsOffset, HEADER.bytes],
      [HEADER.contentsOffset, this.#contentsAt],
      [HEADER.xattrsOffset, xattrsAt],
      [HEADER.xattrsBytes, columns.sets.length],
      [HEADER.namesOffset, xattrsAt + columns.sets.length],
      [HEADER.namesBytes, namesBytes],
      [HEADER.fileBytes, this.bytes.length],
    ];
    for (const [at, value] of fields) view.setUint32(at, value, true);
  }
}

/**
 * The flat TOC of its wire form, byte for byte what `packToc` was given. Throws 'corrupt' where the
 * form is broken; that the result is a good tree is for `checkToc` to say.
 */
export function unpackToc(packed: Uint8Array): Buffer {
  const unpacker = new Unpacker(split(packed));
  unpacker.run();
  return unpacker.bytes;
}
