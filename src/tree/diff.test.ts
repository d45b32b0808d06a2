// Changes from an image and an upper directory in memory: as a list, and as a layer that makes the
// right tree again. With real mounts: test/long/diff-commit.test.ts.
import { Readable } from 'node:stream';
import test from 'ava';
import { Toc } from '../delta/toc.ts';
import { buildToc } from '../delta/toc-build.ts';
import { ByteReader } from '../image/byte-reader.ts';
import { LayerTree } from '../image/layer.ts';
import { overlay } from '../image/overlay.ts';
import { TarReader } from '../image/tar.ts';
import { tarEnd, tarHeaders, tarPadding } from '../image/tar-write.ts';
import { type Inode, makeDirectory, S_IF, type TreeNode } from '../image/tree.ts';
import { diff } from './diff.ts';
import { type LayerItem, layerItems } from './diff-layer.ts';
import { TemplateEntry } from './entry.ts';
import type { UpperNode } from './upper-tree.ts';

/** An image as nested names: text is a file, `->x` a symlink, `=x` a hard link to the file called x. */
interface Names {
  [name: string]: string | Names;
}

function imageTree(names: Names): TreeNode {
  const root = makeDirectory('', 0);
  const files = new Map<string, Inode>();
  const fill = (directory: TreeNode, inside: Names) => {
    for (const [name, what] of Object.entries(inside)) {
      if (typeof what !== 'string') {
        const child = makeDirectory(name, 0);
        directory.children!.set(name, child);
        fill(child, what);
        continue;
      }
      const base = { mode: 0o644, uid: 0, gid: 0, mtimeSec: 0, mtimeNsec: 0, layer: 0 };
      let inode: Inode;
      if (what.startsWith('=')) inode = files.get(what.slice(1))!;
      else if (what.startsWith('->')) {
        inode = {
          ...base,
          type: 'symlink',
          mode: 0o777,
          size: what.length - 2,
          target: what.slice(2),
        };
      } else {
        const digest = Buffer.from(what).toString('hex').padEnd(64, '0');
        inode = { ...base, type: 'file', size: what.length, digest };
      }
      files.set(name, inode);
      directory.children!.set(name, { name, inode });
    }
  };
  fill(root, names);
  return root;
}

const template = (names: Names) => new TemplateEntry(new Toc(buildToc(imageTree(names)).bytes), 0);

interface Marks {
  opaque?: boolean;
  redirect?: string;
  whiteout?: boolean;
  mode?: number;
  ino?: number;
  nlink?: number;
  xattrs?: Map<string, Buffer>;
}

function node(name: string, type: number, size: number, marks: Marks = {}): UpperNode {
  return {
    ...{ name, mode: type | (marks.mode ?? (type === S_IF.dir ? 0o755 : 0o644)), uid: 0, gid: 0 },
    ...{ size, mtimeSec: 0, mtimeNsec: 0, rdev: 0, nlink: 1, ino: 0, xattrs: new Map() },
    ...{ whiteout: false, opaque: false },
    ...marks,
    ...(marks.mode === undefined ? {} : { mode: type | marks.mode }),
  };
}

function dir(name: string, children: UpperNode[], marks: Marks = {}): UpperNode {
  const map = new Map(children.map((child) => [child.name, child]));
  return { ...node(name, S_IF.dir, 0, marks), children: map };
}

const file = (name: string, size: number, marks?: Marks) => node(name, S_IF.file, size, marks);
const gone = (name: string) => node(name, S_IF.char, 0, { whiteout: true });
const upperOf = (...children: UpperNode[]) => dir('', children);

const listed = (image: TemplateEntry, upper: UpperNode) =>
  [...diff(image, upper)].map(({ kind, path }) => `${kind} ${path}`);

const ETC: Names = { etc: { a: 'aaa', b: 'bbb', sub: { deep: 'dddd', link: '->deep' } }, bin: {} };

test('nothing written, nothing changed', (t) => {
  const image = template(ETC);
  t.deepEqual(listed(image, upperOf()), []);
  t.deepEqual([...layerItems(image, upperOf())], []);
  // A directory that was copied up and is as it was.
  t.deepEqual(listed(image, upperOf(dir('etc', []))), []);
  t.deepEqual([...layerItems(image, upperOf(dir('etc', [])))], []);
});

const CASES: [what: string, upper: UpperNode, changes: string[], entries: string[]][] = [
  [
    'added, changed, deleted',
    upperOf(dir('etc', [file('a', 9), gone('b'), file('new', 1)]), gone('none')),
    ['C /etc', 'C /etc/a', 'D /etc/b', 'A /etc/new'],
    ['./', 'etc/', 'etc/a', 'etc/.wh.b', 'etc/new'],
  ],
  [
    'a new directory in place of the old one',
    upperOf(dir('etc', [file('a', 9)], { opaque: true })),
    ['C /etc', 'C /etc/a', 'D /etc/b', 'D /etc/sub'],
    ['./', 'etc/', 'etc/.wh..wh..opq', 'etc/a'],
  ],
  [
    'a file in place of a directory, and the other way round',
    upperOf(file('etc', 1), dir('bin', [], { mode: 0o700 })),
    ['C /bin', 'C /etc'],
    ['./', 'bin/', 'etc'],
  ],
  [
    'a renamed directory with a change in it',
    upperOf(gone('etc'), dir('conf', [file('a', 9), gone('b')], { redirect: '/etc' })),
    ['A /conf', 'A /conf/a', 'A /conf/sub', 'A /conf/sub/deep', 'A /conf/sub/link', 'D /etc'],
    ['./', 'conf/', 'conf/a', 'conf/sub/', 'conf/sub/deep', 'conf/sub/link', '.wh.etc'],
  ],
  [
    'a directory renamed beside itself, over another one',
    upperOf(
      dir('etc', [gone('sub'), file('a', 9)]),
      dir('bin', [dir('x', [], { redirect: '/etc/sub' })], { opaque: true }),
    ),
    [
      ...['C /bin', 'A /bin/x', 'A /bin/x/deep', 'A /bin/x/link'],
      ...['C /etc', 'C /etc/a', 'D /etc/sub'],
    ],
    [
      ...['./', 'bin/', 'bin/.wh..wh..opq', 'bin/x/', 'bin/x/deep', 'bin/x/link'],
      ...['etc/', 'etc/a', 'etc/.wh.sub'],
    ],
  ],
  [
    'a relative redirect',
    upperOf(dir('etc', [gone('sub'), dir('other', [], { redirect: 'sub' })])),
    ['C /etc', 'A /etc/other', 'A /etc/other/deep', 'A /etc/other/link', 'D /etc/sub'],
    ['./', 'etc/', 'etc/other/', 'etc/other/deep', 'etc/other/link', 'etc/.wh.sub'],
  ],
  [
    'hard links: one file, then links to it',
    upperOf(
      dir('bin', [file('x', 5, { ino: 7, nlink: 3 })]),
      file('y', 5, { ino: 7, nlink: 3 }),
      file('z', 5, { ino: 8, nlink: 1 }),
    ),
    ['C /bin', 'A /bin/x', 'A /y', 'A /z'],
    ['./', 'bin/', 'bin/x', 'y -> bin/x', 'z'],
  ],
];

for (const [what, upper, changes, entries] of CASES) {
  test(`${what}: as a list and as a layer`, (t) => {
    const image = template(ETC);
    t.deepEqual(listed(image, upper), changes);
    const items = [...layerItems(image, upper)];
    t.deepEqual(
      items.map(({ name, type, linkname }) => (type === 'link' ? `${name} -> ${linkname}` : name)),
      entries,
    );
  });
}

test('what is renamed brings its bytes from the image, links among them stay links', (t) => {
  const image = template({ old: { a: 'aaa', b: '=a' } });
  const upper = upperOf(gone('old'), dir('new', [], { redirect: '/old' }));
  const items = [...layerItems(image, upper)];
  t.deepEqual(items.find(({ name }) => name === 'new/a')?.bytes, { content: 0 });
  t.like(
    items.find(({ name }) => name === 'new/b'),
    { type: 'link', linkname: 'new/a', size: 0 },
  );
});

test('sockets stay out of the layer', (t) => {
  const upper = upperOf(node('s', S_IF.socket, 0));
  t.deepEqual(listed(template(ETC), upper), ['A /s']);
  t.deepEqual(
    [...layerItems(template(ETC), upper)].map(({ name }) => name),
    [],
  );
});

/** The layer as a tar, every file filled with as many x as it has bytes. */
function tarOf(items: LayerItem[]): Buffer {
  const blocks = items.flatMap((item) => [
    tarHeaders(item),
    Buffer.alloc(item.size, 'x'),
    tarPadding(item.size),
  ]);
  return Buffer.concat([...blocks, tarEnd()]);
}

/** The names of a tree, directories with a slash, files with their size. */
function namesOf(tree: TreeNode, path = ''): string[] {
  const found: string[] = [];
  for (const [name, child] of [...tree.children!].sort(([a], [b]) => (a < b ? -1 : 1))) {
    if (child.children === undefined) found.push(`${path}${name} ${child.inode.size}`);
    else found.push(`${path}${name}/`, ...namesOf(child, `${path}${name}/`));
  }
  return found;
}

test('the layer laid over the image is the tree that the container sees', async (t) => {
  const upper = upperOf(
    gone('etc'),
    dir('conf', [file('a', 9), gone('b')], { redirect: '/etc' }),
    dir('bin', [file('n'.repeat(200), 600)], { opaque: true }),
    node('null', S_IF.char, 0, { mode: 0o666 }),
  );
  upper.children!.get('null')!.rdev = 0x103;
  const lower = imageTree(ETC);
  const items = [...layerItems(template(ETC), upper)];
  const tar = new TarReader(new ByteReader(Readable.from([tarOf(items)])));
  const layer = new LayerTree(lower, 1, 'layer');
  for (let entry = await tar.next(); entry !== undefined; entry = await tar.next()) {
    layer.add(entry);
    for await (const _ of tar.body());
  }
  t.deepEqual(namesOf(overlay(lower, layer.root, 1)), [
    'bin/',
    `bin/${'n'.repeat(200)} 600`,
    ...['conf/', 'conf/a 9', 'conf/sub/', 'conf/sub/deep 4', 'conf/sub/link 0', 'null 0'],
  ]);
});
