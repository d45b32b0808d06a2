// A plain model of a file system in memory, to compare a writable tree with: no template, no upper/, no
// node ids. Only tests import it.
import { constants } from 'node:os';
import type { Spec } from '../../delta/testing.ts';
import { S_IF } from '../../image/tree.ts';

type Code = keyof typeof constants.errno;

/** One inode of the model. */
export interface ModelInode {
  type: 'dir' | 'file' | 'symlink' | 'fifo';
  mode: number;
  uid: number;
  gid: number;
  data: Buffer;
  target: string;
  xattrs: Map<string, string>;
  /** Seconds; undefined: some moment of the test. */
  mtimeSec: number | undefined;
  /** Of directories only. */
  children: Map<string, ModelInode> | undefined;
  names: number;
  /** st_ino, when it has been seen once. */
  ino: number | undefined;
}

/** What an operation ends with: nothing, or an errno. */
export class ModelError extends Error {
  readonly errno: number;
  constructor(code: Code) {
    super(code);
    this.errno = constants.errno[code];
  }
}

function refuse(condition: boolean, code: Code): void {
  if (condition) throw new ModelError(code);
}

export class Model {
  readonly root: ModelInode;

  constructor(spec: Record<string, Spec>) {
    const known = new Map<Spec, ModelInode>();
    const build = (from: Spec): ModelInode => {
      let inode = known.get(from);
      if (inode === undefined) {
        inode = inodeOf(from);
        known.set(from, inode);
        for (const [name, child] of Object.entries(from.entries ?? {})) {
          const made = build(child);
          made.names++;
          inode.children?.set(name, made);
        }
      }
      return inode;
    };
    this.root = build({ entries: spec, mtimeSec: 0 });
    this.root.names = 1;
  }

  /** Directories by path, sorted; the root is ''. */
  directories(): [string, ModelInode][] {
    const found: [string, ModelInode][] = [];
    const walk = (path: string, inode: ModelInode) => {
      found.push([path, inode]);
      for (const [name, child] of [...(inode.children ?? [])].sort())
        if (child.children !== undefined) walk(`${path}/${name}`, child);
    };
    walk('', this.root);
    return found;
  }

  at(path: string): ModelInode | undefined {
    let inode: ModelInode | undefined = this.root;
    for (const name of path.split('/')) {
      if (name !== '') inode = inode?.children?.get(name);
    }
    return inode;
  }

  need(path: string): ModelInode {
    const inode = this.at(path);
    if (inode === undefined) throw new ModelError('ENOENT');
    return inode;
  }

  #parent(path: string): [ModelInode, string] {
    const slash = path.lastIndexOf('/');
    return [this.need(path.slice(0, slash)), path.slice(slash + 1)];
  }

  #change(directory: ModelInode): Map<string, ModelInode> {
    directory.mtimeSec = undefined;
    return directory.children ?? new Map();
  }

  make(path: string, from: Spec): void {
    const [parent, name] = this.#parent(path);
    refuse(parent.children?.has(name) === true, 'EEXIST');
    const inode = inodeOf(from);
    inode.mtimeSec = undefined;
    inode.names = 1;
    this.#change(parent).set(name, inode);
  }

  unlink(path: string): void {
    const [parent, name] = this.#parent(path);
    const inode = this.need(path);
    refuse(inode.children !== undefined, 'EISDIR');
    inode.names--;
    this.#change(parent).delete(name);
  }

  rmdir(path: string): void {
    const [parent, name] = this.#parent(path);
    const inode = this.need(path);
    refuse(inode.children === undefined, 'ENOTDIR');
    refuse(inode.children?.size !== 0, 'ENOTEMPTY');
    inode.names--;
    this.#change(parent).delete(name);
  }

  link(from: string, to: string): void {
    const inode = this.need(from);
    const [parent, name] = this.#parent(to);
    refuse(inode.children !== undefined, 'EPERM');
    refuse(parent.children?.has(name) === true, 'EEXIST');
    inode.names++;
    this.#change(parent).set(name, inode);
  }

  rename(from: string, to: string, flags: number): void {
    const [fromParent, fromName] = this.#parent(from);
    const [toParent, toName] = this.#parent(to);
    const source = this.need(from);
    const target = this.at(to);
    if (flags === 2) {
      refuse(target === undefined, 'ENOENT');
      if (source === target) return;
      refuse(contains(source, toParent) || contains(target!, fromParent), 'EINVAL');
      this.#change(fromParent).set(fromName, target!);
      this.#change(toParent).set(toName, source);
      return;
    }
    refuse(flags === 1 && target !== undefined, 'EEXIST');
    if (source === target) return;
    refuse(contains(source, toParent), 'EINVAL');
    if (target?.children !== undefined) {
      refuse(source.children === undefined, 'EISDIR');
      refuse(target.children.size > 0, 'ENOTEMPTY');
    } else if (target !== undefined) refuse(source.children !== undefined, 'ENOTDIR');
    if (target !== undefined) target.names--;
    this.#change(fromParent).delete(fromName);
    this.#change(toParent).set(toName, source);
  }

  write(path: string, text: string, offset: number): void {
    const inode = this.#file(path);
    const bytes = Buffer.from(text);
    const data = Buffer.alloc(Math.max(inode.data.length, offset + bytes.length));
    inode.data.copy(data);
    bytes.copy(data, offset);
    inode.data = data;
    inode.mtimeSec = undefined;
  }

  truncate(path: string, bytes: number): void {
    const inode = this.#file(path);
    const data = Buffer.alloc(bytes);
    inode.data.copy(data);
    inode.data = data;
    inode.mtimeSec = undefined;
  }

  #file(path: string): ModelInode {
    const inode = this.need(path);
    refuse(inode.children !== undefined, 'EISDIR');
    return inode;
  }
}

function contains(inode: ModelInode, other: ModelInode): boolean {
  if (inode === other) return inode.children !== undefined;
  for (const child of inode.children?.values() ?? []) if (contains(child, other)) return true;
  return false;
}

function inodeOf(from: Spec): ModelInode {
  const type = from.entries !== undefined ? 'dir' : (from.type ?? 'file');
  const xattrs = [...(from.xattrs ?? [])].map(([name, value]) => [name, `${value}`] as const);
  return {
    type: type as ModelInode['type'],
    mode: S_IF[type] | (from.mode ?? (type === 'dir' ? 0o755 : 0o644)),
    uid: from.uid ?? 0,
    gid: from.gid ?? 0,
    data: Buffer.from(from.data ?? ''),
    target: from.target ?? '',
    xattrs: new Map(xattrs),
    mtimeSec: from.mtimeSec ?? (type === 'dir' ? 0 : 1),
    children: type === 'dir' ? new Map() : undefined,
    names: 0,
    ino: undefined,
  };
}
