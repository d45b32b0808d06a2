// Writes the wire form of a TOC: columns instead of rows, each value as small as its neighbours let
// it be, so that a general compressor makes little of it. Everything that follows from other values
// (parents, link counts, offsets, content numbers) is left out. Reading it back: toc-unpack.ts.
import { FirstlightError } from '../errors/errors.ts';
import { S_IF } from '../image/tree.ts';
import type { Toc } from './toc.ts';
import { HEADER, NONE, ROW } from './toc-layout.ts';
import { STREAMS, type StreamName } from './toc-streams.ts';
import { unpackToc } from './toc-unpack.ts';
import { VarintWriter } from './varint.ts';

const S_IFMT = 0o170000;

/** Numbers each distinct key in the order of its first use. */
class Dictionary {
  readonly #known = new Map<string, number>();

  /** Number of `key`; `added` is called where it is new. */
  index(key: string, added: () => void): number {
    const known = this.#known.get(key);
    if (known !== undefined) return known;
    const index = this.#known.size;
    this.#known.set(key, index);
    added();
    return index;
  }
}

type Columns = Record<StreamName, VarintWriter>;

/** State of one run over the rows. */
class Packer {
  readonly columns = Object.fromEntries(
    STREAMS.map((name) => [name, new VarintWriter()]),
  ) as Columns;
  readonly #toc: Toc;
  readonly #kinds = new Dictionary();
  readonly #times = new Dictionary();
  #lastSeconds = 0;
  #layer = 0;
  #layerRun = 0;
  #contents = 0;
  #fileInodes = 0;
  #lastCopy = 0;
  #lastLink = 0;
  #inodes = 0;
  #lastXattrs = 0;

  constructor(toc: Toc) {
    this.#toc = toc;
  }

  run(): void {
    const toc = this.#toc;
    for (let row = 0; row < toc.rows; row++) {
      if (row > 0) this.#name(row);
      if (toc.inode(row) === row) this.#inode(row);
      else {
        this.columns.links.unsigned(row - this.#lastLink);
        this.columns.links.unsigned(row - toc.inode(row));
        this.#lastLink = row;
      }
    }
    this.#endLayerRun();
    const start = toc.bytes.readUInt32LE(HEADER.xattrsOffset);
    const length = toc.bytes.readUInt32LE(HEADER.xattrsBytes);
    this.columns.sets.raw(toc.bytes.subarray(start, start + length));
  }

  #name(row: number): void {
    const toc = this.#toc;
    const name = toc.nameBytes(row);
    let shared = 0;
    if (row > 1 && toc.parent(row) === toc.parent(row - 1)) {
      const before = toc.nameBytes(row - 1);
      while (shared < before.length && shared < name.length && before[shared] === name[shared])
        shared++;
    }
    this.columns.prefixes.byte(shared);
    this.columns.names.raw(name.subarray(shared));
    this.columns.names.byte(0);
  }

  #inode(row: number): void {
    const toc = this.#toc;
    const mode = toc.mode(row);
    const { columns } = this;
    const kind = this.#kinds.index(`${mode},${toc.uid(row)},${toc.gid(row)}`, () => {
      columns.kinds.unsigned(mode);
      columns.kinds.unsigned(toc.uid(row));
      columns.kinds.unsigned(toc.gid(row));
    });
    columns.kindOf.unsigned(kind);
    this.#time(row);
    if (toc.layer(row) !== this.#layer) {
      this.#endLayerRun();
      this.#layer = toc.layer(row);
    }
    this.#layerRun++;
    const type = mode & S_IFMT;
    if (type === S_IF.dir) {
      const { first, end } = toc.children(row);
      columns.children.unsigned(end - first);
    } else if (type === S_IF.file) this.#file(row);
    else if (type === S_IF.symlink) {
      columns.targets.raw(toc.target(row));
      columns.targets.byte(0);
    } else if (type === S_IF.char || type === S_IF.block) columns.devices.unsigned(toc.rdev(row));
    const set = toc.bytes.readUInt32LE(HEADER.bytes + row * ROW.bytes + ROW.xattrs);
    if (set !== NONE) {
      columns.xattrs.unsigned(this.#inodes - this.#lastXattrs);
      columns.xattrs.unsigned(set);
      this.#lastXattrs = this.#inodes;
    }
    this.#inodes++;
  }

  #time(row: number): void {
    const seconds = this.#toc.mtimeSec(row);
    const nanoseconds = this.#toc.mtimeNsec(row);
    const index = this.#times.index(`${seconds}.${nanoseconds}`, () => {
      this.columns.times.signed(seconds - this.#lastSeconds);
      this.columns.times.unsigned(nanoseconds);
      this.#lastSeconds = seconds;
    });
    this.columns.timeOf.unsigned(index);
  }

  #endLayerRun(): void {
    if (this.#layerRun === 0) return;
    this.columns.layers.unsigned(this.#layer);
    this.columns.layers.unsigned(this.#layerRun);
    this.#layerRun = 0;
  }

  #file(row: number): void {
    const content = this.#toc.content(row);
    if (content >= 0 && content < this.#contents) {
      this.columns.copies.unsigned(this.#fileInodes - this.#lastCopy);
      this.columns.copies.unsigned(this.#contents - 1 - content);
      this.#lastCopy = this.#fileInodes;
    } else {
      this.columns.sizes.unsigned(this.#toc.size(row));
      if (content >= 0) this.#contents++;
    }
    this.#fileInodes++;
  }
}

/**
 * The wire form of a TOC that has passed `checkToc` or comes from `buildToc`. The same table gives
 * the same bytes, and `unpackToc` gives the table back.
 */
export function packToc(toc: Toc): Buffer {
  const packer = new Packer(toc);
  packer.run();
  const packed = new VarintWriter();
  packed.unsigned(toc.rows);
  packed.unsigned(toc.contents);
  packed.unsigned(toc.bytes.readUInt32LE(HEADER.namesBytes));
  const columns = STREAMS.map((name) => packer.columns[name].done());
  for (const column of columns) packed.unsigned(column.length);
  for (const column of columns) packed.raw(column);
  const bytes = packed.done();
  // Two tables can say the same with their names in another order; only the builder's order travels.
  if (!unpackToc(bytes).equals(toc.bytes)) {
    throw new FirstlightError('internal', 'the TOC is not in the form that buildToc gives it');
  }
  return bytes;
}
