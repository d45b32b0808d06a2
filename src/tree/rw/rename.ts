// Renaming, over other names and in exchange. What does not live here: what becomes of the file that
// was replaced (remove.ts).
//
// In upper/ it is one renameat2(2), which also leaves the whiteout where the template has the old
// name, so a crash shows all of it or nothing. What makes it possible is done before and changes
// nothing that can be seen: promotion, the redirect of a directory that shows template names
// (overlayfs' redirect_dir), the opaque mark of one that must not begin to.

import { ATTR, ATTR_SLOTS } from '../../native/upcalls.ts';
import {
  E,
  errnoOf,
  fail,
  RENAME_EXCHANGE,
  RENAME_NOREPLACE,
  RENAME_WHITEOUT,
  S_IPERM,
} from './abi.ts';
import { discard } from './copy-jobs.ts';
import type { Core } from './core.ts';
import { Directory, type Node } from './node.ts';
import { ensureUpper, promote } from './promote.ts';
import {
  clear,
  directoryGone,
  type Farewell,
  hasWhiteouts,
  lastOf,
  nameGone,
  sayFarewell,
  takeBack,
} from './remove.ts';
import { OPAQUE, ORIGIN, REDIRECT } from './xattr-names.ts';

/** One end of a rename. */
interface End {
  directory: Directory;
  name: string;
}

/** @throws Wait, Errno */
export function rename(core: Core, from: End, to: End, flags: number): void {
  if ((flags & ~(RENAME_NOREPLACE | RENAME_EXCHANGE)) !== 0) throw fail('EINVAL', 'rename flags');
  if (flags === (RENAME_NOREPLACE | RENAME_EXCHANGE)) throw fail('EINVAL', 'rename flags');
  core.checkName(to.name);
  const source = nodeAt(core, from);
  if (source === undefined) throw fail('ENOENT', 'old name');
  const target = nodeAt(core, to);
  if (flags === RENAME_EXCHANGE) {
    if (target === undefined) throw fail('ENOENT', 'new name');
    if (source !== target) exchange(core, from, source, to, target);
    return;
  }
  if (flags === RENAME_NOREPLACE && target !== undefined) throw fail('EEXIST', 'new name');
  if (source === target) return;
  checkTypes(core, source, to, target);
  move(core, from, source, to, target);
}

function nodeAt(core: Core, at: End): Node | undefined {
  const child = core.child(at.directory, at.name);
  return child === undefined ? undefined : core.nodeOf(child, at.directory, at.name);
}

function checkTypes(core: Core, source: Node, to: End, target: Node | undefined): void {
  const isDirectory = source instanceof Directory;
  if (isDirectory && core.isBelow(to.directory, source)) throw fail('EINVAL', 'into itself');
  if (target === undefined) return;
  if (target instanceof Directory) {
    if (!isDirectory) throw fail('EISDIR', 'rename over a directory');
    if (!core.isEmpty(target)) throw fail('ENOTEMPTY', 'rename over a directory');
  } else if (isDirectory) throw fail('ENOTDIR', 'rename over a file');
}

function move(core: Core, from: End, source: Node, to: End, target: Node | undefined): void {
  prepare(core, from, source, to);
  if (target instanceof Directory) {
    core.thaw(target.id);
    if (target.upper && hasWhiteouts(target)) emptyForGood(core, to, target);
  } else if (target !== undefined) core.thawFile(target);
  const last = target instanceof Directory ? lastOf(core, target) : undefined;
  const farewell = target instanceof Directory || !target ? undefined : sayFarewell(core, target);
  const covered = core.rowOf(from.directory, from.name) >= 0;
  let whiteoutLeft: boolean;
  try {
    whiteoutLeft = moveInUpper(core, from, source, to, covered);
  } catch (error) {
    takeBack(core, farewell);
    throw error;
  }
  if (target !== undefined) replaced(core, to, target, farewell, last);
  detach(from, source);
  if (whiteoutLeft) put(core, from, undefined);
  else from.directory.names.delete(from.name);
  attach(core, to, source);
}

/** The rename itself. Returns true where a whiteout stands under the old name now. */
function moveInUpper(core: Core, from: End, source: Node, to: End, covered: boolean): boolean {
  const { io } = core;
  const fromFd = core.fd(from.directory);
  const toFd = core.fd(to.directory);
  const slot = to.directory.slot(to.name);
  const overWhiteout = slot !== undefined && slot.node === undefined;
  if (!(overWhiteout && source instanceof Directory)) {
    io.rename(fromFd, from.name, toFd, to.name, covered ? RENAME_WHITEOUT : 0);
    return covered;
  }
  // A directory cannot be renamed over a device node: the two change places.
  io.rename(fromFd, from.name, toFd, to.name, RENAME_EXCHANGE);
  if (covered) return true;
  try {
    io.unlink(fromFd, from.name);
    return false;
  } catch (error) {
    core.log.warn({ error: String(error) }, 'a whiteout that covers nothing was left in upper/');
    return true;
  }
}

function exchange(core: Core, from: End, source: Node, to: End, target: Node): void {
  if (source instanceof Directory && core.isBelow(to.directory, source))
    throw fail('EINVAL', 'into itself');
  if (target instanceof Directory && core.isBelow(from.directory, target))
    throw fail('EINVAL', 'into itself');
  prepare(core, from, source, to);
  prepare(core, to, target, from);
  const { directory: fromDirectory } = from;
  core.io.rename(
    core.fd(fromDirectory),
    from.name,
    core.fd(to.directory),
    to.name,
    RENAME_EXCHANGE,
  );
  detach(from, source);
  detach(to, target);
  attach(core, from, target);
  attach(core, to, source);
}

/** All that a node needs before it moves. */
function prepare(core: Core, from: End, node: Node, to: End): void {
  promote(core, node);
  ensureUpper(core, from.directory);
  ensureUpper(core, to.directory);
  if (!(node instanceof Directory)) core.thawFile(node);
  else if (node.row >= 0) redirect(core, node);
  else if (!node.opaque && core.rowOf(to.directory, to.name) >= 0) {
    core.io.setxattr(core.fd(node), '', OPAQUE, Buffer.from('y'), 0);
    node.opaque = true;
  }
}

/** Tells overlayfs, and our next start, where the template has what the directory shows. */
function redirect(core: Core, directory: Directory): void {
  if (directory.redirected) return;
  const path = Buffer.from(`/${core.toc.path(directory.row)}`, 'latin1');
  try {
    core.io.setxattr(core.fd(directory), '', REDIRECT, path, 0);
  } catch (error) {
    // A path that no attribute holds: programs that rename copy after EXDEV.
    const tooLong = [E.ERANGE, E.E2BIG].includes(errnoOf(error));
    throw tooLong ? fail('EXDEV', 'redirect') : error;
  }
  directory.redirected = true;
}

/**
 * Replaces a directory in upper/ that holds nothing but whiteouts by an empty opaque one of the same
 * attributes, so that another can be renamed over it.
 */
function emptyForGood(core: Core, at: End, directory: Directory): void {
  const { io, work } = core;
  const made = core.workName();
  io.mkdir(work, made, 0o700, { uid: 0, gid: 0 });
  try {
    dressAs(core, core.fd(directory), made);
    io.setxattr(work, made, OPAQUE, Buffer.from('y'), 0);
    io.setxattr(work, made, ORIGIN, Buffer.from(`${directory.ino}`), 0);
    io.rename(work, made, core.fd(at.directory), at.name, RENAME_EXCHANGE);
  } catch (error) {
    discard(core, made, true);
    throw error;
  }
  core.upperDirectories.drop(directory);
  core.adopted.drop(directory);
  core.lent.recall(directory);
  directory.unmerge();
  clear(core, made);
}

/** Gives a directory in work/ the attributes of another. */
function dressAs(core: Core, fd: number, made: string): void {
  const { io, work } = core;
  const a = new Float64Array(ATTR_SLOTS);
  io.stat(fd, '', a);
  for (const attribute of io.listxattr(fd, '')) {
    const value = io.getxattr(fd, '', attribute);
    if (value !== undefined && attribute !== REDIRECT) io.setxattr(work, made, attribute, value, 0);
  }
  io.chown(work, made, a[ATTR.uid]!, a[ATTR.gid]!);
  io.chmod(work, made, a[ATTR.mode]! & S_IPERM);
  const [atimeSec, atimeNsec] = [a[ATTR.atimeSec]!, a[ATTR.atimeNsec]!];
  io.utimes(work, made, atimeSec, atimeNsec, a[ATTR.mtimeSec]!, a[ATTR.mtimeNsec]!);
}

function replaced(
  core: Core,
  at: End,
  target: Node,
  farewell: Farewell | undefined,
  last: Float64Array | undefined,
): void {
  if (target instanceof Directory) {
    at.directory.subdirectories--;
    directoryGone(core, target, last ?? new Float64Array(ATTR_SLOTS));
  } else nameGone(core, target, at.directory, at.name, farewell);
}

function put(core: Core, at: End, node: Node | undefined) {
  const { directory, name } = at;
  return directory.names.put(directory, name, core.rowOf(directory, name), node);
}

function detach(at: End, node: Node): void {
  if (node instanceof Directory) {
    at.directory.subdirectories--;
    return;
  }
  for (const slot of node.places)
    if (slot.directory === at.directory && slot.name === at.name) node.places.delete(slot);
}

function attach(core: Core, at: End, node: Node): void {
  const slot = put(core, at, node);
  if (node instanceof Directory) {
    node.parent = at.directory;
    node.name = at.name;
    at.directory.subdirectories++;
  } else node.places.add(slot);
}
