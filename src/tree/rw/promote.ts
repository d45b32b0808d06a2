// Promotion: what the image has comes into upper/ before its first change, with all its attributes,
// parents first. What does not live here: the copying of contents (copy-jobs.ts).
//
// Made in work/, moved in by rename: a crash leaves the file as it was, or whole. A hard link comes in
// under all its names, one after the other; a start that finds only some of them adds the others
// (scan.ts), so the group is never seen mixed.
import { ATTR, ATTR_SLOTS } from '../../native/upcalls.ts';
import type { Owner } from '../../native/upper.ts';
import {
  E,
  errnoOf,
  fail,
  O_PATH,
  O_WRONLY,
  S_IFCHR,
  S_IFLNK,
  S_IFMT,
  S_IFREG,
  S_IPERM,
} from './abi.ts';
import { discard } from './copy-jobs.ts';
import type { Core } from './core.ts';
import { Directory, type FileNode, type Node } from './node.ts';
import { ORIGIN, toUpper } from './xattr-names.ts';

/** Runs `change`, which adds names to directories in upper/, and puts their times back. */
function keepTimes(core: Core, directories: Iterable<Directory>, change: () => void): void {
  const { io } = core;
  const before = new Map<Directory, Float64Array>();
  for (const directory of directories) {
    if (before.has(directory)) continue;
    const attributes = new Float64Array(ATTR_SLOTS);
    io.stat(core.fd(directory), '', attributes);
    before.set(directory, attributes);
    // What it has meanwhile is for nobody to see.
    core.adopted.drop(directory);
  }
  try {
    change();
  } finally {
    for (const [directory, a] of before) {
      try {
        io.utimes(
          core.fd(directory),
          '',
          a[ATTR.atimeSec]!,
          a[ATTR.atimeNsec]!,
          a[ATTR.mtimeSec]!,
          a[ATTR.mtimeNsec]!,
        );
      } catch (error) {
        // The names are in: a time that is too new is the smaller evil.
        core.log.warn({ error: String(error) }, 'a directory lost its modification time');
      }
      // The time of its last change cannot be put back, so what the kernel keeps of it is old.
      core.host.invalidateAttributes(directory.id);
    }
  }
}

/** Gives something in work/ the attributes of a row of the template; its owner it has. */
function dress(core: Core, row: number, name: string): void {
  const { toc, io, work } = core;
  const mode = toc.mode(row);
  for (const [attribute, value] of toc.xattrs(row)) {
    const own = toUpper(attribute);
    if (own === undefined) continue;
    try {
      io.setxattr(work, name, own, value, 0);
    } catch (error) {
      // As overlayfs: what the filesystem of upper/ cannot keep at all is left, unless it guards something.
      const guards = attribute.startsWith('security.') || attribute.startsWith('system.');
      const cannot = [E.EOPNOTSUPP, E.ENOTSUP].includes(errnoOf(error));
      const onSymlink = errnoOf(error) === E.EPERM && (mode & S_IFMT) === S_IFLNK;
      if (!onSymlink && (guards || !cannot)) throw error;
    }
  }
  if (!toc.isDirectory(row)) io.setxattr(work, name, ORIGIN, Buffer.from(`${row + 1}`), 0);
  // After the ACLs, which also say something about the mode.
  if ((mode & S_IFMT) !== S_IFLNK) io.chmod(work, name, mode & S_IPERM);
  const seconds = toc.mtimeSec(row);
  const nsec = toc.mtimeNsec(row);
  io.utimes(work, name, seconds, nsec, seconds, nsec);
}

function ownerOf(core: Core, row: number): Owner {
  return { uid: core.toc.uid(row), gid: core.toc.gid(row) };
}

/**
 * A directory of the template, and all above it, come into upper/, thawed. Nothing that can be seen
 * changes.
 */
export function ensureUpper(core: Core, directory: Directory): void {
  const missing: Directory[] = [];
  for (let at = directory; !at.upper; at = at.parent) missing.push(at);
  for (const next of missing.reverse()) promoteDirectory(core, next);
}

function promoteDirectory(core: Core, directory: Directory): void {
  const { io, work } = core;
  const { parent, name, row } = directory;
  core.thaw(parent.id);
  core.thaw(directory.id);
  const made = core.workName();
  io.mkdir(work, made, 0o700, ownerOf(core, row));
  try {
    dress(core, row, made);
    keepTimes(core, [parent], () => io.rename(work, made, core.fd(parent), name, 0));
  } catch (error) {
    discard(core, made, true);
    throw error;
  }
  core.host.invalidateAttributes(directory.id);
  directory.upper = true;
  parent.names.put(parent, name, row, directory);
}

/** What is made in work/ for a file of the template. @throws Wait */
function prepare(core: Core, file: FileNode, empty: boolean): string {
  const { toc, io, work } = core;
  const { row } = file;
  const mode = toc.mode(row);
  const type = mode & S_IFMT;
  if (type === S_IFREG && !empty && toc.size(row) > 0)
    return core.copies.take(file, (name) => dress(core, row, name));
  // In upper/ it would be a whiteout.
  if (type === S_IFCHR && toc.rdev(row) === 0) throw fail('EPERM', 'character device 0/0');
  const name = core.workName();
  const owner = ownerOf(core, row);
  if (type === S_IFREG) io.close(io.createFile(work, name, O_WRONLY, 0o600, owner));
  else if (type === S_IFLNK) io.symlink(toc.target(row), work, name, owner);
  else io.mknod(work, name, type | 0o600, toc.rdev(row), owner);
  try {
    dress(core, row, name);
  } catch (error) {
    discard(core, name);
    throw error;
  }
  return name;
}

/**
 * Brings a file of the template into upper/, under all the names that it has left.
 * @param empty  without its content: it is about to be truncated to nothing
 * @throws Wait before anything that can be seen has changed
 */
export function promoteFile(core: Core, file: FileNode, empty = false): void {
  if (file.state === 'upper' || file.state === 'removed-upper') return;
  const name = prepare(core, file, empty);
  try {
    if (file.state === 'removed-template') {
      file.fd = core.io.openFile(core.work, name, O_PATH);
      discard(core, name);
      file.state = 'removed-upper';
    } else {
      install(core, file, name);
    }
  } catch (error) {
    discard(core, name);
    throw error;
  }
  // Its change time and blocks are others now, for whoever asks after this request. Also stops answers
  // under way that were the template's. Pages that a mapping of the template left go when they can.
  core.host.invalidateAttributes(file.id);
  core.host.invalidate(file.id, '');
}

/** Moves a file from work/ to all its names. */
function install(core: Core, file: FileNode, made: string): void {
  const { io, work } = core;
  core.thawFile(file);
  const places = [...core.templatePlaces(file.row)];
  for (const { directory } of places) ensureUpper(core, directory);
  const [first, ...others] = places;
  if (first === undefined) throw fail('ESTALE', `node ${file.id} has no name`);
  const linked: typeof others = [];
  keepTimes(
    core,
    places.map(({ directory }) => directory),
    () => {
      try {
        for (const place of others) {
          link(core, made, core.fd(place.directory), place.name);
          linked.push(place);
        }
        io.rename(work, made, core.fd(first.directory), first.name, 0);
      } catch (error) {
        unlinkAll(core, linked);
        throw error;
      }
    },
  );
  file.state = 'upper';
  for (const { directory, name, row } of places)
    file.places.add(directory.names.put(directory, name, row, file));
}

/** A link from work/; a name that a failed promotion could not take back is replaced. */
function link(core: Core, made: string, fd: number, name: string): void {
  try {
    core.io.link(core.work, made, fd, name);
  } catch (error) {
    if (errnoOf(error) !== E.EEXIST) throw error;
    core.io.unlink(fd, name);
    core.io.link(core.work, made, fd, name);
  }
}

function unlinkAll(core: Core, places: { directory: Directory; name: string }[]): void {
  for (const { directory, name } of places) {
    try {
      core.io.unlink(core.fd(directory), name);
    } catch (error) {
      // The view does not show it, and whatever comes to that name next replaces it.
      core.log.warn({ error: String(error) }, 'a promotion that failed left a name in upper/');
    }
  }
}

/** The node comes into upper/, whatever it is. @throws Wait */
export function promote(core: Core, node: Node): void {
  if (node instanceof Directory) ensureUpper(core, node);
  else promoteFile(core, node);
}
