// Opening files: which file an open reads and writes, and files that are made and opened in one.
//
// All handles of one node must read the same file (the kernel shares one backing file an inode). While
// handles on the image's content are open, a file in upper/ with the same content is read from the
// image, and a first open for writing gives the file a new node id: the old one answers ESTALE, the
// kernel looks the name up again, and the old handles keep what they had.
import { setTimeout as sleep } from 'node:timers/promises';
import { ATTR, ATTR_SLOTS } from '../../native/upcalls.ts';
import {
  fail,
  O_ACCMODE,
  O_DSYNC,
  O_EXCL,
  O_PATH,
  O_RDONLY,
  O_RDWR,
  O_TRUNC,
  S_IFREG,
  S_IPERM,
} from './abi.ts';
import { hasPrivileges, killPrivileges, stripsOnWrite, type Where, whereIs } from './attr.ts';
import { type Core, OWN_INO } from './core.ts';
import { flagsForUpper, hasDefaultAcl, make } from './make.ts';
import { type Directory, FileNode } from './node.ts';
import { type Caller, type Opened, Wait } from './operations.ts';
import { ensureUpper, promoteFile } from './promote.ts';

type OpenedUpper = Opened & { kind: 'upper' };
const TEMPLATE: Opened = { kind: 'template' };

function writes(flags: number): boolean {
  return (flags & O_ACCMODE) !== 0 || (flags & O_TRUNC) !== 0;
}

/** How often, and how long each time, a release that is under way is waited for; ms. */
const RELEASE_TRIES = 3;
const RELEASE_MS = 1;

/**
 * True where handles on the image's content are open. The kernel tells of a close when it is long
 * over, so one that is counted may be gone: a few times this waits a moment, since ESTALE would reach
 * programs that open by descriptor.
 * @throws Wait
 */
export function hasReaders(core: Core, file: FileNode): boolean {
  if (file.backing === 'upper') return false;
  if (core.host.openHandles(file.id) === 0) {
    file.releaseTries = 0;
    return false;
  }
  if (file.releaseTries === RELEASE_TRIES) return true;
  file.releaseTries++;
  throw new Wait({ done: sleep(RELEASE_MS) });
}

/**
 * Sees to it that what is opened, or changed in length, next is the file in upper/.
 * @throws Wait
 * @throws Errno ESTALE: look the name up again. That does not wait until the kernel has let the names go:
 *   for them it needs the lock of their directory, which a rename of this very file may hold while it
 *   waits for the lock that this truncation holds. After ESTALE every name is asked for anew in any case.
 */
export function takeUpper(core: Core, file: FileNode, id: number): void {
  if (file.id !== id) throw fail('ESTALE', `node ${id} goes by ${file.id} now`);
  if (!hasReaders(core, file)) {
    file.backing = 'upper';
    return;
  }
  if (file.state !== 'upper') throw fail('ESTALE', 'a removed file of the image that is open');
  core.renumber(file);
  throw fail('ESTALE', `node ${id} goes by ${file.id} now`);
}

/** @param id  the id that was asked for @throws Wait */
export function openFile(core: Core, id: number, flags: number, killSuidgid: boolean): Opened {
  let file = core.files.get(id);
  if (file === undefined) {
    if (!writes(flags)) return TEMPLATE;
    file = core.fileOfRow(id - 1);
  }
  if (file.id !== id) throw fail('ESTALE', `node ${id} goes by ${file.id} now`);
  if (!writes(flags) && readsTemplate(core, file)) return TEMPLATE;
  if (file.state === 'template' || file.state === 'removed-template') {
    core.thawFile(file);
    // Empty only where nothing can come between: ESTALE leaves the file as it was.
    promoteFile(core, file, (flags & O_TRUNC) !== 0 && !hasReaders(core, file));
  }
  takeUpper(core, file, id);
  return openUpper(core, file, flags, killSuidgid);
}

/** True where a read goes to the image's content. */
function readsTemplate(core: Core, file: FileNode): boolean {
  if (file.state === 'template' || file.state === 'removed-template') return true;
  return file.backing === 'template' && core.host.openHandles(file.id) > 0;
}

/**
 * Writes through O_SYNC and O_DSYNC last without any call that could take the name along that a
 * promotion gave the file: it is synced before the open is answered, once.
 * @throws Wait, the error of the sync
 */
function makeNameLast(core: Core, file: FileNode, { fd, name }: Where): void {
  if (file.row < 0 || file.state !== 'upper' || file.nameLasts === true) return;
  if (file.nameLasts !== false) {
    const error = file.nameLasts;
    file.nameLasts = false;
    throw error;
  }
  const opened = core.io.openFile(fd, name, O_RDONLY);
  const done = core.io.fsync(opened, false).then(
    () => {
      file.nameLasts = true;
    },
    (error: Error) => {
      file.nameLasts = error;
    },
  );
  throw new Wait({ done: done.finally(() => core.io.close(opened)) });
}

function openUpper(core: Core, file: FileNode, flags: number, killSuidgid: boolean): OpenedUpper {
  const where = whereIs(core, file);
  if (where === undefined) throw fail('ESTALE', 'removed file');
  const write = writes(flags);
  if (write && (flags & O_DSYNC) !== 0) makeNameLast(core, file, where);
  const direct = write && isPrivileged(core, file, where);
  const truncate = (flags & O_TRUNC) !== 0;
  const fd = core.io.openFile(
    where.fd,
    where.name,
    flagsForUpper(flags) | (truncate ? O_TRUNC : 0),
  );
  try {
    // At once: who has opened it may ask for the mode next.
    if (truncate && killSuidgid && killPrivileges(core, where))
      core.host.invalidateAttributes(file.id);
  } catch (error) {
    core.io.close(fd);
    throw error;
  }
  const forWriting = (flags & O_ACCMODE) !== O_RDONLY;
  if (forWriting) forgetCached(core, file, flags);
  core.adopted.opened(file, where, forWriting, () => isPrivileged(core, file, where));
  return { kind: 'upper', fd, direct, tag: 0, ino: file.ino };
}

/** Asked once: nothing but the tree gives a file such bits, and native only takes them away. */
function isPrivileged(core: Core, file: FileNode, where: Where): boolean {
  file.privileged ??= hasPrivileges(core, where);
  return file.privileged;
}

/**
 * Stores through a shared mapping change times without the kernel's session noticing, so attributes
 * that it keeps without an end must go when a file is opened for that, before it can be mapped.
 */
function forgetCached(core: Core, file: FileNode, flags: number): void {
  if ((flags & O_ACCMODE) !== O_RDWR) return;
  file.mayBeMapped = true;
  if (!file.cached) return;
  file.cached = false;
  core.host.invalidateAttributes(file.id);
}

/** A new regular file, opened. */
export function createFile(
  core: Core,
  parent: Directory,
  name: string,
  flags: number,
  mode: number,
  caller: Caller,
): { file: FileNode; opened: OpenedUpper } {
  const made = make(core, parent, name, { mode: S_IFREG | (mode & S_IPERM), flags }, caller);
  const file = made.node as FileNode;
  file.privileged = stripsOnWrite(mode);
  file.mayBeMapped = (flags & O_ACCMODE) === O_RDWR;
  return {
    file,
    opened: { kind: 'upper', fd: made.fd, direct: stripsOnWrite(mode), tag: 0, ino: file.ino },
  };
}

/** A new regular file without a name, opened (O_TMPFILE). */
export function createUnnamed(
  core: Core,
  parent: Directory,
  flags: number,
  mode: number,
  caller: Caller,
): { file: FileNode; opened: OpenedUpper } {
  const { io } = core;
  ensureUpper(core, parent);
  const permissions = hasDefaultAcl(core, parent) ? mode : mode & ~caller.umask;
  const upperFlags = flagsForUpper(flags) | (flags & O_EXCL);
  const fd = io.createUnnamed(core.fd(parent), upperFlags, permissions & S_IPERM, caller);
  let held = -1;
  try {
    held = io.openFile(fd, '', O_PATH);
    const attributes = new Float64Array(ATTR_SLOTS);
    io.stat(held, '', attributes);
    const ino = OWN_INO + attributes[ATTR.ino]!;
    const file = new FileNode(core.nextNode(), ino, -1, 'removed-upper');
    file.fd = held;
    file.mayBeMapped = (flags & O_ACCMODE) === O_RDWR;
    core.files.set(file.id, file);
    return { file, opened: { kind: 'upper', fd, direct: stripsOnWrite(mode), tag: 0, ino } };
  } catch (error) {
    if (held >= 0) io.close(held);
    io.close(fd);
    throw error;
  }
}
