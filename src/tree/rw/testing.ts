// A writable tree on a temporary directory, for tests: an image of nested specs, its contents in files,
// a host that notes what the tree asks of it. Only tests import it.
import {
  chmodSync,
  closeSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readSync,
  rmSync,
  utimesSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { ExecutionContext } from 'ava';
import { imageOf, type Spec, type TestImage } from '../../delta/testing.ts';
import { makeLogger } from '../../log/log.ts';
import { native } from '../../native/index.ts';
import { ATTR } from '../../native/upcalls.ts';
import type { NativeUpper } from '../../native/upper.ts';
import { type Caller, type Entry, type Opened, type TreeHost, Wait } from './operations.ts';
import { createAsSession, removeAsSession } from './testing-session.ts';
import { WritableTree } from './tree.ts';

/** Device nodes, owners and trusted attributes need it. */
export const AS_ROOT = process.getuid?.() === 0;
export const ME: Caller = { uid: 0, gid: 0, pid: 1, umask: 0o022 };
export const ROOT_NODE = 1;

const LOG = makeLogger('test');
LOG.level = process.env.FIRSTLIGHT_LOG ?? 'silent';

/** Notes everything; a test says how many handles are open on a node. */
export class NotedHost implements TreeHost {
  readonly thawed = new Set<number>();
  readonly handles = new Map<number, number>();
  readonly invalidations: { node: number; name: string }[] = [];
  readonly attributesDropped: number[] = [];
  readonly adopted = new Map<number, number>();
  /** Adopted for writing too. */
  readonly writable = new Set<number>();
  readonly lent = new Map<number, { fd: number; row: number; changes: boolean }>();
  readonly leased: number[] = [];

  thaw(node: number): void {
    this.thawed.add(node);
  }
  openHandles(node: number): number {
    return this.handles.get(node) ?? 0;
  }
  invalidate(node: number, name: string): void {
    this.invalidations.push({ node, name });
  }
  invalidateAttributes(node: number): void {
    this.attributesDropped.push(node);
  }
  adopt(node: number, fd: number, _ino = 0, _links = 0, writable = 0): void {
    if (writable === 1) this.writable.add(node);
    const before = this.adopted.get(node);
    if (before !== undefined) closeSync(before);
    this.adopted.set(node, fd);
  }
  disown(node: number): void {
    const fd = this.adopted.get(node);
    if (fd !== undefined) closeSync(fd);
    this.adopted.delete(node);
    this.writable.delete(node);
  }
  lend(node: number, fd: number, row: number, changes: number): void {
    this.recall(node);
    this.lent.set(node, { fd, row, changes: changes === 1 });
  }
  leaseNodes(first: number, count: number): void {
    for (let node = first; node < first + count; node++) this.leased.push(node);
  }
  recall(node: number): void {
    const known = this.lent.get(node);
    if (known !== undefined) closeSync(known.fd);
    this.lent.delete(node);
  }
  holdRoot(fd: number): void {
    closeSync(fd);
  }
}

/** Attributes by name. */
export interface Stat {
  node: number;
  ino: number;
  mode: number;
  nlink: number;
  uid: number;
  gid: number;
  rdev: number;
  size: number;
  mtimeSec: number;
  mtimeNsec: number;
}

export function statOf(entry: Entry): Stat {
  const a = entry.attributes;
  const at = (slot: number) => a[slot] ?? Number.NaN;
  return {
    node: entry.node,
    ino: at(ATTR.ino),
    mode: at(ATTR.mode),
    nlink: at(ATTR.nlink),
    uid: at(ATTR.uid),
    gid: at(ATTR.gid),
    rdev: at(ATTR.rdev),
    size: at(ATTR.size),
    mtimeSec: at(ATTR.mtimeSec),
    mtimeNsec: at(ATTR.mtimeNsec),
  };
}

/** One image and one snapshot, with the tree that is open on it. */
export class Stage {
  readonly root: string;
  readonly image: TestImage;
  readonly upper: string;
  readonly work: string;
  host = new NotedHost();
  tree: WritableTree;
  /** Contents that have not arrived. */
  readonly missing = new Set<number>();
  /** Handed to the tree; a test may put another in its place before `reopen`. */
  io: NativeUpper = native().upper;
  /** The same. */
  unclaimedMs: number | undefined;
  /** The session does by itself what it may. */
  session = false;

  constructor(spec: Record<string, Spec> | TestImage, where = tmpdir()) {
    this.image = 'toc' in spec ? (spec as TestImage) : imageOf(spec as Record<string, Spec>);
    this.io.prepareThread();
    this.root = mkdtempSync(join(where, 'fl-rw-'));
    this.upper = join(this.root, 'upper');
    this.work = join(this.root, 'work');
    for (const path of [this.upper, this.work, join(this.root, 'content')])
      mkdirSync(path, { mode: 0o755 });
    for (const [hex, bytes] of this.image.contents)
      writeFileSync(join(this.root, 'content', hex), bytes);
    // As a snapshot is made.
    const { toc } = this.image;
    chmodSync(this.upper, toc.mode(0) & 0o7777);
    utimesSync(this.upper, toc.mtimeSec(0), toc.mtimeSec(0));
    this.tree = this.open();
  }

  open(): WritableTree {
    return WritableTree.open({
      toc: this.image.toc,
      upper: this.upper,
      work: this.work,
      io: this.io,
      host: this.host,
      openContent: (content) => this.#openContent(content),
      log: LOG,
      unclaimedMs: this.unclaimedMs,
    });
  }

  #openContent(content: number): number | undefined {
    if (this.missing.has(content)) return undefined;
    const hex = this.image.digests.toString('hex', content * 32, content * 32 + 32);
    return openSync(join(this.root, 'content', hex), 'r');
  }

  /** Closes the tree and opens it again on the same directories, as a new mount does. */
  reopen(): void {
    this.closeTree();
    this.host = new NotedHost();
    this.tree = this.open();
  }

  closeTree(): void {
    this.tree.close();
    for (const node of [...this.host.adopted.keys()]) this.host.disown(node);
    for (const node of [...this.host.lent.keys()]) this.host.recall(node);
  }

  remove(): void {
    this.closeTree();
    rmSync(this.root, { recursive: true });
  }

  /** Runs an operation as a session does: waits where it says so, and calls it again. */
  async go<T>(operation: (tree: WritableTree) => T): Promise<T> {
    for (let round = 0; round < 100; round++) {
      try {
        return operation(this.tree);
      } catch (error) {
        if (!(error instanceof Wait) || error.done === undefined) throw error;
        await error.done;
      }
    }
    throw new Error('the operation waits for ever');
  }

  /** Node of a path, or undefined. */
  find(path: string): number | undefined {
    let node = ROOT_NODE;
    for (const name of path.split('/')) {
      if (name === '') continue;
      const entry = this.tree.lookup(node, name);
      if (entry === undefined) return undefined;
      node = entry.node;
    }
    return node;
  }

  node(path: string): number {
    const node = this.find(path);
    if (node === undefined) throw new Error(`${path} is not there`);
    return node;
  }

  stat(path: string): Stat {
    return statOf(this.tree.getattr(this.node(path)));
  }

  /** Opens and closes at once, with what `use` does in between; a template's content is given as its bytes. */
  async open_<T>(
    path: string,
    flags: number,
    use: (fd: number | undefined, opened: Opened) => T,
  ): Promise<T> {
    const opened = await this.go((tree) => tree.open(this.node(path), flags, false));
    if (opened.kind === 'template') return use(undefined, opened);
    try {
      return use(opened.fd, opened);
    } finally {
      closeSync(opened.fd);
    }
  }

  /** Whole content of a file. */
  read(path: string): Buffer {
    return this.readNode(this.node(path));
  }

  readNode(node: number): Buffer {
    const opened = this.tree.open(node, 0, false);
    if (opened.kind === 'template') return this.templateContent(node - 1);
    try {
      return readAll(opened.fd);
    } finally {
      closeSync(opened.fd);
    }
  }

  templateContent(row: number): Buffer {
    const content = this.image.toc.content(row);
    if (content < 0) return Buffer.alloc(0);
    const hex = this.image.digests.toString('hex', content * 32, content * 32 + 32);
    return this.image.contents.get(hex) ?? Buffer.alloc(0);
  }

  /** Writes over the start of a file. */
  async write(path: string, text: string | Buffer, flags = 1): Promise<void> {
    await this.open_(path, flags, (fd) => {
      if (fd === undefined) throw new Error('opened for writing, and it is the template');
      writeSync(fd, Buffer.from(text), 0, undefined, 0);
    });
  }

  create(path: string, text: string | Buffer = '', mode = 0o644, caller = ME): Stat {
    const [parent, name] = this.split(path);
    if (this.session) {
      const made = createAsSession(this, parent, name, 2, mode, caller);
      if (made !== undefined) {
        writeSync(made.fd, Buffer.from(text), 0, undefined, 0);
        closeSync(made.fd);
        return statOf(this.tree.getattr(made.node));
      }
    }
    const { entry, opened } = this.tree.create(parent, name, 2, mode, caller);
    const stat = statOf(entry);
    writeSync(opened.fd, Buffer.from(text), 0, undefined, 0);
    closeSync(opened.fd);
    return stat;
  }

  mkdir(path: string, mode = 0o755, caller = ME): Stat {
    const [parent, name] = this.split(path);
    return statOf(this.tree.mkdir(parent, name, mode, caller));
  }

  /** Node of the directory that a path names something in, and that name. */
  split(path: string): [number, string] {
    const at = path.lastIndexOf('/');
    return [this.node(path.slice(0, Math.max(at, 0))), path.slice(at + 1)];
  }

  unlink(path: string): void {
    const [parent, name] = this.split(path);
    if (this.session && removeAsSession(this, parent, name)) return;
    this.tree.unlink(parent, name);
  }

  rmdir(path: string): void {
    this.tree.rmdir(...this.split(path));
  }

  async rename(from: string, to: string, flags = 0): Promise<void> {
    await this.go((tree) => tree.rename(...this.split(from), ...this.split(to), flags));
  }

  async link(from: string, to: string): Promise<Stat> {
    return statOf(await this.go((tree) => tree.link(this.node(from), ...this.split(to))));
  }

  names(path: string): string[] {
    return [...this.tree.list(this.node(path), 0)].map(({ name }) => name);
  }
}

export function readAll(fd: number): Buffer {
  const chunks: Buffer[] = [];
  for (let at = 0; ; ) {
    const chunk = Buffer.alloc(64 << 10);
    const bytes = readSync(fd, chunk, 0, chunk.length, at);
    if (bytes === 0) return Buffer.concat(chunks);
    chunks.push(chunk.subarray(0, bytes));
    at += bytes;
  }
}

/** A stage that goes with its test. */
export function stage(t: ExecutionContext, spec: Record<string, Spec> | TestImage): Stage {
  const made = new Stage(spec);
  t.teardown(() => made.remove());
  return made;
}

/** The errno of what is thrown; 0 where nothing is. */
export async function errnoOfCall(operation: () => unknown): Promise<number> {
  try {
    await operation();
    return 0;
  } catch (error) {
    const { errno } = error as { errno?: number };
    if (errno === undefined) throw error;
    return errno;
  }
}
