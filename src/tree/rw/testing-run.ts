// One run of a model test: the same operations on a writable tree and on a plain model, and everything
// that can be compared. Only tests import it.
import assert from 'node:assert/strict';
import { closeSync, constants, existsSync, writeSync } from 'node:fs';
import { tmpdir } from 'node:os';
import type { Spec } from '../../delta/testing.ts';
import { ATTR, ATTR_SLOTS } from '../../native/upcalls.ts';
import type { Opened } from './operations.ts';
import { errnoOfCall, ME, ROOT_NODE, readAll, Stage, statOf } from './testing.ts';
import { Model, ModelError, type ModelInode } from './testing-model.ts';
import type { Operation } from './testing-operations.ts';
import { compareAdopted, compareLent } from './testing-session.ts';

const { O_RDONLY, O_RDWR, O_TRUNC, O_WRONLY } = constants;
const ESTALE = 116;
/** In memory, where there is such a place: each promotion waits for the disk twice. */
export const WHERE = existsSync('/dev/shm') ? '/dev/shm' : tmpdir();

/** A file that is held open: as a reader of the image, or by a descriptor. */
interface Held {
  inode: ModelInode;
  node: number;
  fd: number;
  /** What a reader of the image reads, whatever happens to the file. */
  content: Buffer | undefined;
}

export class Run {
  readonly stage: Stage;
  readonly model: Model;
  readonly held: Held[] = [];
  done = 0;

  constructor(spec: Record<string, Spec>) {
    this.stage = new Stage(spec, WHERE);
    this.stage.session = true;
    this.model = new Model(spec);
  }

  path(at: { directory: number; name: string }): string {
    const all = this.model.directories();
    return `${all[at.directory % all.length]![0]}/${at.name}`;
  }

  /** The same on both sides; where the tree says ESTALE the kernel looks up again, once. */
  async both(onModel: () => void, onTree: () => unknown): Promise<void> {
    let expected = 0;
    try {
      onModel();
    } catch (error) {
      if (!(error instanceof ModelError)) throw error;
      expected = error.errno;
    }
    let got = await errnoOfCall(onTree);
    if (got === ESTALE) got = await errnoOfCall(onTree);
    if (got !== expected) throw new Error(`errno ${got}, the model has ${expected}`);
    this.done++;
  }

  /** Node of a path that the model has, too; throws ENOENT as the kernel's lookup does. */
  node(path: string): number {
    const node = this.stage.find(path);
    if (node === undefined) throw new ModelError('ENOENT');
    return node;
  }

  /**
   * Attributes that the kernel may keep for good, by node. Those of what an operation is about it lets go
   * by itself; for all others the tree has to say so.
   */
  readonly #kept = new Map<number, Float64Array>();

  /** One operation, and that no attributes which the kernel keeps are wrong now. */
  async apply(operation: Operation): Promise<void> {
    const ends: string[] = [];
    if ('at' in operation) ends.push(this.path(operation.at));
    if ('to' in operation) ends.push(this.path(operation.to));
    const about = () => ends.flatMap((path) => [path.slice(0, path.lastIndexOf('/')), path]);
    const touched = new Set(about().map((path) => this.stage.find(path)));
    const { host } = this.stage;
    const before = host.invalidations.length;
    const dropped = host.attributesDropped.length;
    await this.applyAlone(operation);
    if (this.stage.host !== host) this.#kept.clear();
    for (const { node, name } of host.invalidations.slice(before))
      if (name === '') touched.add(node);
    for (const node of host.attributesDropped.slice(dropped)) touched.add(node);
    for (const node of touched) this.#kept.delete(node ?? 0);
    for (const [node, kept] of this.#kept) this.#compareKept(node, kept);
    this.#keep(ROOT_NODE);
  }

  #compareKept(node: number, kept: Float64Array): void {
    let now: Float64Array;
    try {
      now = this.stage.tree.getattr(node).attributes.slice();
    } catch (error) {
      assert.equal((error as { errno?: number }).errno, ESTALE);
      this.#kept.delete(node);
      return;
    }
    // Reads change it, and the kernel lets it go then.
    now.fill(0, ATTR.atimeSec, ATTR.atimeNsec + 1);
    assert.deepEqual(now, kept, `attributes of node ${node} that the kernel keeps`);
  }

  #keep(node: number): void {
    const { attributes, attrValidMs } = this.stage.tree.getattr(node);
    const kept = attributes.slice();
    kept.fill(0, ATTR.atimeSec, ATTR.atimeNsec + 1);
    if (attrValidMs > 0) this.#kept.set(node, kept);
    else this.#kept.delete(node);
    if ((kept[ATTR.mode]! & 0o170000) !== 0o040000) return;
    for (const child of Array.from(this.stage.tree.list(node, 0), ({ entry }) => entry.node))
      this.#keep(child);
  }

  private async applyAlone(operation: Operation): Promise<void> {
    const { stage: s, model: m } = this;
    if (operation.op === 'reopen') return this.reopen();
    if (operation.op === 'letGo') return this.letGo(operation.which);
    const path = this.path(operation.at);
    const caller = (uid: number) => ({ ...ME, uid, gid: uid, umask: 0 });
    switch (operation.op) {
      case 'create': {
        const { text: data, mode, owner: uid } = operation;
        const make = () => s.create(path, data, mode, caller(uid));
        return this.both(() => m.make(path, { data, mode, uid, gid: uid }), make);
      }
      case 'mkdir': {
        const { mode, owner: uid } = operation;
        const make = () => s.mkdir(path, mode, caller(uid));
        return this.both(() => m.make(path, { entries: {}, mode, uid, gid: uid }), make);
      }
      case 'symlink': {
        const uid = operation.owner;
        const spec: Spec = { type: 'symlink', target: 'there', mode: 0o777, uid, gid: uid };
        return this.both(
          () => m.make(path, spec),
          () => s.tree.symlink(...s.split(path), Buffer.from('there'), caller(uid)),
        );
      }
      case 'mkfifo':
        return this.both(
          () => m.make(path, { type: 'fifo', mode: operation.mode }),
          () => s.tree.mknod(...s.split(path), 0o010000 | operation.mode, 0, caller(0)),
        );
      case 'tmpfile':
        return this.both(
          () => m.make(path, { data: operation.text, mode: 0o600 }),
          () => this.tmpfile(path, operation.text),
        );
      case 'unlink':
        return this.removing(path, () =>
          this.both(
            () => m.unlink(path),
            () => s.unlink(path),
          ),
        );
      case 'rmdir':
        return this.removing(path, () =>
          this.both(
            () => m.rmdir(path),
            () => s.rmdir(path),
          ),
        );
      case 'rename': {
        const to = this.path(operation.to);
        const { flags } = operation;
        return this.removing(to, () =>
          this.both(
            () => m.rename(path, to, flags),
            () => s.rename(path, to, flags),
          ),
        );
      }
      case 'link': {
        const to = this.path(operation.to);
        const link = () => s.go((tree) => tree.link(this.node(path), ...s.split(to)));
        return this.both(() => m.link(path, to), link);
      }
      default:
        return this.applyToFile(operation, path);
    }
  }

  async applyToFile(operation: Operation, path: string): Promise<void> {
    const { stage: s, model: m } = this;
    const inode = m.at(path);
    const setattr = (changes: Parameters<typeof s.tree.setattr>[1]) => () =>
      s.go((tree) => tree.setattr(this.node(path), changes));
    const change = (apply: (of: ModelInode) => void) => () => apply(m.need(path));
    // The kernel opens, truncates and changes modes of regular files and directories only.
    if (inode?.type === 'symlink' || inode?.type === 'fifo') {
      if (['write', 'empty', 'truncate', 'chmod', 'hold'].includes(operation.op)) return;
    }
    switch (operation.op) {
      case 'write': {
        const { text, offset } = operation;
        return this.both(
          () => m.write(path, text, offset),
          () => this.write(path, text, offset),
        );
      }
      case 'empty':
        return this.both(
          () => m.truncate(path, 0),
          async () => {
            const opened = await this.open(path, O_WRONLY | O_TRUNC);
            if (opened.kind === 'upper') closeSync(opened.fd);
          },
        );
      case 'truncate': {
        const { bytes } = operation;
        return this.both(() => m.truncate(path, bytes), setattr({ size: bytes, mtime: 'now' }));
      }
      case 'chmod': {
        const { mode } = operation;
        const apply = (of: ModelInode) => {
          of.mode = (of.mode & 0o170000) | mode;
        };
        return this.both(change(apply), setattr({ mode }));
      }
      case 'chown': {
        const apply = (of: ModelInode) => {
          of.uid = operation.owner;
        };
        return this.both(change(apply), setattr({ uid: operation.owner }));
      }
      case 'utimes': {
        const { sec } = operation;
        const apply = (of: ModelInode) => {
          of.mtimeSec = sec;
        };
        return this.both(change(apply), setattr({ mtime: { sec, nsec: 1 } }));
      }
      case 'setxattr': {
        const value = Buffer.from(operation.text);
        return this.both(
          change((of) => of.xattrs.set('trusted.x', operation.text)),
          () => s.go((tree) => tree.setxattr(this.node(path), 'trusted.x', value, 0, false)),
        );
      }
      case 'removexattr': {
        const apply = (of: ModelInode) => {
          if (!of.xattrs.delete('trusted.x')) throw new ModelError('ENODATA');
        };
        const remove = () => s.go((tree) => tree.removexattr(this.node(path), 'trusted.x'));
        return this.both(change(apply), remove);
      }
      case 'hold':
        return this.hold(path, inode);
    }
  }

  /** All handles of a node read the same file: the image's, or the one in upper/. */
  async open(path: string, flags: number): Promise<Opened> {
    const node = this.node(path);
    const opened = await this.stage.go((tree) => tree.open(node, flags, false));
    for (const held of this.held) {
      if (held.node !== node) continue;
      assert.equal(opened.kind, held.content === undefined ? 'upper' : 'template', path);
    }
    return opened;
  }

  async write(path: string, text: string, offset: number): Promise<void> {
    const opened = await this.open(path, O_RDWR);
    if (opened.kind !== 'upper') throw new Error('opened for writing, and it is the template');
    if (text.length === 0) {
      // A model's write of nothing at some offset makes the file longer; so does this.
      const { size } = this.stage.stat(path);
      if (offset > size)
        await this.stage.go((tree) => tree.setattr(this.node(path), { size: offset }));
    } else writeSync(opened.fd, Buffer.from(text), 0, undefined, offset);
    closeSync(opened.fd);
  }

  /** The kernel forgets an inode that has neither names nor handles. */
  async removing(path: string, remove: () => Promise<void>): Promise<void> {
    const inode = this.model.at(path);
    const node = this.stage.find(path);
    await remove();
    if (inode?.names !== 0 || node === undefined) return;
    if (!this.held.some((held) => held.inode === inode)) this.stage.tree.forget(node, 1e6);
  }

  tmpfile(path: string, data: string): void {
    const { stage: s } = this;
    const [parent, name] = s.split(path);
    const { entry, opened } = s.tree.tmpfile(parent, O_RDWR, 0o600, ME);
    const { node } = entry;
    writeSync(opened.fd, data);
    closeSync(opened.fd);
    try {
      s.tree.link(node, parent, name);
      s.tree.forget(node, 2);
    } catch (error) {
      s.tree.forget(node, 1);
      throw error;
    }
  }

  async hold(path: string, inode: ModelInode | undefined): Promise<void> {
    const { stage: s } = this;
    if (inode === undefined || inode.type !== 'file') return;
    const node = this.node(path);
    const opened = await this.open(path, O_RDONLY);
    s.host.handles.set(node, s.host.openHandles(node) + 1);
    const content = opened.kind === 'template' ? s.templateContent(node - 1) : undefined;
    this.held.push({ inode, node, fd: opened.kind === 'upper' ? opened.fd : -1, content });
    this.done++;
  }

  async letGo(which: number): Promise<void> {
    if (this.held.length === 0) return;
    const [held] = this.held.splice(which % this.held.length, 1);
    const { node, fd } = held!;
    if (fd >= 0) closeSync(fd);
    const { host, tree } = this.stage;
    host.handles.set(node, host.openHandles(node) - 1);
    // Without handles and names the kernel forgets the inode altogether.
    if (held!.inode.names === 0 && host.openHandles(node) === 0) tree.forget(node, 1e6);
  }

  async reopen(): Promise<void> {
    while (this.held.length > 0) await this.letGo(0);
    this.stage.reopen();
  }

  /** The whole tree, and every held file, is what the model has. */
  compare(): void {
    const nodes = new Map<number, ModelInode>();
    const walk = (path: string, node: number, inode: ModelInode) => {
      this.compareInode(path, node, inode);
      const known = nodes.get(node);
      if (known !== undefined && known !== inode) throw new Error(`${path}: node ${node} is two`);
      nodes.set(node, inode);
      if (inode.children === undefined) return;
      const listed = new Map<string, { node: number; ino: number }>();
      const cookies = new Set<number>();
      for (const { name, cookie, entry } of this.stage.tree.list(node, 0)) {
        listed.set(name, { node: entry.node, ino: statOf(entry).ino });
        cookies.add(cookie);
      }
      if (cookies.size !== listed.size) throw new Error(`${path}: a cookie comes twice`);
      const names = [...listed.keys()].sort();
      assert.deepEqual(names, [...inode.children.keys()].sort(), `names of ${path}/`);
      for (const [name, child] of inode.children) {
        const entry = statOf(this.stage.tree.lookup(node, name)!);
        const from = listed.get(name)!;
        if (from.node !== entry.node || from.ino !== entry.ino)
          throw new Error(`${path}/${name}: the listing has another file than the lookup`);
        walk(`${path}/${name}`, entry.node, child);
      }
    };
    walk('', ROOT_NODE, this.model.root);
    for (const held of this.held) this.compareHeld(held);
    this.compareNative();
    compareLent(this.stage);
    compareAdopted(this.stage);
  }

  compareInode(path: string, node: number, inode: ModelInode): void {
    const { stage: s } = this;
    const stat = statOf(s.tree.getattr(node));
    inode.ino ??= stat.ino;
    const directories = [...(inode.children?.values() ?? [])].filter(({ children }) => children);
    const got = {
      ino: stat.ino,
      mode: stat.mode,
      uid: stat.uid,
      gid: stat.gid,
      nlink: stat.nlink,
      mtimeSec: inode.mtimeSec === undefined ? undefined : stat.mtimeSec,
      xattrs: s.tree.listxattr(node, ME).map((name) => [name, `${s.tree.getxattr(node, name)}`]),
      data: inode.type === 'file' ? s.readNode(node).toString() : '',
      target: inode.type === 'symlink' ? Buffer.from(s.tree.readlink(node)).toString() : '',
    };
    assert.deepEqual(
      got,
      {
        ino: inode.ino,
        mode: inode.mode,
        uid: inode.uid,
        gid: inode.gid,
        nlink: inode.children === undefined ? inode.names : 2 + directories.length,
        mtimeSec: inode.mtimeSec,
        xattrs: [...inode.xattrs].map(([name, value]) => [name, value]),
        data: inode.data.toString(),
        target: inode.target,
      },
      path,
    );
    if (inode.type === 'file' && stat.size !== inode.data.length) throw new Error(`${path}: size`);
  }

  compareHeld({ inode, node, fd, content }: Held): void {
    const stat = statOf(this.stage.tree.getattr(node));
    assert.equal(stat.nlink, inode.names, 'names of a held file');
    assert.equal(stat.ino, inode.ino ?? stat.ino, 'inode number of a held file');
    // A reader of the image keeps what it had, all others see what is written.
    if (content === undefined) assert.equal(readAll(fd).toString(), inode.data.toString());
  }

  /** Nodes that were not thawed are answered from the image: it must be right. */
  compareNative(): void {
    const { stage: s } = this;
    const { toc } = s.image;
    const attributes = new Float64Array(ATTR_SLOTS);
    for (let row = 0; row < toc.rows; row++) {
      if (toc.inode(row) !== row || s.host.thawed.has(row + 1)) continue;
      try {
        attributes.set(s.tree.getattr(row + 1).attributes);
        if (toc.isDirectory(row)) s.tree.parentOf(row + 1);
      } catch (error) {
        assert.equal((error as { errno?: number }).errno, ESTALE);
        continue; // in no view since the last start: the kernel cannot ask for it
      }
      assert.equal(attributes[ATTR.nlink], toc.nlink(row), `names of ${toc.path(row)}`);
      assert.equal(attributes[ATTR.mode], toc.mode(row));
      if (!toc.isDirectory(row)) continue;
      const { first, end } = toc.children(row);
      const expected = [];
      for (let child = first; child < end; child++)
        expected.push([
          toc.name(child),
          toc.inode(child) + 1,
          toc.mode(child),
          toc.nlink(child),
          toc.size(child),
          toc.mtimeSec(child),
        ]);
      const got = Array.from(s.tree.list(row + 1, 0), ({ name, entry }) => {
        const { node, mode, nlink, size, mtimeSec } = statOf(entry);
        return [name, node, mode, nlink, size, mtimeSec];
      });
      assert.deepEqual(got, expected, `names of ${toc.path(row)} that native answers`);
    }
  }
}
