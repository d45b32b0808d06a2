// New names: files, directories, nodes, symlinks, links. What does not live here: what becomes of the
// names that were there (remove.ts), and files without a name (open.ts).
//
// Where nothing stands in upper/ the new file is made in its place, and its filesystem applies setgid
// directories and default ACLs. Over a whiteout it is made in work/, where the tree applies them, and
// takes the whiteout's place in one step.
import { ATTR, ATTR_SLOTS } from '../../native/upcalls.ts';
import type { Owner } from '../../native/upper.ts';
import {
  E,
  errnoOf,
  fail,
  O_ACCMODE,
  O_SYNC,
  RENAME_EXCHANGE,
  S_IFCHR,
  S_IFDIR,
  S_IFLNK,
  S_IFMT,
  S_IFREG,
  S_IPERM,
  S_ISGID,
} from './abi.ts';
import { ACL_ACCESS, ACL_DEFAULT, inherit } from './acl.ts';
import { whereIs } from './attr.ts';
import { discard } from './copy-jobs.ts';
import { type Core, OWN_INO } from './core.ts';
import { type Directory, FileNode } from './node.ts';
import type { Caller } from './operations.ts';
import { ensureUpper, promoteFile } from './promote.ts';
import { OPAQUE } from './xattr-names.ts';

/** What is to be made. */
export interface Wanted {
  /** Type and permission bits. */
  mode: number;
  /** Of devices, as new_encode_dev. */
  rdev?: number;
  /** Of symlinks. */
  target?: Uint8Array;
  /** Of regular files that are opened at once: flags of open(2). */
  flags?: number;
}

/** Flags of open(2) that a file in upper/ is opened with for a program: its access, and how durable writes are. */
export function flagsForUpper(flags: number): number {
  return flags & (O_ACCMODE | O_SYNC);
}

/** True where new files take their permissions from the directory's default ACL. */
export function hasDefaultAcl(core: Core, directory: Directory): boolean {
  directory.defaultAcl ??= readDefaultAcl(core, directory) !== undefined;
  return directory.defaultAcl;
}

function readDefaultAcl(core: Core, directory: Directory): Buffer | undefined {
  try {
    return core.io.getxattr(core.fd(directory), '', ACL_DEFAULT);
  } catch (error) {
    if (errnoOf(error) === E.EOPNOTSUPP) return undefined; // a filesystem without ACLs
    throw error;
  }
}

/** Makes one file; the descriptor of a regular one, -1 of others. */
function makeAt(core: Core, dirfd: number, name: string, wanted: Wanted, owner: Owner): number {
  const { io } = core;
  const type = wanted.mode & S_IFMT;
  const permissions = wanted.mode & S_IPERM;
  if (type === S_IFREG)
    return io.createFile(dirfd, name, flagsForUpper(wanted.flags ?? 0), permissions, owner);
  if (type === S_IFDIR) io.mkdir(dirfd, name, permissions, owner);
  else if (type === S_IFLNK) io.symlink(wanted.target ?? Buffer.alloc(0), dirfd, name, owner);
  else io.mknod(dirfd, name, wanted.mode, wanted.rdev ?? 0, owner);
  return -1;
}

function unmake(core: Core, dirfd: number, name: string, mode: number): void {
  try {
    if ((mode & S_IFMT) === S_IFDIR) core.io.rmdir(dirfd, name);
    else core.io.unlink(dirfd, name);
  } catch (error) {
    core.log.warn({ error: String(error) }, 'a file that could not be made was left in upper/');
  }
}

/** Makes a file that covers a whiteout: first in work/. */
function makeOver(
  core: Core,
  parent: Directory,
  name: string,
  wanted: Wanted,
  caller: Caller,
  attributes: Float64Array,
): number {
  const { io, work } = core;
  const parentFd = core.fd(parent);
  const isDirectory = (wanted.mode & S_IFMT) === S_IFDIR;
  io.stat(parentFd, '', attributes);
  const setgid = (attributes[ATTR.mode]! & S_ISGID) !== 0;
  const gid = setgid ? attributes[ATTR.gid]! : caller.gid;
  const mode = setgid && isDirectory ? wanted.mode | S_ISGID : wanted.mode;
  const made = core.workName();
  const fd = makeAt(core, work, made, { ...wanted, mode }, { uid: caller.uid, gid });
  let moved = false;
  try {
    if (hasDefaultAcl(core, parent) && (mode & S_IFMT) !== S_IFLNK)
      applyAcl(core, parent, made, mode, isDirectory);
    else if (setgid && isDirectory)
      // mkdir(2) makes no setgid directory where the parent is none, whatever mode it is given.
      io.chmod(work, made, mode & S_IPERM);
    if (isDirectory) io.setxattr(work, made, OPAQUE, Buffer.from('y'), 0);
    io.stat(work, made, attributes);
    // A directory cannot be renamed over a device node: they change places, and the whiteout goes.
    io.rename(work, made, parentFd, name, isDirectory ? RENAME_EXCHANGE : 0);
    moved = true;
    if (isDirectory) discard(core, made);
    return fd;
  } catch (error) {
    if (fd >= 0) io.close(fd);
    if (!moved) discard(core, made, isDirectory);
    throw error;
  }
}

function applyAcl(
  core: Core,
  parent: Directory,
  made: string,
  mode: number,
  isDirectory: boolean,
): void {
  const acl = readDefaultAcl(core, parent);
  if (acl === undefined) return;
  const inherited = inherit(acl, mode);
  if (inherited.access !== undefined)
    core.io.setxattr(core.work, made, ACL_ACCESS, inherited.access, 0);
  core.io.chmod(core.work, made, inherited.mode & S_IPERM);
  if (isDirectory) core.io.setxattr(core.work, made, ACL_DEFAULT, acl, 0);
}

/** Makes a file of any type under a name that nothing has. */
export function make(
  core: Core,
  parent: Directory,
  name: string,
  asked: Wanted,
  caller: Caller,
): { node: Directory | FileNode; fd: number } {
  core.checkName(name);
  if (core.child(parent, name) !== undefined) throw fail('EEXIST', 'name');
  // In upper/ it would be a whiteout.
  if ((asked.mode & S_IFMT) === S_IFCHR && asked.rdev === 0) throw fail('EPERM', 'device 0/0');
  ensureUpper(core, parent);
  const keepsMode = hasDefaultAcl(core, parent) || (asked.mode & S_IFMT) === S_IFLNK;
  const wanted = keepsMode ? asked : { ...asked, mode: asked.mode & ~caller.umask };
  const attributes = new Float64Array(ATTR_SLOTS);
  const over = parent.slot(name) !== undefined;
  let fd: number;
  if (over) fd = makeOver(core, parent, name, wanted, caller, attributes);
  else {
    const dirfd = core.fd(parent);
    fd = makeAt(core, dirfd, name, wanted, caller);
    try {
      core.io.stat(dirfd, name, attributes);
    } catch (error) {
      if (fd >= 0) core.io.close(fd);
      unmake(core, dirfd, name, wanted.mode);
      throw error;
    }
  }
  return { node: enter(core, parent, name, attributes, over), fd };
}

/** The object of a file that has just been made. */
function enter(
  core: Core,
  parent: Directory,
  name: string,
  attributes: Float64Array,
  over: boolean,
): Directory | FileNode {
  const row = core.rowOf(parent, name);
  const ino = OWN_INO + attributes[ATTR.ino]!;
  if ((attributes[ATTR.mode]! & S_IFMT) === S_IFDIR) {
    const directory = core.addUpperDirectory(-1, ino, parent, name);
    directory.opaque = over;
    parent.names.put(parent, name, row, directory);
    parent.subdirectories++;
    return directory;
  }
  const file = new FileNode(core.nextNode(), ino, -1, 'upper');
  core.files.set(file.id, file);
  file.places.add(parent.names.put(parent, name, row, file));
  return file;
}

/** One more name of a file. @throws Wait */
export function link(core: Core, file: FileNode, parent: Directory, name: string): void {
  core.checkName(name);
  if (core.child(parent, name) !== undefined) throw fail('EEXIST', 'name');
  promoteFile(core, file);
  ensureUpper(core, parent);
  core.thawFile(file);
  const from = whereIs(core, file);
  if (from === undefined) throw fail('ENOENT', 'removed file');
  const { io, work } = core;
  if (parent.slot(name) === undefined) io.link(from.fd, from.name, core.fd(parent), name);
  else {
    const made = core.workName();
    io.link(from.fd, from.name, work, made);
    try {
      io.rename(work, made, core.fd(parent), name, 0);
    } catch (error) {
      discard(core, made);
      throw error;
    }
  }
  file.places.add(parent.names.put(parent, name, core.rowOf(parent, name), file));
  if (file.state === 'upper') return;
  // A file that was made without a name has one now.
  file.state = 'upper';
  if (file.fd >= 0) io.close(file.fd);
  file.fd = -1;
}
