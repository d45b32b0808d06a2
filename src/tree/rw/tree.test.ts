// Each operation of the writable tree, by direct calls; what upper/ holds afterwards; and that a new
// start on the same upper/ shows the same.
import {
  closeSync,
  existsSync,
  constants as flags,
  lstatSync,
  readdirSync,
  readSync,
  writeSync,
} from 'node:fs';
import { constants } from 'node:os';
import { join } from 'node:path';
import ava, { type ExecutionContext } from 'ava';
import { Wait } from './operations.ts';
import { AS_ROOT, errnoOfCall, ME, ROOT_NODE, type Stage, stage, statOf } from './testing.ts';

const test = AS_ROOT ? ava : ava.skip;
const { O_RDONLY, O_RDWR, O_TRUNC, O_WRONLY } = flags;

function image(t: ExecutionContext): Stage {
  const linked = { data: 'linked content', mode: 0o600 };
  return stage(t, {
    etc: {
      mode: 0o750,
      uid: 5,
      gid: 6,
      mtimeSec: 1000,
      mtimeNsec: 77,
      entries: {
        passwd: { data: 'root:x:0:0', mode: 0o640, uid: 1, gid: 2, mtimeSec: 1234, mtimeNsec: 5 },
        empty: { data: '' },
        link: { type: 'symlink', target: 'passwd', mode: 0o777 },
        a: linked,
      },
    },
    lib: { entries: { b: linked, sub: { entries: { deep: { data: 'deep' } } } } },
    void: { entries: {} },
    fifo: { type: 'fifo' },
    null: { type: 'char', major: 1, minor: 3 },
  });
}

const fails = async (
  t: ExecutionContext,
  code: keyof typeof constants.errno,
  operation: () => unknown,
) => t.is(await errnoOfCall(operation), constants.errno[code], code);

test('what nobody has touched is the image, and stays native', (t) => {
  const s = image(t);
  t.deepEqual(s.names(''), ['etc', 'fifo', 'lib', 'null', 'void']);
  t.is(s.read('etc/passwd').toString(), 'root:x:0:0');
  t.is(s.stat('lib/b').ino, s.stat('etc/a').ino);
  t.is(s.stat('').nlink, 5);
  t.deepEqual([...s.host.thawed], [ROOT_NODE]);
  t.deepEqual(readdirSync(s.upper), []);
  t.is(s.tree.lookup(ROOT_NODE, 'none'), undefined);
});

test('a first write promotes: attributes stay, parents come along with their times', async (t) => {
  const s = image(t);
  const before = s.stat('etc/passwd');
  const parent = s.stat('etc');
  await s.write('etc/passwd', 'ROOT');
  t.is(s.read('etc/passwd').toString(), 'ROOT:x:0:0');
  const after = s.stat('etc/passwd');
  const { mtimeSec, mtimeNsec, ...same } = before;
  t.like(after, same);
  t.true(after.mtimeSec > mtimeSec + mtimeNsec);
  t.deepEqual(s.stat('etc'), { ...parent, size: s.stat('etc').size });
  t.true(s.host.thawed.has(before.node));
  t.true(s.host.thawed.has(parent.node));
  t.deepEqual(readdirSync(s.work), []);
  s.reopen();
  t.is(s.read('etc/passwd').toString(), 'ROOT:x:0:0');
  t.deepEqual(s.stat('etc/passwd'), after);
});

test('a change of attributes promotes with the content', async (t) => {
  const s = image(t);
  const node = s.node('etc/passwd');
  await s.go((tree) => tree.setattr(node, { mode: 0o4755, mtime: { sec: -3, nsec: 9 } }));
  t.like(s.stat('etc/passwd'), { mode: 0o104755, uid: 1, size: 10, mtimeSec: -3, mtimeNsec: 9 });
  await s.go((tree) => tree.setattr(node, { uid: 7 }));
  t.like(s.stat('etc/passwd'), { mode: 0o100755, uid: 7, gid: 2 });
  t.is(s.read('etc/passwd').toString(), 'root:x:0:0');
  await s.go((tree) => tree.setattr(s.node('etc/passwd'), { size: 4 }));
  t.is(s.read('etc/passwd').toString(), 'root');
});

test('a promotion waits for the content, O_TRUNC does not', async (t) => {
  const s = image(t);
  const node = s.node('etc/passwd');
  const content = s.image.toc.content(node - 1);
  s.missing.add(content);
  const error = t.throws(() => s.tree.open(node, O_WRONLY, false), { instanceOf: Wait });
  t.is(error?.content, content);
  t.false(existsSync(join(s.upper, 'etc/passwd')));
  const opened = await s.go((tree) => tree.open(node, O_WRONLY | O_TRUNC, false));
  if (opened.kind === 'upper') closeSync(opened.fd);
  t.like(s.stat('etc/passwd'), { size: 0, mode: 0o100640, ino: node });
});

test('a hard link of the image is promoted under all its names', async (t) => {
  const s = image(t);
  const { ino } = s.stat('etc/a');
  await s.write('lib/b', 'LINKED');
  t.is(s.read('etc/a').toString(), 'LINKED content');
  t.like(s.stat('etc/a'), { ino, nlink: 2 });
  const inodes = ['etc/a', 'lib/b'].map((path) => lstatSync(join(s.upper, path)).ino);
  t.is(inodes[0], inodes[1]);
  s.reopen();
  t.deepEqual(s.stat('etc/a'), s.stat('lib/b'));
  t.like(s.stat('etc/a'), { ino, nlink: 2 });
});

test('a name of a hard link goes: the others know', (t) => {
  const s = image(t);
  s.unlink('etc/a');
  t.is(s.find('etc/a'), undefined);
  t.is(s.stat('lib/b').nlink, 1);
  t.true(s.host.thawed.has(s.node('lib')));
  s.reopen();
  t.is(s.stat('lib/b').nlink, 1);
  t.true(s.host.thawed.has(s.node('lib')));
  s.unlink('lib/b');
  t.is(s.find('lib/b'), undefined);
});

test('names of the image are covered by whiteouts, and can come again', (t) => {
  const s = image(t);
  s.unlink('etc/passwd');
  t.true(lstatSync(join(s.upper, 'etc/passwd')).isCharacterDevice());
  t.deepEqual(s.names('etc'), ['a', 'empty', 'link']);
  s.create('etc/passwd', 'new');
  t.is(s.read('etc/passwd').toString(), 'new');
  t.true(s.stat('etc/passwd').ino > 2 ** 32);
  t.deepEqual(s.names('etc'), ['a', 'empty', 'link', 'passwd']);
  s.reopen();
  t.is(s.read('etc/passwd').toString(), 'new');
  s.unlink('etc/passwd');
  t.is(s.find('etc/passwd'), undefined);
  s.reopen();
  t.is(s.find('etc/passwd'), undefined);
});

test('directories: made, removed, made again without what the image had', async (t) => {
  const s = image(t);
  t.is(s.mkdir('new', 0o777).mode, 0o040755);
  t.is(s.stat('').nlink, 6);
  await fails(t, 'ENOTEMPTY', () => s.rmdir('lib'));
  await fails(t, 'ENOTEMPTY', () => s.rmdir('lib/sub'));
  s.unlink('lib/sub/deep');
  s.rmdir('lib/sub');
  t.is(s.stat('lib').nlink, 2);
  s.mkdir('lib/sub');
  t.deepEqual(s.names('lib/sub'), []);
  t.is(s.stat('lib').nlink, 3);
  s.reopen();
  t.deepEqual(s.names('lib/sub'), []);
  t.deepEqual([s.stat('lib').nlink, s.stat('').nlink], [3, 6]);
  s.rmdir('lib/sub');
  s.rmdir('void');
  t.is(s.find('void'), undefined);
  t.deepEqual(readdirSync(s.work), []);
  s.reopen();
  t.is(s.find('void'), undefined);
});

test('errors that programs rely on', async (t) => {
  const s = image(t);
  await fails(t, 'EEXIST', () => s.mkdir('etc'));
  await fails(t, 'EEXIST', () => s.create('etc/passwd'));
  await fails(t, 'ENOENT', () => s.unlink('etc/none'));
  await fails(t, 'EISDIR', () => s.unlink('etc'));
  await fails(t, 'ENOTDIR', () => s.rmdir('etc/passwd'));
  await fails(t, 'ENAMETOOLONG', () => s.create('x'.repeat(256)));
  await fails(t, 'ENAMETOOLONG', () => s.find('x'.repeat(256)));
  await fails(t, 'EPERM', () => s.tree.mknod(ROOT_NODE, 'w', 0o020644, 0, ME));
  await fails(t, 'EINVAL', () => s.rename('etc/passwd', 'etc/b', 4));
  await fails(t, 'EINVAL', () => s.rename('lib', 'lib/sub/lib'));
  await fails(t, 'EEXIST', () => s.rename('etc/passwd', 'etc/a', 1));
  await fails(t, 'ENOTEMPTY', () => s.rename('void', 'lib'));
  await fails(t, 'EISDIR', () => s.rename('etc/passwd', 'void'));
  await fails(t, 'ENOTDIR', () => s.rename('void', 'etc/passwd'));
  await fails(t, 'ENOENT', () => s.rename('none', 'n'));
  await fails(t, 'EPERM', () => s.link('etc', 'l'));
  await fails(t, 'EINVAL', () => s.tree.readlink(s.node('etc/passwd')));
  t.deepEqual(readdirSync(s.upper).sort(), []);
});

test('files are renamed: within, across, over others, and back', async (t) => {
  const s = image(t);
  const { ino, node } = s.stat('etc/passwd');
  await s.rename('etc/passwd', 'lib/p');
  t.is(s.find('etc/passwd'), undefined);
  t.like(s.stat('lib/p'), { ino, node, mode: 0o100640, mtimeSec: 1234 });
  await s.rename('lib/p', 'etc/a');
  t.is(s.stat('lib/b').nlink, 1);
  t.is(s.read('etc/a').toString(), 'root:x:0:0');
  await s.rename('etc/a', 'etc/passwd');
  t.deepEqual(s.names('etc'), ['empty', 'link', 'passwd']);
  s.reopen();
  t.deepEqual(s.names('etc'), ['empty', 'link', 'passwd']);
  t.like(s.stat('etc/passwd'), { ino, node });
});

test('a directory of the image is renamed with all that it shows', async (t) => {
  const s = image(t);
  const { ino } = s.stat('lib/sub');
  await s.rename('lib', 'void/lib2');
  t.is(s.find('lib'), undefined);
  t.is(s.read('void/lib2/sub/deep').toString(), 'deep');
  t.is(s.stat('void/lib2/sub').ino, ino);
  t.is(statOf(s.tree.parentOf(s.node('void/lib2'))).node, s.node('void'));
  t.deepEqual([s.stat('').nlink, s.stat('void').nlink], [4, 3]);
  s.create('void/lib2/sub/new', 'n');
  s.mkdir('lib');
  t.deepEqual(s.names('lib'), []);
  s.reopen();
  t.deepEqual(s.names('lib'), []);
  t.is(s.read('void/lib2/sub/deep').toString(), 'deep');
  t.is(s.read('void/lib2/sub/new').toString(), 'n');
  t.is(s.stat('void/lib2/sub').ino, ino);
  s.rmdir('lib');
  await s.rename('void/lib2', 'lib');
  t.deepEqual(s.names('lib/sub'), ['deep', 'new']);
  s.reopen();
  t.deepEqual(s.names('lib/sub'), ['deep', 'new']);
  await s.write('lib/b', 'x');
  t.is(s.read('etc/a').toString(), 'xinked content');
});

test('a directory is renamed over an emptied one', async (t) => {
  const s = image(t);
  for (const name of ['a', 'empty', 'link', 'passwd']) s.unlink(`etc/${name}`);
  s.mkdir('fresh');
  s.create('fresh/file', 'f');
  await s.rename('fresh', 'etc');
  t.deepEqual(s.names('etc'), ['file']);
  await s.rename('lib', 'etc2');
  await s.rename('etc2', 'void');
  s.reopen();
  t.deepEqual(s.names('etc'), ['file']);
  t.deepEqual(s.names('void'), ['b', 'sub']);
  t.deepEqual(readdirSync(s.work), []);
});

test('names change places', async (t) => {
  const s = image(t);
  s.mkdir('new');
  const inos = [s.stat('lib').ino, s.stat('new').ino, s.stat('etc/passwd').ino];
  await s.rename('lib', 'new', 2);
  await s.rename('etc/passwd', 'new/sub', 2);
  t.is(s.read('new/sub').toString(), 'root:x:0:0');
  t.deepEqual(s.names('etc/passwd'), ['deep']);
  t.deepEqual([s.stat('new').ino, s.stat('lib').ino, s.stat('new/sub').ino], inos);
  t.deepEqual([s.stat('new').nlink, s.stat('etc').nlink], [2, 3]);
  s.reopen();
  t.is(s.read('new/sub').toString(), 'root:x:0:0');
  t.deepEqual(s.names('lib'), []);
  t.deepEqual([s.stat('new').ino, s.stat('new/sub').ino], [inos[0], inos[2]]);
  t.deepEqual([s.stat('new').nlink, s.stat('etc').nlink], [2, 3]);
});

test('links: to files of the image, over whiteouts, to files without a name', async (t) => {
  const s = image(t);
  s.unlink('etc/empty');
  t.like(await s.link('etc/passwd', 'etc/empty'), { nlink: 2, ino: s.stat('etc/passwd').ino });
  await s.write('etc/empty', 'both');
  t.is(s.read('etc/passwd').toString(), 'both:x:0:0');
  const { entry, opened } = s.tree.tmpfile(s.node('lib'), O_RDWR, 0o600, ME);
  const { node } = entry;
  t.is(statOf(s.tree.getattr(node)).nlink, 0);
  writeSync(opened.fd, 'unnamed');
  t.like(statOf(s.tree.link(node, s.node('lib'), 'named')), { nlink: 1, node });
  closeSync(opened.fd);
  t.is(s.read('lib/named').toString(), 'unnamed');
  s.reopen();
  t.is(s.read('lib/named').toString(), 'unnamed');
  t.is(s.stat('etc/empty').nlink, 2);
});

test('a removed file lives until the kernel forgets it', async (t) => {
  const s = image(t);
  const { node } = s.create('etc/tmp', 'kept');
  s.unlink('etc/tmp');
  t.like(statOf(s.tree.getattr(node)), { nlink: 0, size: 4 });
  const opened = s.tree.open(node, O_RDWR, false);
  if (opened.kind !== 'upper') return t.fail('it is no file of the image');
  writeSync(opened.fd, 'KEPT');
  t.is(s.readNode(node).toString(), 'KEPT');
  s.tree.setattr(node, { mode: 0o600 });
  t.is(statOf(s.tree.getattr(node)).mode, 0o100600);
  closeSync(opened.fd);
  s.tree.forget(node, 1);
  await fails(t, 'ESTALE', () => s.tree.getattr(node));
});

test('a removed file of the image can still be read and changed by who has it open', async (t) => {
  const s = image(t);
  const node = s.node('etc/passwd');
  s.host.handles.set(node, 1);
  s.unlink('etc/passwd');
  t.is(s.tree.open(node, O_RDONLY, false).kind, 'template');
  t.like(statOf(s.tree.getattr(node)), { nlink: 0, size: 10 });
  await s.go((tree) => tree.setattr(node, { mode: 0o400 }));
  t.like(statOf(s.tree.getattr(node)), { nlink: 0, mode: 0o100400 });
  await fails(t, 'ESTALE', () => s.go((tree) => tree.open(node, O_WRONLY, false)));
  t.deepEqual(readdirSync(s.work), []);
});

test('a write while readers have the image open goes to a new node', async (t) => {
  const s = image(t);
  const { node, ino } = s.stat('etc/passwd');
  s.host.handles.set(node, 1);
  await s.go((tree) => tree.setattr(node, { mode: 0o666 }));
  t.is(s.tree.open(node, O_RDONLY, false).kind, 'template');
  await fails(t, 'ESTALE', () => s.go((tree) => tree.open(node, O_WRONLY, false)));
  t.deepEqual(s.host.invalidations.at(-1), { node: s.node('etc'), name: 'passwd' });
  const now = s.stat('etc/passwd');
  t.like(now, { ino, mode: 0o100666 });
  t.not(now.node, node);
  await s.write('etc/passwd', 'NEW!');
  t.is(s.read('etc/passwd').toString(), 'NEW!:x:0:0');
  const old = s.tree.getattr(node);
  t.is(old.attrValidMs, 0);
  t.like(statOf(old), { ino, size: 10 });
  await fails(t, 'ESTALE', () => s.go((tree) => tree.setattr(node, { size: 0 })));
});

test('listings neither repeat nor lose names while they change', (t) => {
  const s = image(t);
  for (const name of ['n1', 'n2', 'n3']) s.create(`etc/${name}`);
  const node = s.node('etc');
  const seen: string[] = [];
  let cookie = 0;
  for (let step = 0; step < 100; step++) {
    const [next] = s.tree.list(node, cookie);
    if (next === undefined) break;
    seen.push(next.name);
    cookie = next.cookie;
    if (next.name === 'a') {
      s.unlink('etc/a');
      s.create('etc/a');
      s.unlink('etc/empty');
    }
    if (next.name === 'n1') {
      s.unlink('etc/n1');
      s.unlink('etc/n2');
      s.create('etc/n4');
    }
  }
  t.deepEqual(seen, ['a', 'link', 'passwd', 'n1', 'n3', 'n4']);
});

test('names of 255 bytes and paths deeper than PATH_MAX', async (t) => {
  const s = image(t);
  const name = `${'\xff'.repeat(254)}y`;
  let parent = s.node('lib/sub');
  for (let depth = 0; depth < 40; depth++) parent = s.tree.mkdir(parent, name, 0o755, ME).node;
  const { opened } = s.tree.create(parent, 'deep', O_RDWR, 0o644, ME);
  writeSync(opened.fd, 'below');
  closeSync(opened.fd);
  await s.rename('lib', 'void/moved');
  s.reopen();
  let node = s.node('void/moved/sub');
  for (let depth = 0; depth < 40; depth++) node = s.tree.lookup(node, name)!.node;
  const file = s.tree.open(s.tree.lookup(node, 'deep')!.node, O_RDONLY, false);
  if (file.kind !== 'upper') return t.fail('not in upper/');
  const bytes = Buffer.alloc(5);
  readSync(file.fd, bytes);
  closeSync(file.fd);
  t.is(bytes.toString(), 'below');
});
