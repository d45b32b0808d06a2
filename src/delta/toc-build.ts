// Builds the flat TOC from a merged tree. Deterministic: the same tree gives the same bytes. The work
// is a generator, so that a server can do it without holding its event loop up.
import { setImmediate } from 'node:timers/promises';
import { FirstlightError } from '../errors/errors.ts';
import { bytesOf, type Inode, S_IF, type TreeNode } from '../image/tree.ts';
import {
  CONTENT,
  HEADER,
  NONE,
  PARTS_MAX,
  partsOf,
  ROW,
  TOC_MAGIC,
  TOC_VERSION,
} from './toc-layout.ts';
import { MTIME_MAX_SECONDS } from './toc-streams.ts';

/** A TOC with what it needs beside it. */
export interface BuiltToc {
  /** The flat table. */
  bytes: Buffer;
  /** sha256 of each content, 32 bytes each, in content order. */
  digests: Buffer;
}

/** Rows between two chances to pause: about a millisecond each of the passes over them. */
const ROWS_A_STEP = 1024;

interface Placed {
  node: TreeNode;
  name: Buffer;
  parent: number;
  firstChild: number;
  childCount: number;
  subdirectories: number;
}

/** Heap of byte strings in which equal strings stand once. */
class Heap {
  readonly chunks: Buffer[] = [];
  bytes = 0;
  readonly #known = new Map<string, number>();

  /** Offset of `data`, added where it is new. */
  add(data: Buffer): number {
    const key = data.toString('latin1');
    const known = this.#known.get(key);
    if (known !== undefined) return known;
    const offset = this.bytes;
    this.#known.set(key, offset);
    this.chunks.push(data);
    this.bytes += data.length;
    return offset;
  }
}

/** Rows in breadth-first order, children sorted by the bytes of their names. */
function* place(root: TreeNode): Generator<void, Placed[]> {
  const rows: Placed[] = [
    {
      node: root,
      name: Buffer.alloc(0),
      parent: 0,
      firstChild: 0,
      childCount: 0,
      subdirectories: 0,
    },
  ];
  for (let row = 0; row < rows.length; row++) {
    if (row % ROWS_A_STEP === 0) yield;
    const placed = rows[row]!;
    const children = placed.node.children;
    if (children === undefined || children.size === 0) continue;
    placed.firstChild = rows.length;
    placed.childCount = children.size;
    const sorted = [...children.values()]
      .map((node) => ({ node, name: bytesOf(node.name) }))
      .sort((x, y) => Buffer.compare(x.name, y.name));
    for (const { node, name } of sorted) {
      if (node.inode.type === 'dir') placed.subdirectories++;
      rows.push({ node, name, parent: row, firstChild: 0, childCount: 0, subdirectories: 0 });
    }
  }
  return rows;
}

function encodeXattrs(xattrs: Map<string, Buffer>): Buffer {
  const chunks: Buffer[] = [];
  const head = Buffer.alloc(2);
  head.writeUInt16LE(xattrs.size);
  chunks.push(head);
  const sorted = [...xattrs]
    .map(([name, value]) => ({ name: bytesOf(name), value }))
    .sort((x, y) => Buffer.compare(x.name, y.name));
  for (const { name, value } of sorted) {
    const lengths = Buffer.alloc(6);
    lengths.writeUInt16LE(name.length);
    lengths.writeUInt32LE(value.length, 2);
    chunks.push(lengths, name, value);
  }
  return Buffer.concat(chunks);
}

/** Device number as the kernel's new_encode_dev (include/linux/kdev_t.h). */
export function encodeDevice(major: number, minor: number): number {
  return ((minor & 0xff) | (major << 8) | ((minor & ~0xff) << 12)) >>> 0;
}

/** Builds the flat TOC of a merged tree; `root` must be a directory. */
export function buildToc(root: TreeNode): BuiltToc {
  const steps = build(root);
  for (;;) {
    const step = steps.next();
    if (step.done === true) return step.value;
  }
}

/**
 * {@link buildToc} with other work in between: a hundred thousand entries take a second in all.
 * @throws the reason of `signal`
 */
export async function buildTocInSteps(root: TreeNode, signal?: AbortSignal): Promise<BuiltToc> {
  const steps = build(root);
  for (;;) {
    const step = steps.next();
    if (step.done === true) return step.value;
    await setImmediate();
    signal?.throwIfAborted();
  }
}

function* build(root: TreeNode): Generator<void, BuiltToc> {
  if (root.inode.type !== 'dir')
    throw new FirstlightError('corrupt', 'the root of an image must be a directory');
  const rows = yield* place(root);
  const names = new Heap();
  const xattrs = new Heap();
  const contents = new Map<
    string,
    { index: number; size: number; firstPart: number; firstRow: number }
  >();
  const inodes = new Map<Inode, { row: number; links: number }>();
  let parts = 0;
  let totalBytes = 0;
  for (const [row, { node }] of rows.entries()) {
    if (row % ROWS_A_STEP === 0) yield;
    const inode = node.inode;
    if (!(Math.abs(inode.mtimeSec) <= MTIME_MAX_SECONDS))
      throw new FirstlightError('corrupt', `mtime of ${node.name} is out of range`);
    const group = inodes.get(inode);
    if (group !== undefined) group.links++;
    else inodes.set(inode, { row, links: 1 });
    if (inode.type !== 'file' || inode.size === 0) continue;
    const digest = inode.digest;
    if (digest === undefined) throw new FirstlightError('internal', `no digest for ${node.name}`);
    const known = contents.get(digest);
    if (known !== undefined && known.size !== inode.size)
      throw new FirstlightError('corrupt', `two sizes for the content sha256:${digest}`);
    if (known === undefined) {
      contents.set(digest, {
        index: contents.size,
        size: inode.size,
        firstPart: parts,
        firstRow: row,
      });
      parts += partsOf(inode.size);
      if (parts > PARTS_MAX)
        throw new FirstlightError('unsupported', `more than ${PARTS_MAX} MiB of content`);
      totalBytes += inode.size;
    }
  }

  const table = Buffer.alloc(
    HEADER.bytes + rows.length * ROW.bytes + contents.size * CONTENT.bytes,
  );
  for (const [row, placed] of rows.entries()) {
    if (row % ROWS_A_STEP === 0) yield;
    const { node, name } = placed;
    const { inode } = node;
    const at = HEADER.bytes + row * ROW.bytes;
    const group = inodes.get(inode)!;
    let size = inode.size;
    let a = 0;
    let b = 0;
    if (inode.type === 'dir') {
      size = 4096;
      a = placed.firstChild;
      b = placed.childCount;
    } else if (inode.type === 'file') {
      a = inode.size === 0 ? NONE : contents.get(inode.digest!)!.index;
    } else if (inode.type === 'symlink') {
      const target = bytesOf(inode.target ?? '');
      a = names.add(target);
      b = target.length;
      size = target.length;
    } else {
      size = 0;
      if (inode.type !== 'fifo' && inode.type !== 'socket') {
        a = encodeDevice(inode.major ?? 0, inode.minor ?? 0);
      }
    }
    table.writeUInt32LE(names.add(name), at + ROW.nameOffset);
    table.writeUInt16LE(name.length, at + ROW.nameLength);
    table.writeUInt16LE(inode.layer, at + ROW.layer);
    table.writeUInt32LE(S_IF[inode.type] | inode.mode, at + ROW.mode);
    table.writeUInt32LE(inode.uid, at + ROW.uid);
    table.writeUInt32LE(inode.gid, at + ROW.gid);
    table.writeUInt32LE(inode.mtimeNsec, at + ROW.mtimeNsec);
    table.writeBigInt64LE(BigInt(inode.mtimeSec), at + ROW.mtimeSec);
    table.writeBigUInt64LE(BigInt(size), at + ROW.size);
    table.writeUInt32LE(placed.parent, at + ROW.parent);
    table.writeUInt32LE(a, at + ROW.a);
    table.writeUInt32LE(b, at + ROW.b);
    const nlink = inode.type === 'dir' ? 2 + placed.subdirectories : group.links;
    table.writeUInt32LE(nlink, at + ROW.nlink);
    table.writeUInt32LE(group.row, at + ROW.inode);
    const set = inode.xattrs;
    const offset = set === undefined || set.size === 0 ? NONE : xattrs.add(encodeXattrs(set));
    table.writeUInt32LE(offset, at + ROW.xattrs);
  }
  const digests = Buffer.alloc(contents.size * 32);
  const contentsOffset = HEADER.bytes + rows.length * ROW.bytes;
  for (const [digest, c] of contents) {
    if (c.index % ROWS_A_STEP === 0) yield;
    const at = contentsOffset + c.index * CONTENT.bytes;
    table.writeBigUInt64LE(BigInt(c.size), at + CONTENT.size);
    table.writeUInt32LE(c.firstPart, at + CONTENT.firstPart);
    table.writeUInt32LE(c.firstRow, at + CONTENT.firstRow);
    digests.write(digest, c.index * 32, 'hex');
  }
  const xattrsOffset = table.length;
  const namesOffset = xattrsOffset + xattrs.bytes;
  table.writeUInt32LE(TOC_MAGIC, HEADER.magic);
  table.writeUInt32LE(TOC_VERSION, HEADER.version);
  table.writeUInt32LE(rows.length, HEADER.rows);
  table.writeUInt32LE(contents.size, HEADER.contents);
  table.writeUInt32LE(parts, HEADER.parts);
  table.writeUInt32LE(inodes.size, HEADER.inodes);
  table.writeBigUInt64LE(BigInt(totalBytes), HEADER.totalBytes);
  table.writeUInt32LE(HEADER.bytes, HEADER.rowsOffset);
  table.writeUInt32LE(contentsOffset, HEADER.contentsOffset);
  table.writeUInt32LE(xattrsOffset, HEADER.xattrsOffset);
  table.writeUInt32LE(xattrs.bytes, HEADER.xattrsBytes);
  table.writeUInt32LE(namesOffset, HEADER.namesOffset);
  table.writeUInt32LE(names.bytes, HEADER.namesBytes);
  table.writeUInt32LE(namesOffset + names.bytes, HEADER.fileBytes);
  return { bytes: Buffer.concat([table, ...xattrs.chunks, ...names.chunks]), digests };
}
