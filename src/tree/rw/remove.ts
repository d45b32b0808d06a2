// Names that go: unlink, rmdir, and what a rename replaces. What does not live here: rename itself.
//
// A name that the template has is covered by a whiteout (a character device 0/0), as overlayfs does
// it. Where a directory in upper/ is to go and holds whiteouts of its own, it is taken to work/ first:
// until then nothing has changed, and afterwards nobody sees it.
import { ATTR } from '../../native/upcalls.ts';
import { errnoOf, fail, O_PATH, RENAME_EXCHANGE, S_IFCHR } from './abi.ts';
import { snapshot } from './attr.ts';
import { discard } from './copy-jobs.ts';
import type { Core } from './core.ts';
import { Directory, type FileNode, isOwn } from './node.ts';
import { ensureUpper } from './promote.ts';

const ROOT = { uid: 0, gid: 0 };

/** Makes a whiteout in work/. */
function whiteoutInWork(core: Core): string {
  const made = core.workName();
  core.io.mknod(core.work, made, S_IFCHR, 0, ROOT);
  return made;
}

/** What is left of a file when its last name has gone; made before that. */
export interface Farewell {
  fd: number;
  last: Float64Array | undefined;
}

/**
 * Keeps a file in upper/ that is about to lose its last name for those who still have it open.
 * @returns undefined where it has other names
 */
export function sayFarewell(core: Core, file: FileNode): Farewell | undefined {
  if (file.state !== 'upper' || file.places.size > 1) return undefined;
  // Lookups of the template's ids are not counted, and who has one open with O_PATH has no handle: the
  // kernel's FORGET, which comes when nobody has it, lets it go.
  const inUse = !isOwn(file.id) || file.lookups > 0;
  if (inUse) {
    const { directory, name } = file.place;
    return { fd: core.io.openFile(core.fd(directory), name, O_PATH), last: undefined };
  }
  const last = snapshot(core, file);
  last[ATTR.nlink] = 0;
  return { fd: -1, last };
}

/** The farewell was not needed. */
export function takeBack(core: Core, farewell: Farewell | undefined): void {
  if (farewell !== undefined && farewell.fd >= 0) core.io.close(farewell.fd);
}

/** A name of a file has gone from the view. @param directory  of the name */
export function nameGone(
  core: Core,
  file: FileNode,
  directory: Directory,
  name: string,
  farewell: Farewell | undefined,
): void {
  if (file.state === 'template') {
    file.templateNames--;
    file.changedMs = Date.now();
    if (file.templateNames <= 0) file.state = 'removed-template';
    return;
  }
  for (const slot of file.places)
    if (slot.directory === directory && slot.name === name) file.places.delete(slot);
  if (file.places.size > 0 || farewell === undefined) return;
  file.state = 'removed-upper';
  file.fd = farewell.fd;
  if (farewell.fd < 0) {
    file.last = farewell.last;
    core.adopted.drop(file);
  }
  if (isOwn(file.id) && file.lookups === 0) letGo(core, file);
}

/** Nobody has the file any more. */
export function letGo(core: Core, file: FileNode): void {
  core.adopted.drop(file);
  if (file.fd >= 0) {
    // Under a template's id it can still be asked for.
    if (file.row >= 0) file.last = snapshot(core, file);
    core.io.close(file.fd);
    file.fd = -1;
  }
  if (isOwn(file.id)) core.files.delete(file.id);
}

/** @throws Errno ENOENT, EISDIR */
export function unlink(core: Core, parent: Directory, name: string): void {
  const child = core.child(parent, name);
  if (child === undefined) throw fail('ENOENT', 'name');
  const node = core.nodeOf(child, parent, name);
  if (node instanceof Directory) throw fail('EISDIR', 'unlink');
  ensureUpper(core, parent);
  core.thawFile(node);
  const row = core.rowOf(parent, name);
  const farewell = sayFarewell(core, node);
  try {
    coverOrUnlink(core, parent, name, row);
  } catch (error) {
    takeBack(core, farewell);
    throw error;
  }
  if (row < 0) parent.names.delete(name);
  else parent.names.put(parent, name, row, undefined);
  nameGone(core, node, parent, name, farewell);
}

function coverOrUnlink(core: Core, parent: Directory, name: string, row: number): void {
  const { io, work } = core;
  const fd = core.fd(parent);
  if (row < 0) io.unlink(fd, name);
  else if (parent.slot(name) === undefined) io.mknod(fd, name, S_IFCHR, 0, ROOT);
  else {
    const made = whiteoutInWork(core);
    try {
      io.rename(work, made, fd, name, 0);
    } catch (error) {
      discard(core, made);
      throw error;
    }
  }
}

/** @throws Errno ENOENT, ENOTDIR, ENOTEMPTY */
export function rmdir(core: Core, parent: Directory, name: string): void {
  const child = core.child(parent, name);
  if (child === undefined) throw fail('ENOENT', 'name');
  const node = core.nodeOf(child, parent, name);
  if (!(node instanceof Directory)) throw fail('ENOTDIR', 'rmdir');
  if (!core.isEmpty(node)) throw fail('ENOTEMPTY', 'rmdir');
  ensureUpper(core, parent);
  core.thaw(node.id);
  const row = core.rowOf(parent, name);
  const last = lastOf(core, node);
  if (!node.upper) coverOrUnlink(core, parent, name, row);
  else removeUpper(core, parent, name, node, row);
  if (row < 0) parent.names.delete(name);
  else parent.names.put(parent, name, row, undefined);
  parent.subdirectories--;
  directoryGone(core, node, last);
}

/** Attributes that a directory has when it is gone. */
export function lastOf(core: Core, directory: Directory): Float64Array {
  const last = snapshot(core, directory);
  last[ATTR.nlink] = 0;
  return last;
}

/** The object of a directory that is gone. */
export function directoryGone(core: Core, directory: Directory, last: Float64Array): void {
  directory.last = last;
  core.adopted.drop(directory);
  core.lent.recall(directory);
  core.upperDirectories.drop(directory);
  if (isOwn(directory.id) && directory.lookups === 0) core.directories.delete(directory.id);
}

function removeUpper(
  core: Core,
  parent: Directory,
  name: string,
  directory: Directory,
  row: number,
): void {
  const { io, work } = core;
  const fd = core.fd(parent);
  if (row >= 0) {
    const made = whiteoutInWork(core);
    try {
      io.rename(work, made, fd, name, RENAME_EXCHANGE);
    } catch (error) {
      discard(core, made);
      throw error;
    }
    clear(core, made);
  } else if (hasWhiteouts(directory)) {
    const made = core.workName();
    io.rename(fd, name, work, made, 0);
    clear(core, made);
  } else {
    io.rmdir(fd, name);
  }
}

/** True where a directory that shows no names is not empty in upper/. */
export function hasWhiteouts(directory: Directory): boolean {
  for (const _ of directory.slots()) return true;
  return false;
}

/** Takes a directory of nothing but whiteouts out of work/. */
export function clear(core: Core, made: string): void {
  const { io, work } = core;
  try {
    const fd = io.openDirectory(work, made);
    try {
      for (const { name } of io.list(fd, '')) io.unlink(fd, name);
    } finally {
      io.close(fd);
    }
    io.rmdir(work, made);
  } catch (error) {
    core.log.warn(
      { made, errno: errnoOf(error) },
      'work/ keeps a removed directory until the next mount',
    );
  }
}
