// Attributes: what GETATTR and every entry show, and what SETATTR changes. What does not live here:
// extended attributes (xattr.ts), and the copy that has to be made before the first change (promote.ts).
import { ATTR, ATTR_SLOTS } from '../../native/upcalls.ts';
import {
  fail,
  O_WRONLY,
  S_IFBLK,
  S_IFCHR,
  S_IFDIR,
  S_IFMT,
  S_IFREG,
  S_IPERM,
  S_ISGID,
  S_ISUID,
  S_IXGRP,
  UTIME_NOW,
  UTIME_OMIT,
} from './abi.ts';
import type { Child, Core } from './core.ts';
import { Directory, FileNode, type Node } from './node.ts';
import type { Changes, Entry } from './operations.ts';

const BLOCK_BYTES = 4096;
const SECTORS_A_BLOCK = BLOCK_BYTES / 512;
export const CAPABILITY = 'security.capability';

/** A file for a system call: a name in a directory, or '' and the descriptor of the file itself. */
export interface Where {
  fd: number;
  name: string;
}

/** Attributes of a row of the template, as native gives them. */
export function rowAttributes(core: Core, row: number, into: Float64Array): void {
  const { toc } = core;
  const mode = toc.mode(row);
  const type = mode & S_IFMT;
  const size = toc.size(row);
  const seconds = toc.mtimeSec(row);
  const nsec = toc.mtimeNsec(row);
  into.fill(0);
  into[ATTR.ino] = toc.inode(row) + 1;
  into[ATTR.size] = size;
  if (type === S_IFREG || type === S_IFDIR)
    into[ATTR.blocks] = Math.ceil(size / BLOCK_BYTES) * SECTORS_A_BLOCK;
  into[ATTR.atimeSec] = into[ATTR.mtimeSec] = into[ATTR.ctimeSec] = seconds;
  into[ATTR.atimeNsec] = into[ATTR.mtimeNsec] = into[ATTR.ctimeNsec] = nsec;
  into[ATTR.mode] = mode;
  into[ATTR.nlink] = toc.nlink(row);
  into[ATTR.uid] = toc.uid(row);
  into[ATTR.gid] = toc.gid(row);
  if (type === S_IFCHR || type === S_IFBLK) into[ATTR.rdev] = toc.rdev(row);
  into[ATTR.blksize] = BLOCK_BYTES;
}

/** Where a file is that is in upper/, or was; undefined where only its last attributes are left. */
export function whereIs(core: Core, node: Node): Where | undefined {
  if (node instanceof Directory) return node.upper ? { fd: core.fd(node), name: '' } : undefined;
  if (node.state === 'upper') {
    const { directory, name } = node.place;
    return { fd: core.fd(directory), name };
  }
  return node.fd >= 0 ? { fd: node.fd, name: '' } : undefined;
}

/** Attributes of what stands under a name. */
export function attributesOf(core: Core, child: Child, into: Float64Array): void {
  if (typeof child === 'number') {
    rowAttributes(core, child, into);
    return;
  }
  if (child.last !== undefined) {
    into.set(child.last);
    return;
  }
  if (child instanceof Directory) {
    if (child.upper) core.io.stat(core.fd(child), '', into);
    else rowAttributes(core, child.row, into);
    into[ATTR.nlink] = 2 + child.subdirectories;
  } else {
    const where = whereIs(core, child);
    if (where !== undefined) core.io.stat(where.fd, where.name, into);
    else {
      rowAttributes(core, child.row, into);
      into[ATTR.nlink] = child.templateNames;
      if (child.changedMs > 0) setTime(into, ATTR.ctimeSec, timeAt(child.changedMs));
    }
  }
  into[ATTR.ino] = child.ino;
  // The image knows no time of birth; that of the copy in upper/ is none of the file's.
  if (child.row >= 0) into[ATTR.btimeSec] = into[ATTR.btimeNsec] = 0;
}

function timeAt(ms: number): { sec: number; nsec: number } {
  return { sec: Math.floor(ms / 1000), nsec: Math.round((ms % 1000) * 1e6) };
}

/** @param slot  of the seconds; the nanoseconds follow */
function setTime(into: Float64Array, slot: number, time: { sec: number; nsec: number }): void {
  into[slot] = time.sec;
  into[slot + 1] = time.nsec;
}

/** Attributes as they are now, kept. */
export function snapshot(core: Core, child: Child): Float64Array {
  const kept = new Float64Array(ATTR_SLOTS);
  attributesOf(core, child, kept);
  return kept;
}

/**
 * How long the kernel may keep attributes, ms: for good, since nobody else changes them. But what is
 * written through a mapping changes times and blocks without the kernel's session noticing.
 * @param id  the id that was asked for
 */
export function validMs(core: Core, child: Child, id: number): number {
  if (typeof child === 'number' || child instanceof Directory) return Number.POSITIVE_INFINITY;
  if (child.removed || child.id !== id) return 0;
  if (child.state === 'upper' && core.host.openHandles(id) > 0) return 0;
  if (isMapped(core, child)) return 0;
  child.cached = true;
  return Number.POSITIVE_INFINITY;
}

/** Whether a shared mapping can still write to a file without open handles; asked until it is gone. */
export function isMapped(core: Core, file: FileNode): boolean {
  if (!file.mayBeMapped && !core.adopted.has(file)) return false;
  const where = whereIs(core, file);
  try {
    if (where !== undefined && core.io.isHeldForWriting(where.fd, where.name)) return true;
  } catch {
    // No descriptor is left, say. What was made or changed stays so, and must not be told as a failure: nobody
    // keeps its attributes, and the next one who asks looks again.
    return true;
  }
  file.mayBeMapped = false;
  return false;
}

/** Id of what stands under a name. */
export function idOf(child: Child): number {
  return typeof child === 'number' ? child + 1 : child.id;
}

/** The entry that is given out; counts no lookup. */
export function entryOf(core: Core, child: Child, into: Float64Array, id = idOf(child)): Entry {
  attributesOf(core, child, into);
  return { node: id, attributes: into, attrValidMs: validMs(core, child, id) };
}

/** Changes attributes of a file in upper/, in the order in which one would undo another. */
export function applyChanges(core: Core, node: Node, where: Where, changes: Changes): void {
  const { io } = core;
  if (node instanceof FileNode) node.privileged = undefined;
  if (changes.mode !== undefined && stripsOnWrite(changes.mode))
    core.adopted.mayGetPrivileges(node);
  if (changes.size !== undefined) truncate(core, node, where, changes.size);
  if (changes.killSuidgid === true) killPrivileges(core, where);
  if (changes.uid !== undefined || changes.gid !== undefined)
    io.chown(where.fd, where.name, changes.uid ?? -1, changes.gid ?? -1);
  if (changes.mode !== undefined) io.chmod(where.fd, where.name, changes.mode & S_IPERM);
  const { atime, mtime } = changes;
  if (atime === undefined && mtime === undefined) return;
  const [atimeSec, atimeNsec] = timeOf(atime);
  const [mtimeSec, mtimeNsec] = timeOf(mtime);
  io.utimes(where.fd, where.name, atimeSec, atimeNsec, mtimeSec, mtimeNsec);
}

function timeOf(time: Changes['atime']): [number, number] {
  if (time === undefined) return [0, UTIME_OMIT];
  return time === 'now' ? [0, UTIME_NOW] : [time.sec, time.nsec];
}

function truncate(core: Core, node: Node, where: Where, bytes: number): void {
  if (node instanceof Directory) throw fail('EISDIR', 'truncate');
  const fd = core.io.openFile(where.fd, where.name, O_WRONLY);
  try {
    core.io.truncate(fd, bytes);
  } finally {
    core.io.close(fd);
  }
}

/**
 * What a write or a truncation by somebody without CAP_FSETID takes away.
 * @returns true where there was something to take
 */
export function killPrivileges(core: Core, where: Where): boolean {
  const attributes = new Float64Array(ATTR_SLOTS);
  core.io.stat(where.fd, where.name, attributes);
  const mode = attributes[ATTR.mode]!;
  const kept = keptMode(mode);
  if (kept !== mode) core.io.chmod(where.fd, where.name, kept & S_IPERM);
  const capable = core.io.getxattr(where.fd, where.name, CAPABILITY) !== undefined;
  if (capable) core.io.removexattr(where.fd, where.name, CAPABILITY);
  return capable || kept !== mode;
}

/** The mode without setuid, and without setgid where the group may run the file (else it means locking). */
function keptMode(mode: number): number {
  const kept = mode & ~S_ISUID;
  return (kept & S_IXGRP) !== 0 ? kept & ~S_ISGID : kept;
}

/** True where a write by others takes something away from this mode. */
export function stripsOnWrite(mode: number): boolean {
  return keptMode(mode) !== mode;
}

/** True where a write takes setuid, setgid or capabilities away, which passthrough would not do. */
export function hasPrivileges(core: Core, where: Where): boolean {
  const attributes = new Float64Array(ATTR_SLOTS);
  core.io.stat(where.fd, where.name, attributes);
  if (stripsOnWrite(attributes[ATTR.mode]!)) return true;
  return core.io.getxattr(where.fd, where.name, CAPABILITY) !== undefined;
}

/** The same changes on what nobody can reach any more but by a descriptor: in memory only. */
export function applyToLast(last: Float64Array, changes: Changes, nowMs: number): void {
  const now = timeAt(nowMs);
  const time = (change: NonNullable<Changes['atime']>) => (change === 'now' ? now : change);
  if (changes.mode !== undefined)
    last[ATTR.mode] = (last[ATTR.mode]! & S_IFMT) | (changes.mode & S_IPERM);
  if (changes.uid !== undefined) last[ATTR.uid] = changes.uid;
  if (changes.gid !== undefined) last[ATTR.gid] = changes.gid;
  if (changes.atime !== undefined) setTime(last, ATTR.atimeSec, time(changes.atime));
  if (changes.mtime !== undefined) setTime(last, ATTR.mtimeSec, time(changes.mtime));
  setTime(last, ATTR.ctimeSec, now);
}
