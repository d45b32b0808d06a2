// Reads an upper directory, overlayfs' own format, into memory: what stands there and the marks on it.
// What does not live here: what that means for an image (diff.ts), and changing it (rw/).
//
// System calls go by directory descriptors, so names of 255 bytes and paths of any depth work. They
// are synchronous: this is for processes of their own (the command line), never for the daemon's thread.
import { constants } from 'node:fs';
import { FirstlightError } from '../errors/errors.ts';
import { fromText, S_IF, textOf } from '../image/tree.ts';
import { ATTR, ATTR_SLOTS } from '../native/upcalls.ts';
import type { NativeUpper } from '../native/upper.ts';

const S_IFMT = 0o170000;
const OVERLAY = 'trusted.overlay.';
/** What a container set under a name of overlayfs' own stands one level down, as overlayfs does it since Linux 6.7. */
const ESCAPED = 'trusted.overlay.overlay.';
const FIRSTLIGHT = 'trusted.firstlight.';
/** The host's label, and none of the image's. */
const SELINUX = 'security.selinux';

/** One file, directory or mark of an upper directory. */
export interface UpperNode {
  /** Byte string; empty for the root. */
  name: string;
  /** Type and permission bits. */
  mode: number;
  uid: number;
  gid: number;
  /** Bytes of a regular file. */
  size: number;
  mtimeSec: number;
  mtimeNsec: number;
  /** Device number as new_encode_dev. */
  rdev: number;
  nlink: number;
  ino: number;
  /** As the container sees them. */
  xattrs: Map<string, Buffer>;
  /** Target of a symlink, byte string. */
  target?: string;
  /** Of a directory. */
  children?: Map<string, UpperNode>;
  /** The name is removed: nothing of the image shows. */
  whiteout: boolean;
  /** A directory that shows nothing of the image below it. */
  opaque: boolean;
  /** A directory that shows what the image has under another name: a path from the root, or a name beside it. */
  redirect?: string;
}

/** The name in the container of an attribute in upper/; undefined for marks. */
function shownAttribute(attribute: string): string | undefined {
  if (attribute.startsWith(ESCAPED)) return OVERLAY + attribute.slice(ESCAPED.length);
  if (attribute.startsWith(OVERLAY) || attribute.startsWith(FIRSTLIGHT)) return undefined;
  return attribute === SELINUX ? undefined : attribute;
}

class Reader {
  readonly #io: NativeUpper;
  readonly #slots = new Float64Array(ATTR_SLOTS);

  constructor(io: NativeUpper) {
    this.#io = io;
  }

  /** @param path  for messages, byte string */
  node(dirfd: number, name: string, path: string): UpperNode {
    const io = this.#io;
    io.stat(dirfd, name, this.#slots);
    const slot = (index: number) => this.#slots[index] ?? 0;
    const mode = slot(ATTR.mode);
    const type = mode & S_IFMT;
    const node: UpperNode = {
      name,
      mode,
      uid: slot(ATTR.uid),
      gid: slot(ATTR.gid),
      size: type === S_IF.file ? slot(ATTR.size) : 0,
      mtimeSec: slot(ATTR.mtimeSec),
      mtimeNsec: slot(ATTR.mtimeNsec),
      rdev: slot(ATTR.rdev),
      nlink: slot(ATTR.nlink),
      ino: slot(ATTR.ino),
      xattrs: new Map(),
      whiteout: type === S_IF.char && slot(ATTR.rdev) === 0,
      opaque: false,
    };
    if (node.whiteout) return node;
    this.#attributes(dirfd, name, path, node);
    if (type === S_IF.symlink) node.target = io.readlink(dirfd, name).toString('latin1');
    return node;
  }

  #attributes(dirfd: number, name: string, path: string, node: UpperNode): void {
    const io = this.#io;
    for (const attribute of io.listxattr(dirfd, name)) {
      if (attribute === `${OVERLAY}metacopy`) {
        throw new FirstlightError('unsupported', `${textOf(path)} is a copy of attributes alone`, {
          hint: 'it was written by an overlay with metacopy=on; mount that one, and copy from there',
        });
      }
      const value = io.getxattr(dirfd, name, attribute);
      // Gone between the two calls: somebody is changing it just now.
      if (value === undefined) continue;
      const shown = shownAttribute(attribute);
      if (shown !== undefined) node.xattrs.set(shown, value);
      else if (attribute === `${OVERLAY}opaque`) node.opaque = value.toString('latin1') === 'y';
      else if (attribute === `${OVERLAY}redirect`) node.redirect = value.toString('latin1');
    }
  }

  /** Reads what is below a directory. */
  fill(dirfd: number, directory: UpperNode, path: string): void {
    const children = new Map<string, UpperNode>();
    directory.children = children;
    for (const { name } of this.#io.list(dirfd, '')) {
      const below = path === '' ? name : `${path}/${name}`;
      const node = this.#unlessGone(() => this.node(dirfd, name, below));
      if (node === undefined) continue;
      if ((node.mode & S_IFMT) === S_IF.dir) {
        const fd = this.#unlessGone(() => this.#io.openDirectory(dirfd, name));
        if (fd === undefined) continue;
        try {
          this.fill(fd, node, below);
        } finally {
          this.#io.close(fd);
        }
      }
      children.set(name, node);
    }
  }

  /** What is removed while it is read was not there. */
  #unlessGone<T>(work: () => T): T | undefined {
    try {
      return work();
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined;
      throw error;
    }
  }
}

/**
 * Reads an upper directory.
 * @param path  absolute
 * @throws FirstlightError 'unsupported' for metacopy files, 'not-found' where it is not there; the disk's errors
 */
export function readUpper(io: NativeUpper, path: string): UpperNode {
  const fd = openRoot(io, path);
  try {
    const reader = new Reader(io);
    const root = reader.node(fd, '', '');
    reader.fill(fd, root, '');
    return root;
  } finally {
    io.close(fd);
  }
}

function openRoot(io: NativeUpper, path: string): number {
  try {
    return io.openDirectory(-1, fromText(path));
  } catch (cause) {
    if ((cause as NodeJS.ErrnoException).code !== 'ENOENT') throw cause;
    throw new FirstlightError('not-found', `there are no changes at ${path}: it was unmounted`, {
      hint: 'see "firstlight ls"',
      cause,
    });
  }
}

/** Opens files of an upper directory by path, whatever its length. Close it. */
export class UpperFiles {
  readonly #io: NativeUpper;
  /** Open directories from the root to the one of the last file: the next is often beside it. */
  readonly #open: { name: string; fd: number }[];

  constructor(io: NativeUpper, path: string) {
    this.#io = io;
    this.#open = [{ name: '', fd: openRoot(io, path) }];
  }

  /** A descriptor for reading, the caller's. @param path  byte string below the root */
  openFile(path: string): number {
    const names = path.split('/');
    const last = names.pop() ?? '';
    let depth = 1;
    while (depth <= names.length && this.#open[depth]?.name === names[depth - 1]) depth++;
    while (this.#open.length > depth) this.#io.close(this.#open.pop()!.fd);
    for (; depth <= names.length; depth++) {
      const name = names[depth - 1]!;
      this.#open.push({ name, fd: this.#io.openDirectory(this.#open.at(-1)!.fd, name) });
    }
    return this.#io.openFile(this.#open.at(-1)!.fd, last, constants.O_RDONLY);
  }

  close(): void {
    while (this.#open.length > 0) this.#io.close(this.#open.pop()!.fd);
  }
}
