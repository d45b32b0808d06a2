// One layer as a tree of its own: entries, whiteouts and opaque marks are collected here, and laid
// over the lower layers only when the layer is complete (overlay.ts). So the order of entries and
// whiteouts inside a layer makes no difference, as the OCI image specification wants it.
//
// Paths. A leading slash and `.` components mean nothing: everything is below the image's root.
// `..` is refused. A parent that is a symlink *of the same layer* is followed inside the tree, never
// out of it; a parent that is no directory in the *lower* layers is replaced by a directory. Both are
// what containerd does when it unpacks a layer into an overlay's upper directory.
import { FirstlightError } from '../errors/errors.ts';
import { MAJOR_MAX, MINOR_MAX, NAME_MAX, PATH_BYTES_MAX, TARGET_MAX } from './limits.ts';
import type { TarEntry } from './tar.ts';
import { type Inode, type TreeNode, textOf } from './tree.ts';

/** One name of a layer. */
export interface LayerNode {
  /** What the layer puts there; undefined for a parent that is only passed through, and a whiteout. */
  inode?: Inode;
  children?: Map<string, LayerNode>;
  /** Nothing of the lower layers shows at or below this name. */
  hides: boolean;
  /** A directory that shows none of its children in the lower layers, and keeps its attributes. */
  opaque: boolean;
  /** Entries stand below: where the lower layers have no such directory, one is made. */
  needed: boolean;
}

const WHITEOUT = '.wh.';
const OPAQUE = '.wh..wh..opq';
const RESERVED = '.wh..wh.';
/** As the kernel's MAXSYMLINKS. */
const SYMLINKS_MAX = 40;

function emptyNode(): LayerNode {
  return { hides: false, opaque: false, needed: false };
}

/** Components of a path inside the image; none for the root. Throws a reason as text. */
function split(path: string): string[] {
  if (path === '') throw new Error('the name is empty');
  if (path.includes('\0')) throw new Error('the name has a NUL');
  if (path.length > PATH_BYTES_MAX)
    throw new Error(`the path is longer than ${PATH_BYTES_MAX} bytes`);
  const names = path.split('/').filter((name) => name !== '' && name !== '.');
  for (const name of names) {
    if (name === '..') throw new Error("the path has a '..'");
    if (name.length > NAME_MAX) throw new Error(`a name is longer than ${NAME_MAX} bytes`);
  }
  return names;
}

/** Collects the entries of one layer. */
export class LayerTree {
  readonly root: LayerNode = { ...emptyNode(), needed: true, children: new Map() };
  readonly #lower: TreeNode;
  readonly #index: number;
  readonly #what: string;

  /**
   * @param lower  merged tree of the layers below, for hard links into it
   * @param index  the layer's number, 0 for the lowest
   * @param what   names the layer in errors
   */
  constructor(lower: TreeNode, index: number, what: string) {
    this.#lower = lower;
    this.#index = index;
    this.#what = what;
  }

  /**
   * Takes in one entry.
   * @returns the inode where it is a file with content that has yet to be stored
   * @throws FirstlightError `corrupt`, naming layer and path
   */
  add(entry: TarEntry): Inode | undefined {
    try {
      return this.#add(entry);
    } catch (error) {
      if (error instanceof FirstlightError) throw error;
      const name = JSON.stringify(textOf(entry.name.slice(0, 300)));
      const why = (error as Error).message;
      throw new FirstlightError('corrupt', `${this.#what}: bad entry ${name}: ${why}`, {
        hint: 'build the image again with a tool that writes plain relative paths',
        cause: error,
      });
    }
  }

  #add(entry: TarEntry): Inode | undefined {
    const names = split(entry.name);
    const last = names.pop();
    if (last === undefined) {
      if (entry.type !== 'dir') throw new Error('the root is not a directory');
      this.root.inode = makeInode(entry, this.#index);
      return undefined;
    }
    // Notes of aufs (.wh..wh.plnk/ and the like), which is long gone.
    if (last !== OPAQUE && [...names, last].some((name) => name.startsWith(RESERVED))) {
      return undefined;
    }
    if (names.some((name) => name.startsWith(WHITEOUT))) {
      throw new Error('a whiteout has entries below it');
    }
    if (last.startsWith(WHITEOUT)) {
      this.#whiteout(names, last);
      return undefined;
    }
    const inode = entry.type === 'link' ? this.#linked(entry) : makeInode(entry, this.#index);
    const parent = this.#directory(names, true);
    let node = parent.children!.get(last);
    if (node === undefined) {
      node = emptyNode();
      parent.children!.set(last, node);
    }
    node.inode = inode;
    node.needed = true;
    if (inode.type === 'dir') node.children ??= new Map();
    else {
      delete node.children;
      // Should a directory take its place later in the layer, the lower one's children stay gone.
      node.hides = true;
    }
    return entry.type === 'file' && inode.size > 0 ? inode : undefined;
  }

  #whiteout(names: string[], last: string): void {
    const parent = this.#directory(names, false);
    if (last === OPAQUE) {
      parent.opaque = true;
      return;
    }
    const name = last.slice(WHITEOUT.length);
    if (name === '' || name === '.' || name === '..') throw new Error('a whiteout names nothing');
    const node = parent.children!.get(name);
    if (node !== undefined) node.hides = true;
    else parent.children!.set(name, { ...emptyNode(), hides: true });
  }

  /** The layer's node of a directory, made where it is missing. */
  #directory(names: string[], needed: boolean): LayerNode {
    let path: LayerNode[] = [this.root];
    const todo = [...names].reverse();
    let links = 0;
    while (todo.length > 0) {
      const name = todo.pop()!;
      if (name === '..') {
        if (path.length > 1) path.pop();
        continue;
      }
      const parent = path.at(-1)!;
      let node = parent.children!.get(name);
      if (node?.inode?.type === 'symlink') {
        links++;
        if (links > SYMLINKS_MAX) throw new Error('its parents are a loop of symlinks');
        const target = node.inode.target!;
        if (target.startsWith('/')) path = [this.root];
        todo.push(
          ...target
            .split('/')
            .reverse()
            .filter((part) => part !== '' && part !== '.'),
        );
        continue;
      }
      if (node?.inode !== undefined && node.inode.type !== 'dir') {
        throw new Error(`its parent ${JSON.stringify(textOf(name))} is not a directory`);
      }
      if (node === undefined) {
        if (name.length > NAME_MAX) throw new Error(`a name is longer than ${NAME_MAX} bytes`);
        node = emptyNode();
        parent.children!.set(name, node);
      }
      node.children ??= new Map();
      if (needed) node.needed = true;
      path.push(node);
    }
    return path.at(-1)!;
  }

  /** The inode that a hard link names: of this layer, or of the layers below. */
  #linked(entry: TarEntry): Inode {
    let names: string[];
    try {
      names = split(entry.linkname);
    } catch (error) {
      throw new Error(`its link target is bad: ${(error as Error).message}`);
    }
    const inode = this.#find(names);
    const target = JSON.stringify(textOf(entry.linkname));
    if (inode === undefined) {
      throw new Error(`it is a hard link to ${target}, which the image has not had so far`);
    }
    if (inode.type === 'dir') throw new Error(`it is a hard link to the directory ${target}`);
    return inode;
  }

  /** Looks a path up in this layer and, behind it, the lower ones; follows symlinked parents. */
  #find(names: string[]): Inode | undefined {
    type Place = { own: LayerNode | undefined; below: TreeNode | undefined };
    const root: Place = { own: this.root, below: this.#lower };
    let path: Place[] = [root];
    const todo = [...names].reverse();
    let links = 0;
    while (todo.length > 0) {
      const name = todo.pop()!;
      if (name === '..') {
        if (path.length > 1) path.pop();
        continue;
      }
      const { own, below } = path.at(-1)!;
      const node = own?.children?.get(name);
      // Whiteouts are not looked at: in which order they stand must not matter.
      const place = { own: node, below: below?.children?.get(name) };
      const inode = node?.inode ?? place.below?.inode;
      if (todo.length === 0) return inode;
      if (inode?.type === 'symlink') {
        links++;
        if (links > SYMLINKS_MAX) return undefined;
        const target = inode.target!;
        if (target.startsWith('/')) path = [root];
        todo.push(
          ...target
            .split('/')
            .reverse()
            .filter((part) => part !== '' && part !== '.'),
        );
        continue;
      }
      path.push(place);
    }
    // Only `..` at the end of a symlink's target leads here: a directory.
    return undefined;
  }
}

/** The inode of an entry that is no hard link. Throws a reason as text. */
function makeInode(entry: TarEntry, layer: number): Inode {
  const { type, mode, uid, gid, mtimeSec, mtimeNsec, size } = entry;
  const inode: Inode = {
    type: type === 'link' ? 'file' : type,
    // Linux shows every symlink as 0777, whatever the archive says.
    mode: type === 'symlink' ? 0o777 : mode,
    uid,
    gid,
    mtimeSec,
    mtimeNsec,
    size,
    layer,
  };
  if (entry.xattrs !== undefined) inode.xattrs = entry.xattrs;
  if (type === 'symlink') {
    const target = entry.linkname;
    if (target === '') throw new Error('it is a symlink to nothing');
    if (target.includes('\0')) throw new Error('its link target has a NUL');
    if (target.length > TARGET_MAX) {
      throw new Error(`its link target is longer than ${TARGET_MAX} bytes`);
    }
    inode.target = target;
  }
  if (type === 'char' || type === 'block') {
    const { devmajor: major, devminor: minor } = entry;
    if (major < 0 || major > MAJOR_MAX || minor < 0 || minor > MINOR_MAX) {
      throw new Error(`the device number ${major}:${minor} does not fit 12 and 20 bits`);
    }
    inode.major = major;
    inode.minor = minor;
  }
  return inode;
}
