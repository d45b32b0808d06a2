// The tree without any kernel: lookups, listings, attributes, states.
import test from 'ava';
import fc from 'fast-check';
import { Toc } from '../delta/toc.ts';
import { buildToc } from '../delta/toc-build.ts';
import { fromText, type Inode, makeDirectory, type TreeNode } from '../image/tree.ts';
import { FsEntry, TemplateEntry } from './entry.ts';
import { type FileEvent, FileState, transition } from './file-state.ts';

function inode(more: Partial<Inode>): Inode {
  const base = { type: 'file' as const, mode: 0o644, uid: 1, gid: 2, mtimeSec: -5, mtimeNsec: 7 };
  return { ...base, size: 0, layer: 0, ...more };
}

function makeRoot(): TemplateEntry {
  const root = makeDirectory('', 0);
  const add = (directory: TreeNode, name: string, more: Partial<Inode>) => {
    const children = more.type === 'dir' ? { children: new Map<string, TreeNode>() } : {};
    const node: TreeNode = { name, inode: inode(more), ...children };
    directory.children!.set(name, node);
    return node;
  };
  const etc = add(root, 'etc', { type: 'dir', mode: 0o1755 });
  const hosts = add(etc, 'hosts', { size: 1000, digest: 'a'.repeat(64) });
  etc.children!.set('hosts.link', { name: 'hosts.link', inode: hosts.inode });
  add(etc, fromText('ü'), { type: 'symlink', target: '../x', size: 4 });
  add(etc, '\xff\xfe', { xattrs: new Map([['user.a', Buffer.from('b')]]) });
  add(root, 'null', { type: 'char', major: 1, minor: 3 });
  return new TemplateEntry(new Toc(buildToc(root).bytes), 0);
}

test('lookup, listing and paths', (t) => {
  const root = makeRoot();
  t.true(root.isRoot);
  const etc = root.lookup('etc')!;
  t.deepEqual(
    [...etc.children()].map(({ name }) => name),
    ['hosts', 'hosts.link', fromText('ü'), '\xff\xfe'],
  );
  t.is(root.lookup('none'), undefined);
  t.is(etc.lookup('hosts')!.lookup('x'), undefined);
  t.deepEqual([...etc.lookup('hosts')!.children()], []);
  t.is(root.resolve('/etc//hosts')!.path, 'etc/hosts');
  t.is(root.resolve('etc/../etc'), undefined);
  t.is(root.resolve('')!.row, 0);
  t.is(etc.lookup(fromText('ü'))!.target(), '../x');
  t.is(etc.target(), undefined);
  t.is(etc.lookup('hosts')!.parent.path, 'etc');
  t.deepEqual(etc.lookup('\xff\xfe')!.xattrs(), new Map([['user.a', Buffer.from('b')]]));
});

test('attributes: hard links are one inode, sizes and blocks are what stat shows', (t) => {
  const root = makeRoot();
  const hosts = root.resolve('etc/hosts')!;
  const link = root.resolve('etc/hosts.link')!;
  t.is(hosts.attributes().ino, link.attributes().ino);
  t.is(hosts.content, link.content);
  t.deepEqual(hosts.attributes(), {
    ...{ ino: hosts.row + 1, mode: 0o100644, nlink: 2, uid: 1, gid: 2, rdev: 0 },
    ...{ size: 1000, blocks: 2, mtimeSec: -5, mtimeNsec: 7 },
  });
  t.is(root.lookup('etc')!.attributes().mode, 0o041755);
  t.is(root.attributes().nlink, 3);
  t.is(root.lookup('null')!.attributes().rdev, 0x103);
  t.is(root.lookup('null')!.attributes().blocks, 0);
});

test('states of a file move as they may, and in no other way', (t) => {
  const events: FileEvent[] = ['part', 'complete', 'failed', 'mended', 'lost', 'promoted'];
  const states = Object.values(FileState);
  const { Empty, Partial, RoLayer, RwLayer, Failed } = FileState;
  fc.assert(
    fc.property(fc.array(fc.constantFrom(...events)), (happened) => {
      let state: FileState = Empty;
      let promoted = false;
      for (const event of happened) {
        const next = transition(state, event);
        if (next === undefined) continue;
        if (!states.includes(next)) return false;
        // What a container wrote is never taken from it.
        if (promoted && next !== RwLayer) return false;
        if (event === 'promoted') promoted = true;
        if (!promoted && event === 'complete' && next !== RoLayer) return false;
        if (!promoted && event === 'failed' && next !== Failed) return false;
        state = next;
      }
      return true;
    }),
  );
  t.is(transition(Empty, 'part'), Partial);
  t.is(transition(RoLayer, 'part'), undefined);
  t.is(transition(RwLayer, 'promoted'), undefined);
  t.is(transition(Empty, 'mended'), undefined);
});

test('an entry that diverges keeps its template and refuses what cannot happen', (t) => {
  const entry = new FsEntry(makeRoot().resolve('etc/hosts')!, FileState.Empty);
  t.is(entry.apply('part'), FileState.Partial);
  t.is(entry.apply('complete'), FileState.RoLayer);
  t.throws(() => entry.apply('part'), { message: /etc\/hosts: part in state 2/ });
  t.is(entry.apply('promoted'), FileState.RwLayer);
  t.is(entry.state, FileState.RwLayer);
  t.is(entry.attributes().size, 1000);
});
