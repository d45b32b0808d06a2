// The start of a tree: upper/ is walked, and every object that it speaks of is made again. It reads
// overlayfs' format, also where the kernel's overlayfs wrote it. What does not live here: any change
// to a running tree.
//
// What a crash may have left: files in work/ (emptied), whiteouts over nothing (harmless), and a hard
// link that was promoted under some of its names only: it gets the others here.
import { FirstlightError } from '../../errors/errors.ts';
import { ATTR, ATTR_SLOTS } from '../../native/upcalls.ts';
import type { NativeUpper } from '../../native/upper.ts';
import {
  DT_DIR,
  DT_UNKNOWN,
  E,
  errnoOf,
  RENAME_WHITEOUT,
  S_IFCHR,
  S_IFDIR,
  S_IFMT,
} from './abi.ts';
import { type Core, OWN_INO } from './core.ts';
import { type Directory, FileNode } from './node.ts';
import { ensureUpper } from './promote.ts';
import { METACOPY, OPAQUE, ORIGIN, REDIRECT, toUpper } from './xattr-names.ts';

/** An attribute that is set and removed again. */
const PROBE = 'trusted.firstlight.probe';

/** Removes everything in a directory. */
export function emptyDirectory(io: NativeUpper, fd: number): void {
  for (const { name, type } of io.list(fd, '')) {
    if (type === DT_DIR) {
      removeDirectory(io, fd, name);
      continue;
    }
    try {
      io.unlink(fd, name);
    } catch (error) {
      if (type !== DT_UNKNOWN || errnoOf(error) !== E.EISDIR) throw error;
      removeDirectory(io, fd, name);
    }
  }
}

function removeDirectory(io: NativeUpper, parent: number, name: string): void {
  const fd = io.openDirectory(parent, name);
  try {
    emptyDirectory(io, fd);
  } finally {
    io.close(fd);
  }
  io.rmdir(parent, name);
}

/**
 * Tries what every change needs: trusted attributes, whiteouts, and renames that leave one.
 * @throws FirstlightError 'unsupported'
 */
function probe(core: Core, upper: number): void {
  const { io, work } = core;
  const [from, to] = [core.workName(), core.workName()];
  try {
    io.setxattr(upper, '', PROBE, Buffer.from('y'), 0);
    io.removexattr(upper, '', PROBE);
    io.mknod(work, from, S_IFCHR, 0, { uid: 0, gid: 0 });
    io.rename(work, from, work, to, RENAME_WHITEOUT);
    io.unlink(work, from);
    io.unlink(work, to);
  } catch (cause) {
    if (![E.EOPNOTSUPP, E.EINVAL, E.ENOSYS, E.EPERM].includes(errnoOf(cause))) throw cause;
    throw new FirstlightError(
      'unsupported',
      `the filesystem of upper/ keeps no changes: ${cause}`,
      {
        hint: 'put --root on ext4, xfs, btrfs or tmpfs and run as root, or mount with --rw overlay or off',
        cause,
      },
    );
  }
}

/** Rebuilds the merged view from upper/. */
export function scan(core: Core): void {
  new Scan(core).run();
}

class Scan {
  readonly #core: Core;
  /** Files with several names, by inode of upper/. */
  readonly #linked = new Map<number, FileNode>();
  readonly #attributes = new Float64Array(ATTR_SLOTS);

  constructor(core: Core) {
    this.#core = core;
  }

  run(): void {
    const core = this.#core;
    this.#finishRoot();
    core.adopted.holdRoot();
    const queue: Directory[] = [core.root];
    for (let next = queue.pop(); next !== undefined; next = queue.pop()) {
      for (const { name } of core.io.list(core.fd(next), '')) {
        const directory = this.#take(next, name);
        if (directory !== undefined) queue.push(directory);
      }
      core.upperDirectories.trim();
    }
    this.#countSubdirectories();
    this.#completeGroups();
  }

  /** upper/ itself is made by the snapshot, which sets no xattrs and times to the microsecond only. */
  #finishRoot(): void {
    const { io, toc, root } = this.#core;
    const fd = this.#core.fd(root);
    if (io.getxattr(fd, '', ORIGIN) !== undefined) {
      this.#core.thaw(root.id);
      return;
    }
    probe(this.#core, fd);
    for (const [attribute, value] of toc.xattrs(0)) {
      const own = toUpper(attribute);
      if (own !== undefined && io.getxattr(fd, '', own) === undefined)
        io.setxattr(fd, '', own, value, 0);
    }
    io.setxattr(fd, '', ORIGIN, Buffer.from('1'), 0);
    io.stat(fd, '', this.#attributes);
    const seconds = toc.mtimeSec(0);
    if (this.#attributes[ATTR.mtimeSec] === seconds)
      io.utimes(fd, '', seconds, toc.mtimeNsec(0), seconds, toc.mtimeNsec(0));
    this.#core.thaw(root.id);
  }

  /** One name of upper/; a directory is returned, to be walked. */
  #take(parent: Directory, name: string): Directory | undefined {
    const core = this.#core;
    const fd = core.fd(parent);
    const row = core.rowOf(parent, name);
    core.io.stat(fd, name, this.#attributes);
    const mode = this.#attributes[ATTR.mode]!;
    core.thaw(parent.id);
    if ((mode & S_IFMT) === S_IFDIR) return this.#takeDirectory(parent, name, row);
    const isWhiteout = (mode & S_IFMT) === S_IFCHR && this.#attributes[ATTR.rdev] === 0;
    const node = isWhiteout ? undefined : this.#takeFile(fd, name);
    const slot = parent.names.put(parent, name, row, node);
    node?.places.add(slot);
    return undefined;
  }

  #takeDirectory(parent: Directory, name: string, row: number): Directory {
    const core = this.#core;
    const fd = core.fd(parent);
    const opaque = core.io.getxattr(fd, name, OPAQUE)?.toString('latin1') === 'y';
    const target = opaque ? undefined : core.io.getxattr(fd, name, REDIRECT);
    const merged = opaque ? -1 : this.#mergedRow(parent, row, target?.toString('latin1'));
    const ino = opaque ? this.#originOf(fd, name) : undefined;
    const own = OWN_INO + this.#attributes[ATTR.ino]!;
    const directory = core.addUpperDirectory(merged, ino ?? own, parent, name);
    directory.opaque = opaque;
    directory.redirected = merged >= 0 && target !== undefined;
    core.thaw(directory.id);
    parent.names.put(parent, name, row, directory);
    return directory;
  }

  /** Row of the template that is merged into a directory, or -1. */
  #mergedRow(parent: Directory, row: number, target: string | undefined): number {
    const { toc, directories } = this.#core;
    let merged = row;
    if (target?.startsWith('/')) merged = toc.resolve(target);
    // overlayfs writes a name alone where a directory was renamed within its parent.
    else if (target !== undefined)
      merged = parent.row < 0 ? -1 : toc.lookup(parent.row, Buffer.from(target, 'latin1'));
    if (merged < 0 || !toc.isDirectory(merged)) return -1;
    // Of two that claim the same, the first has it.
    return directories.get(merged + 1)?.upper === true ? -1 : merged;
  }

  #takeFile(fd: number, name: string): FileNode {
    const core = this.#core;
    const ino = this.#attributes[ATTR.ino]!;
    const several = this.#attributes[ATTR.nlink]! > 1;
    const known = several ? this.#linked.get(ino) : undefined;
    if (known !== undefined) return known;
    // A file without its content has a size and no blocks.
    const hollow = this.#attributes[ATTR.size]! > 0 && this.#attributes[ATTR.blocks] === 0;
    if (hollow && core.io.getxattr(fd, name, METACOPY) !== undefined)
      throw new FirstlightError('unsupported', 'upper/ has files without their contents', {
        hint: 'it was written by overlayfs with metacopy=on; mount it with --rw overlay',
      });
    const row = this.#rowOf(fd, name);
    const file =
      row < 0
        ? new FileNode(core.nextNode(), OWN_INO + ino, -1, 'upper')
        : new FileNode(row + 1, row + 1, row, 'upper');
    core.files.set(file.id, file);
    core.thaw(file.id);
    if (several) this.#linked.set(ino, file);
    return file;
  }

  /** Row of the template that a file in upper/ was promoted from, or -1. */
  #rowOf(fd: number, name: string): number {
    const { toc, files } = this.#core;
    const ino = this.#originOf(fd, name);
    if (ino === undefined || ino > toc.rows) return -1;
    const row = ino - 1;
    if (toc.isDirectory(row) || toc.inode(row) !== row) return -1;
    // A copy that was made with its attributes, by whoever mounted upper/ meanwhile.
    return files.has(ino) ? -1 : row;
  }

  /** st_ino that was written down for something in upper/. */
  #originOf(fd: number, name: string): number | undefined {
    const value = this.#core.io.getxattr(fd, name, ORIGIN)?.toString('latin1');
    return value !== undefined && /^[1-9][0-9]{0,14}$/.test(value) ? Number(value) : undefined;
  }

  #countSubdirectories(): void {
    const { toc, directories } = this.#core;
    for (const directory of directories.values()) {
      let count = 0;
      for (const slot of directory.slots()) {
        const row = this.#core.rowOf(directory, slot.name);
        if (row >= 0 && toc.isDirectory(row)) count--;
        if (slot.node !== undefined && !(slot.node instanceof FileNode)) count++;
      }
      if (directory.row >= 0) count += toc.nlink(directory.row) - 2;
      directory.subdirectories = count;
    }
  }

  /** Hard links of the template: those that were promoted have all their names, others may have lost some. */
  #completeGroups(): void {
    const core = this.#core;
    for (const [inode, rows] of core.groups.all()) {
      const known = core.files.get(inode + 1);
      const left = [...core.templatePlaces(inode)];
      if (known === undefined) {
        if (left.length === rows.length) continue;
        const file = core.fileOfRow(inode);
        file.templateNames = left.length;
        if (left.length === 0) file.state = 'removed-template';
        core.thawFile(file);
        continue;
      }
      for (const { directory, name, row } of left) this.#complete(known, directory, name, row);
    }
  }

  #complete(file: FileNode, directory: Directory, name: string, row: number): void {
    const core = this.#core;
    // Its parent may not be in upper/ yet: then the promotion ended before it came there.
    ensureUpper(core, directory);
    const { directory: from, name: fromName } = file.place;
    core.io.link(core.fd(from), fromName, core.fd(directory), name);
    file.places.add(directory.names.put(directory, name, row, file));
  }
}
