// A writable session against the kernel, with a toy for a tree: what becomes an upcall, how written
// files are opened, and what diverged nodes show.
import { execFileSync } from 'node:child_process';
import {
  chmod,
  lstat,
  mkdir,
  readdir,
  readFile,
  readlink,
  rmdir,
  stat,
  writeFile,
} from 'node:fs/promises';
import { join } from 'node:path';
import test from 'ava';
import { FIRST_OWN_NODE, IN, OPEN_AS } from '../../src/native/upcalls.ts';
import { sleep, until } from './fixture.ts';
import { Snake } from './snake.ts';
import { LARGE, type Seen, World } from './writable-world.ts';

const ENXIO = 6;
const ENODATA = 61;

for (const passthrough of [true, false]) {
  const how = passthrough ? 'passthrough' : 'no passthrough';

  test(`a new file is written, read, mapped, listed and removed (${how})`, async (t) => {
    const world = await World.make(t, { ready: true, passthrough });
    const file = `${world.root}/lib/new`;
    const snake = await Snake.start(world.fixture);
    t.is(await snake.ask(`keep('fd', os.open('${file}', os.O_RDWR | os.O_CREAT, 0o640))`), 'fd');
    const fd = "kept['fd']";
    t.is(await snake.ask(`os.pwrite(${fd}, b'x' * 3000000, 0)`), 3000000);
    t.is(await snake.ask(`os.pwrite(${fd}, b'hello', 100)`), 5);
    t.is(await snake.ask(`os.pread(${fd}, 7, 99)`), 'xhellox');
    t.is((await stat(file)).size, 3000000);
    t.is((await stat(file)).mode & 0o7777, 0o640);
    t.is(await snake.ask(`keep('map', mmap.mmap(${fd}, 8192))`), 'map');
    t.is(await snake.ask("kept['map'].seek(4096) or kept['map'].write(b'mapped')"), 6);
    t.is(await snake.ask("kept['map'].flush()"), null);
    t.is(await snake.ask(`os.pread(${fd}, 6, 4096)`), 'mapped');
    t.deepEqual((await readdir(`${world.root}/lib`)).sort(), ['large.so', 'new']);
    t.is((await stat(`${world.root}/lib/large.so`)).size, LARGE.length);
    const again = await readFile(file);
    t.is(again.length, 3000000);
    t.is(again.toString('latin1', 4096, 4102), 'mapped');
    const stats = await world.fixture.stats();
    t.is(stats.passthroughOpens, passthrough ? 2 : 0);
    t.is(await world.handles('lib/new'), 1);
    t.is(await snake.ask(`os.unlink('${file}')`), null);
    await t.throwsAsync(stat(file), { code: 'ENOENT' });
    t.is(await snake.ask(`os.pread(${fd}, 5, 100)`), 'hello');
    t.is(await snake.ask(`os.fstat(${fd}).st_nlink`), 0);
    const node = Number(await snake.ask(`os.fstat(${fd}).st_ino`));
    t.is(await snake.ask(`kept['map'].close() or os.close(${fd})`), null);
    await until('the RELEASE', async () => (await world.toy('openHandles', node)) === 0);
    await until('the FORGET', async () => (await world.seen()).some(({ op }) => op === 'Forget'));
    t.is(await world.toy('undelivered'), 0);
  });

  test(`operations on handles act on the file (${how})`, async (t) => {
    const world = await World.make(t, { ready: true, passthrough });
    const file = `${world.root}/new`;
    const snake = await Snake.start(world.fixture);
    await snake.ask(`keep('fd', os.open('${file}', os.O_RDWR | os.O_CREAT))`);
    const fd = "kept['fd']";
    await snake.ask(`os.pwrite(${fd}, b'y' * 4096, 1 << 20)`);
    t.is(await snake.ask(`os.lseek(${fd}, 0, os.SEEK_DATA)`), 1 << 20);
    t.is(await snake.ask(`os.lseek(${fd}, 1 << 20, os.SEEK_HOLE)`), (1 << 20) + 4096);
    t.deepEqual(await snake.ask(`os.lseek(${fd}, 1 << 21, os.SEEK_DATA)`), { errno: ENXIO });
    t.is(await snake.ask(`fallocate(${fd}, 0, 0, 3 << 20)`), null);
    t.is((await stat(file)).size, 3 << 20);
    t.is(await snake.ask(`fallocate(${fd}, 3, 1 << 20, 4096)`), null);
    t.is(await snake.ask(`os.pread(${fd}, 3, 1 << 20)`), '\0\0\0');
    t.is(await snake.ask(`os.fsync(${fd})`), null);
    t.is(await snake.ask(`os.fdatasync(${fd})`), null);
    // From a file of the image, and from itself.
    await snake.ask(`keep('from', os.open('${world.root}/small', os.O_RDONLY))`);
    t.is(await snake.ask(`os.copy_file_range(kept['from'], ${fd}, 7, 6, 0)`), 7);
    t.is(await snake.ask(`os.pread(${fd}, 7, 0)`), 'content');
    t.is(await snake.ask(`os.copy_file_range(${fd}, ${fd}, 7, 0, 100)`), 7);
    t.is(await snake.ask(`os.pread(${fd}, 7, 100)`), 'content');
    t.is(await snake.ask("os.lseek(kept['from'], 0, os.SEEK_HOLE)"), 13);
    t.is(await snake.ask("os.fsync(kept['from'])"), null);
    // Appending, and truncating by the open.
    await snake.ask(`keep('end', os.open('${file}', os.O_WRONLY | os.O_APPEND))`);
    t.is(await snake.ask("os.write(kept['end'], b'end')"), 3);
    t.is((await stat(file)).size, (3 << 20) + 3);
    t.is(await snake.ask(`os.pread(${fd}, 9, 3 << 20)`), 'end');
    await writeFile(file, 'short');
    t.is(await snake.ask(`os.pread(${fd}, 9, 0)`), 'short');
    t.is(await snake.ask(`os.fstat(${fd}).st_size`), 5);
  });

  test(`a write by another user clears setuid, and its file can be mapped beside others (${how})`, async (t) => {
    const world = await World.make(t, { ready: true, passthrough });
    const file = `${world.root}/program`;
    await writeFile(file, 'before');
    await chmod(file, 0o6777);
    t.is((await stat(file)).mode & 0o7777, 0o6777);
    // Somebody has it open for reading already, with a shared mapping.
    const reader = await Snake.start(world.fixture);
    await reader.ask(`keep('fd', os.open('${file}', os.O_RDONLY))`);
    await reader.ask("keep('map', mmap.mmap(kept['fd'], 6, prot=mmap.PROT_READ))");
    await world.toy('openAs', OPEN_AS.Direct);
    const writer = await Snake.start(world.fixture, 1234);
    t.is(await writer.ask(`keep('fd', os.open('${file}', os.O_RDWR))`), 'fd');
    t.is(await writer.ask("keep('map', mmap.mmap(kept['fd'], 6))"), 'map');
    t.is((await stat(file)).mode & 0o7777, 0o6777);
    t.is(await writer.ask("os.pwrite(kept['fd'], b'AFTER', 0)"), 5);
    t.is(await reader.ask("os.pread(kept['fd'], 6, 0)"), 'AFTERe');
    t.is(await reader.ask("kept['map'][0:6]"), 'AFTERe');
    t.is(await writer.ask("kept['map'][0:6]"), 'AFTERe');
    await until('the kernel knows', async () => ((await stat(file)).mode & 0o7777) === 0o777);
    // Root keeps them.
    await chmod(file, 0o6777);
    t.is(await reader.ask(`os.write(os.open('${file}', os.O_WRONLY), b'R')`), 1);
    t.is((await stat(file)).mode & 0o7777, 0o6777);
    t.is(await writer.ask("fallocate(kept['fd'], 0, 0, 10)"), null);
    await until('the kernel knows', async () => ((await stat(file)).mode & 0o7777) === 0o777);
  });

  test(`who has a file of the image open goes on with it when it is written (${how})`, async (t) => {
    const world = await World.make(t, { ready: true, passthrough });
    for (const path of ['small', 'empty']) {
      const file = `${world.root}/${path}`;
      const before = await readFile(file, 'utf8');
      const reader = await Snake.start(world.fixture);
      await reader.ask(`keep('fd', os.open('${file}', os.O_RDONLY))`);
      const ino = (await stat(file)).ino;
      const old = await world.node(path);
      t.is(await world.handles(path), 1);
      await writeFile(file, 'a new content, longer');
      t.not(await world.node(path), old);
      t.is(await readFile(file, 'utf8'), 'a new content, longer');
      t.is((await stat(file)).ino, ino);
      t.is(await reader.ask("os.pread(kept['fd'], 100, 0)"), before);
      t.is(await reader.ask("os.close(kept['fd'])"), null);
      await until('the RELEASE', async () => (await world.toy('openHandles', old)) === 0);
    }
    // Nobody has it open: the node stays.
    const other = await world.node('other');
    await readFile(`${world.root}/other`);
    await until('the RELEASE', async () => (await world.handles('other')) === 0);
    await writeFile(`${world.root}/other`, 'X', { flag: 'r+' });
    t.is(await world.node('other'), other);
    t.is(await readFile(`${world.root}/other`, 'utf8'), 'Xther content');
  });

  test(`an adopted file is opened and looked at without the tree (${how})`, async (t) => {
    const world = await World.make(t, { ready: true, passthrough });
    const file = `${world.root}/new`;
    await writeFile(file, 'one');
    const node = await world.node('new');
    for (const writable of [false, true]) {
      await world.toy('adopt', node, writable);
      await world.seen();
      t.is(await readFile(file, 'utf8'), 'one');
      await world.toy('invalidate', node, '');
      t.is((await stat(file)).size, 3);
      const snake = await Snake.start(world.fixture);
      await snake.ask(`keep('fd', os.open('${file}', os.O_RDWR))`);
      t.is(await snake.ask("os.pwrite(kept['fd'], b'two', 0)"), 3);
      t.is(await readFile(file, 'utf8'), 'two');
      t.deepEqual(
        (await world.ops('new')).filter((op) => op !== 'Getxattr'),
        writable ? [] : ['Open'],
      );
      await writeFile(file, 'one');
      t.true((await world.ops('new')).includes('Open'), 'O_TRUNC is the tree’s');
      await world.toy('disown', node);
      // Who has it open is answered without the tree.
      await snake.ask("os.close(kept['fd'])");
      await until('the RELEASE', async () => (await world.handles('new')) === 0);
      t.is(await readFile(file, 'utf8'), 'one');
      const ops = await world.ops('new');
      t.true(ops.includes('Open') && ops.includes('Getattr'), `${ops}`);
    }
  });
}

test('requests come with all that the tree needs to know', async (t) => {
  const world = await World.make(t, { ready: true });
  const snake = await Snake.start(world.fixture, 77);
  const { root } = world;
  const [lib, small] = [await world.node('lib'), await world.node('small')];
  const script = `import os,ctypes
libc = ctypes.CDLL(None)
os.umask(0o27)
def tell(f, *a, **k):
    try: f(*a, **k)
    except OSError as e: assert e.errno == 95, (f, a, e)
r = b'${root}'
tell(os.symlink, b'to/\\xff', r + b'/l')
tell(os.mknod, r + b'/m', 0o20666, os.makedev(0x123, 0x45678))
tell(os.mkdir, r + b'/d', 0o1751)
tell(os.rmdir, r + b'/lib')
tell(os.rename, r + b'/small', r + b'/lib/\\xe4')
assert libc.renameat2(-100, r + b'/small', -100, r + b'/other', 2) == -1
tell(os.link, r + b'/small', r + b'/lib/hard')
tell(os.utime, r + b'/small', ns=(-5_000_000_001, 7))
tell(os.chown, r + b'/small', 5, 4294967294)
tell(os.truncate, r + b'/small', 1 << 40)
tell(os.open, r + b'/lib', os.O_TMPFILE | os.O_RDWR, 0o600)
os.setxattr(r + b'/other', b'user.a', b'v\\xe9', os.XATTR_CREATE)
os.removexattr(r + b'/other', b'user.a')
os.fsync(os.open(r + b'/lib', os.O_RDONLY | os.O_DIRECTORY))
assert os.statvfs(r).f_bavail == 40
`;
  await world.seen();
  await world.toy('fail', 'Setattr', 95);
  const run = world.fixture.start('python3', '-c', script);
  t.is((await run.end).code, 0, run.err);
  const seen = (await world.seen()).filter(({ op }) => !['Lookup', 'Getxattr'].includes(op));
  const args = (op: string, nth = 0) => seen.filter((one) => one.op === op)[nth]!;
  const own = (one: Seen, count: number) => one.numbers.slice(6, 6 + count);
  t.deepEqual([args('Symlink').name, args('Symlink').value], ['l', 'to/\xff']);
  // new_encode_dev: major 0x123, minor 0x45678.
  t.deepEqual(own(args('Mknod'), 2), [0o20666, 0x45612378]);
  t.is(args('Mknod').numbers[5], 0o27);
  t.deepEqual([...own(args('Mkdir'), 1), args('Mkdir').numbers[5]], [0o1751, 0o27]);
  t.deepEqual([args('Rmdir').node, args('Rmdir').name], [1, 'lib']);
  t.deepEqual(own(args('Rename'), 2), [lib, 0]);
  t.deepEqual(own(args('Rename', 1), 2), [1, 2]);
  t.deepEqual(
    [args('Link').node, args('Link').name, ...own(args('Link'), 1)],
    [lib, 'hard', small],
  );
  t.deepEqual(args('Setattr').numbers.slice(11, 15), [-6, 999_999_999, 0, 7]);
  t.is(args('Setattr').numbers[6]! & 0x30, 0x30);
  t.deepEqual(args('Setattr', 1).numbers.slice(8, 10), [5, 4294967294]);
  t.is(args('Setattr', 2).numbers[10], 2 ** 40);
  t.is(args('Tmpfile').numbers[6]! & 0o7777, 0o600);
  t.deepEqual(
    [args('Setxattr').name, args('Setxattr').value, args('Setxattr').numbers[6]],
    ['user.a', 'v\xe9', 1],
  );
  t.is(args('Removexattr').name, 'user.a');
  t.is(args('Fsyncdir').node, lib);
  t.true(seen.every(({ numbers }) => numbers[2] === 0 && numbers[3] === 0 && numbers[4]! > 1));
  t.deepEqual(await snake.ask(`os.mkdir('${root}/lib/other')`), { errno: 13 });
});

test('a diverged node shows what the tree says, whoever lists its directory', async (t) => {
  const world = await World.make(t, { ready: true });
  t.is((await lstat(`${world.root}/small`)).mode & 0o777, 0o644);
  await chmod(`${world.root}/small`, 0o600);
  t.is((await lstat(`${world.root}/small`)).mode & 0o777, 0o600);
  // The listing is the template's still: it must not bring the old attributes back.
  await world.toy('invalidate', 1, 'small');
  await readdir(world.root);
  t.is((await lstat(`${world.root}/small`)).mode & 0o777, 0o600);
  const { ino } = await lstat(`${world.root}/small`);
  t.is(ino, await world.node('small'));
  const snake = await Snake.start(world.fixture);
  t.deepEqual(await snake.ask(`os.listxattr('${world.root}/small')`), ['user.toy']);
  t.is(await snake.ask(`os.getxattr('${world.root}/small', 'user.toy')`), 'toy value');
  // What has not diverged is not the tree's affair.
  await world.seen();
  t.is(await readFile(`${world.root}/other`, 'utf8'), 'other content');
  t.deepEqual(await snake.ask(`os.listxattr('${world.root}/other')`), []);
  t.deepEqual(await world.ops('other'), []);
});

test('a file that is open is looked at without the tree', async (t) => {
  const world = await World.make(t, { ready: true });
  const file = `${world.root}/new`;
  const snake = await Snake.start(world.fixture);
  await snake.ask(`keep('fd', os.open('${file}', os.O_RDWR | os.O_CREAT, 0o640))`);
  const fd = "kept['fd']";
  const node = await world.node('new');
  await world.seen();
  t.is(await snake.ask(`os.write(${fd}, b'four')`), 4);
  t.is(await snake.ask(`os.fstat(${fd}).st_ino`), node);
  t.is(await snake.ask(`os.fstat(${fd}).st_size`), 4);
  // Nothing is kept: it may be mapped.
  await world.toy('chmod', node, 0o4604);
  t.is((await stat(file)).mode & 0o7777, 0o4604);
  for (const name of ['security.capability', 'user.note'])
    t.deepEqual(await snake.ask(`os.getxattr(${fd}, '${name}')`), { errno: ENODATA });
  await world.toy('setfattr', node, 'user.note', 'as it is');
  t.is(await snake.ask(`os.getxattr(${fd}, 'user.note')`), 'as it is');
  t.is(await snake.ask(`libc.fgetxattr(${fd}, b'user.note', None, 0)`), 8);
  t.is(await snake.ask(`libc.fgetxattr(${fd}, b'user.note', b'____', 4)`), -1);
  t.deepEqual(await world.ops('new'), []);
  // The tree's own names are for the tree to say.
  t.deepEqual(await snake.ask(`os.getxattr(${fd}, 'trusted.overlay.note')`), { errno: ENODATA });
  t.deepEqual(await world.ops('new'), ['Getxattr']);
  // Of an open that brings no number it has to be asked once.
  await snake.ask(`os.close(${fd})`);
  await until('the RELEASE', async () => (await world.handles('new')) === 0);
  await snake.ask(`keep('fd', os.open('${file}', os.O_RDWR))`);
  await world.toy('invalidate', node, '');
  for (let i = 0; i < 3; i++) {
    await snake.ask(`os.write(${fd}, b'more')`);
    t.is(await snake.ask(`os.fstat(${fd}).st_size`), 4 * (i + 1));
  }
  const ops = await world.ops('new');
  t.deepEqual(ops.slice(ops.indexOf('Open')), ['Open', 'Getattr']);
  // Without a name it is the same file.
  await snake.ask(`os.unlink('${file}')`);
  t.is(await snake.ask(`os.fstat(${fd}).st_nlink`), 0);
});

test('what the kernel forgets is told to the tree, several at once, and none is lost', async (t) => {
  const world = await World.make(t, { ready: true });
  const script = `
import os, sys
fds = []
for i in range(200):
    name = f'{sys.argv[1]}/f{i}'
    fds.append(os.open(name, os.O_WRONLY | os.O_CREAT))
    os.unlink(name)
print('open', flush=True)
sys.stdin.readline()
for fd in fds: os.close(fd)
`;
  await world.seen();
  const run = world.fixture.start('python3', '-c', script, world.root);
  await run.says('open');
  // The tree has no time for each of them.
  const wake = await world.sleep();
  run.child.stdin!.write('go\n');
  t.is((await run.end).code, 0, run.err);
  await wake();
  const forgotten = new Map<number, number>();
  let messages = 0;
  await until('every FORGET', async () => {
    for (const { op, numbers } of await world.seen()) {
      if (op !== 'Forget') continue;
      messages++;
      for (let slot = 6; (numbers[slot] ?? 0) !== 0; slot += 2)
        forgotten.set(numbers[slot]!, (forgotten.get(numbers[slot]!) ?? 0) + numbers[slot + 1]!);
    }
    return forgotten.size === 200;
  });
  t.true([...forgotten.values()].every((lookups) => lookups === 1));
  t.true(messages < 200, `${messages} messages`);
  t.deepEqual(await world.toy('files'), []);
});

test('a file of the image has no time of birth, also when it is adopted; a new one has', async (t) => {
  const world = await World.make(t, { ready: true });
  const born = async (name: string) => {
    // What the kernel has once heard of a birth it keeps, unless it is to ask for more.
    await world.toy('invalidate', await world.node(name), '');
    const run = world.fixture.start('stat', '-c', '%W %z', `${world.root}/${name}`);
    t.is((await run.end).code, 0, run.err);
    return Number.parseInt(run.out, 10);
  };
  for (const name of ['small', 'new']) await writeFile(`${world.root}/${name}`, 'changed');
  t.is(await born('small'), 0);
  for (const name of ['small', 'new']) await world.toy('adopt', await world.node(name), false);
  await world.seen();
  t.is(await born('small'), 0);
  t.true((await born('new')) > 1_500_000_000);
  t.deepEqual(await world.ops('small'), []);
});

test('an adopted file that is written through a mapping shows it, whoever has opened it and while who holds it', async (t) => {
  const world = await World.make(t, { ready: true });
  const file = `${world.root}/new`;
  await writeFile(file, 'one');
  const node = await world.node('new');
  await world.toy('adopt', node, true);
  // The kernel keeps what it is told now.
  await stat(file);
  await world.seen();
  const changed = async () => (await stat(file, { bigint: true })).mtimeNs;
  let last = await changed();
  const store = async (snake: Snake, what: string) => {
    // Several times: the kernel forgets once by itself, when a file is mapped, and when it is closed. The
    // file system's clock may be coarse: again, until it has gone on.
    for (let i = 0; i < 3; i++)
      await until(what, async () => {
        t.is(await snake.ask("kept['map'].__setitem__(0, 65) or kept['map'].flush()"), null);
        const now = await changed();
        const later = now > last;
        last = now;
        return later;
      });
  };
  const snake = await Snake.start(world.fixture);
  await snake.ask(`keep('fd', os.open('${file}', os.O_RDWR))`);
  await snake.ask("keep('map', mmap.mmap(kept['fd'], 3))");
  await store(snake, 'a store that is seen');
  // The mapping alone: the kernel tells of the close, and of nothing after it.
  const links =
    "((f, os.path.realpath('/proc/self/fd/' + f)) for f in os.listdir('/proc/self/fd'))";
  await snake.ask(`[os.close(int(f)) for f, path in list(${links}) if path == '${file}']`);
  await until('the RELEASE', async () => (await world.handles('new')) === 0);
  await store(snake, 'a store after the close that is seen');
  t.is(await readFile(file, 'utf8'), 'Ane');
  // An open of the tree's that makes a mapping possible, of an adopted file.
  await world.toy('adopt', node, false);
  await stat(file);
  const other = await Snake.start(world.fixture);
  await other.ask(`keep('fd', os.open('${file}', os.O_RDWR))`);
  await other.ask("keep('map', mmap.mmap(kept['fd'], 3))");
  await store(other, 'a store by a handle of the tree that is seen');
  t.deepEqual(await world.ops('new'), ['Open'], 'of the last alone the tree has heard');
});

test('names that are not there are known without the tree, in a directory that it has lent', async (t) => {
  const world = await World.make(t, { ready: true });
  const upper = `${world.fixture.dir}/lent`;
  await mkdir(upper);
  await writeFile(`${upper}/there`, '');
  const asked = async (directory: string, name: string) => {
    await world.seen();
    await stat(`${world.root}/${directory}${name}`).catch(() => undefined);
    const seen = (await world.seen()).filter((one) => one.op === 'Lookup' && one.name === name);
    return seen.map((one) => one.name);
  };
  // Thawed, but not lent: all are the tree's.
  await world.toy('thaw', 1);
  t.deepEqual(await asked('', 'none'), ['none']);
  await world.toy('lend', 1, upper, 0);
  t.deepEqual(await asked('', 'none-2'), []);
  t.deepEqual(await asked('', 'there'), ['there'], 'the layer has it');
  t.deepEqual(await asked('', 'other'), ['other'], 'the template has it');
  t.deepEqual(await asked('', 'x'.repeat(256)), [], 'the kernel refuses it');
  // Nothing is merged into it: what the template has is covered.
  await world.toy('thaw', await world.node('lib'));
  await world.toy('lend', await world.node('lib'), upper, -1);
  t.deepEqual(await asked('lib/', 'large.so'), []);
  // A name that was not there is there when it has been made, and gone when it is recalled.
  await writeFile(`${world.root}/none-2`, 'made');
  t.is(await readFile(`${world.root}/none-2`, 'utf8'), 'made');
  await world.toy('recall', 1);
  t.deepEqual(await asked('', 'none-3'), ['none-3']);
});

/** Node ids that the toy does not give out itself. */
const LEASED = FIRST_OWN_NODE + 1_000_000;

/**
 * Makes files in the root, which has been lent, until so many were made without the tree; the name of the last.
 * One that comes while the tree is at something goes to the tree, on a busy machine most of them; the toy's own
 * files are not in the layer.
 */
async function makeInLayer(
  world: World,
  upper: string,
  count: number,
  make: (path: string) => Promise<unknown> = (path) => writeFile(path, ''),
): Promise<string> {
  const most = count * 50;
  for (let tries = 1; tries <= most; tries++) {
    const name = `made-${tries}`;
    await make(`${world.root}/${name}`);
    const there = await readdir(upper);
    if (there.length === count && there.includes(name)) return name;
  }
  throw new Error(`of ${most} files fewer than ${count} were made without the tree`);
}

test('files that cannot be made use up no node ids of the lease', async (t) => {
  const world = await World.make(t, { ready: true });
  const [gone, upper] = [`${world.fixture.dir}/gone`, `${world.fixture.dir}/lent`];
  for (const path of [gone, upper]) await mkdir(path);
  await world.toy('thaw', 1);
  await world.toy('lease', LEASED, 3);
  await world.toy('lend', 1, gone, 0, 1);
  // Nothing can be made in it, and the tree is asked.
  await rmdir(gone);
  for (let i = 0; i < 4; i++) await writeFile(`${world.root}/failing-${i}`, '');
  await world.toy('lend', 1, upper, 0, 1);
  await world.seen();
  await makeInLayer(world, upper, 3);
  for (let i = 0; i < 4; i++) await writeFile(`${world.root}/more-${i}`, '');
  t.is((await readdir(upper)).length, 3, 'without a node id there is none');
  // The tree hears of them before its next request.
  await stat(`${world.root}/small`);
  const made = (await world.seen()).filter(({ op }) => op === 'Created');
  t.deepEqual(
    made.map(({ numbers }) => numbers[IN.arg]),
    [LEASED, LEASED + 1, LEASED + 2],
  );
});

test('removals that the tree has no time to hear of hold few descriptors', async (t) => {
  const world = await World.make(t, { ready: true });
  const upper = `${world.fixture.dir}/lent`;
  await mkdir(upper);
  const files = 600;
  await world.toy('thaw', 1);
  await world.toy('lease', LEASED, files);
  await world.toy('adoptDirectory', 1, upper);
  await world.toy('lend', 1, upper, 0, 1);
  const script = `
import os, sys
os.chdir(sys.argv[1])
for i in range(${files * 50}):
    if i % 50 == 0 and len(os.listdir(sys.argv[2])) >= ${files}: break
    os.close(os.open(f'f{i}', os.O_CREAT | os.O_EXCL | os.O_WRONLY))
print('made', flush=True)
sys.stdin.readline()
for name in os.listdir(sys.argv[2]): os.unlink(name)
`;
  const program = world.fixture.start('python3', '-c', script, world.root, upper);
  await program.says('made');
  const made = (await readdir(upper)).length;
  // Those that came while the tree was at something it has made itself.
  t.is(made, files, 'so many were made without the tree');
  const count = async () => (await readdir(`/proc/${world.fixture.child.pid}/fd`)).length;
  const before = await count();
  const wake = await world.sleep();
  program.child.stdin!.write('go\n');
  // Until the program waits for the tree: nothing is removed any more, though it is not through.
  let most = 0;
  let left = made;
  for (let still = 0; program.running && still < 50; ) {
    most = Math.max(most, await count());
    const now = (await readdir(upper)).length;
    still = now === left && now < made ? still + 1 : 0;
    left = now;
    await sleep(20);
  }
  await wake();
  t.is((await program.end).code, 0, program.err);
  const held = most - before;
  t.log(`${held} descriptors more, ${made - left} files removed`);
  t.true(held > 0, 'some were removed meanwhile');
  t.true(held <= 300, `${held} descriptors more`);
});

test('attributes of a file that native makes are kept while it is empty, and no longer', async (t) => {
  const world = await World.make(t, { ready: true });
  const upper = `${world.fixture.dir}/lent`;
  await mkdir(upper);
  await world.toy('thaw', 1);
  await world.toy('lease', LEASED, 2);
  await world.toy('lend', 1, upper, 0, 1);
  const snake = await Snake.start(world.fixture);
  const name = await makeInLayer(world, upper, 1, (path) =>
    snake.ask(`keep('fd', os.open('${path}', os.O_RDWR | os.O_CREAT | os.O_EXCL))`),
  );
  const file = `${world.root}/${name}`;
  // Behind its back, so that it can be told what the kernel has kept.
  const mode = async () => Number(await snake.ask(`os.stat('${file}').st_mode`)) & 0o7777;
  const before = await mode();
  await chmod(`${upper}/${name}`, 0o604);
  t.is(await mode(), before, 'it was not asked again');
  t.is(await snake.ask("os.write(kept['fd'], b'one')"), 3);
  t.is(await mode(), 0o604);
  await snake.ask("keep('map', mmap.mmap(kept['fd'], 3))");
  // From now on nothing is kept, whatever the kernel is told of.
  const changed = async () => Number(await snake.ask(`os.stat('${file}').st_mtime_ns`));
  let last = await changed();
  for (let i = 0; i < 3; i++)
    await until('a store that is seen', async () => {
      t.is(await snake.ask("kept['map'].__setitem__(0, 65) or kept['map'].flush()"), null);
      const now = await changed();
      const later = now > last;
      last = now;
      return later;
    });
});

/** Milliseconds that forgets gather for before the tree is woken. */
const GATHER_MS = 20;

/** So often a busy machine may have the tree do itself what is to be done without it; what is never so, never is. */
const ROUNDS = 10;

test('files that come and go wake the tree a few times, not each', async (t) => {
  const world = await World.make(t, { ready: true });
  const upper = `${world.fixture.dir}/lent`;
  await mkdir(upper);
  const files = 1000;
  await world.toy('thaw', 1);
  await world.toy('lease', LEASED, ROUNDS * files);
  await world.toy('holdRoot', upper);
  await world.toy('adoptDirectory', 1, upper);
  await world.toy('lend', 1, upper, 0, 1);
  const script = `
import os, sys, time
os.chdir(sys.argv[1])
start = time.monotonic()
for i in range(${files}):
    os.close(os.open(f'f{i}', os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    os.unlink(f'f{i}')
print(time.monotonic() - start)
`;
  const deleted = async () => {
    const fds = `/proc/${world.fixture.child.pid}/fd`;
    const links = (await readdir(fds)).map((fd) => readlink(`${fds}/${fd}`).catch(() => ''));
    return (await Promise.all(links)).filter((path) => path.endsWith(' (deleted)')).length;
  };
  const round = async () => {
    await world.seen();
    const before = (await world.toy('wakes')) as number;
    const program = world.fixture.start('python3', '-c', script, world.root);
    t.is((await program.end).code, 0, program.err);
    const wakes = ((await world.toy('wakes')) as number) - before;
    const seen: Seen[] = [];
    // No request comes any more, and yet it hears of all of them.
    await until('every FORGET', async () => {
      seen.push(...(await world.seen()));
      const forgets = seen.filter(({ op }) => op === 'Forget');
      const nodes = forgets.flatMap(({ numbers }) => numbers.slice(IN.arg)).filter((n) => n > 1);
      return nodes.length === files;
    });
    await until('the files are closed', async () => (await deleted()) === 0);
    const requests = seen.filter(({ op }) => !['Created', 'Removed', 'Forget'].includes(op)).length;
    return { wakes, ms: Number(program.out) * 1000, requests };
  };
  for (let tries = 1; ; tries++) {
    const { wakes, ms, requests } = await round();
    // Two pieces of news and a FORGET each; when there are 128, or the time is over.
    const most = (3 * files) / 128 + ms / GATHER_MS + requests + 2;
    const said = `${wakes} times for ${files} files in ${Math.round(ms)} ms, ${requests} requests`;
    t.log(said);
    t.true(wakes <= most, said);
    // Some come while the tree is at something, more of them on a busy machine.
    if (requests < files / 4) break;
    t.true(tries < ROUNDS, said);
  }
});

test('files that are not open leave descriptors for those that are', async (t) => {
  const world = await World.make(t, { ready: true });
  const upper = `${world.fixture.dir}/lent`;
  await mkdir(upper);
  const [limit, files] = [400, 300];
  await world.toy('thaw', 1);
  await world.toy('lease', LEASED, files);
  await world.toy('lend', 1, upper, 0, 1);
  const { pid } = world.fixture.child;
  execFileSync('prlimit', [`--pid=${pid}`, `--nofile=${limit}:${limit}`]);
  await makeInLayer(world, upper, files);
  const held = (await readdir(`/proc/${pid}/fd`)).length;
  t.true(held < limit * 0.6, `${held} descriptors of ${limit}`);
});

test('a tag comes back when its handle is closed', async (t) => {
  const world = await World.make(t, { ready: true });
  await world.toy('tag', 42);
  await writeFile(`${world.root}/new`, 'x');
  const tags: number[] = [];
  await until('the Release', async () => {
    const released = (await world.seen()).filter(({ op }) => op === 'Release');
    tags.push(...released.map(({ numbers }) => numbers[6]!));
    return tags.length > 0;
  });
  t.deepEqual(tags, [42]);
});

test('files are written, thawed and adopted from many threads at once, and none shows an older state', async (t) => {
  const world = await World.make(t, { ready: true });
  const script = `
import os, threading, sys
root = sys.argv[1]
bad = []
def work(n):
    for i in range(60):
        name = f'{root}/f{n}-{i % 3}'
        try:
            fd = os.open(name, os.O_RDWR | os.O_CREAT)
            os.pwrite(fd, b'%08d' % i, 0)
            if os.pread(fd, 8, 0) != b'%08d' % i: bad.append((name, i))
            if os.stat(name).st_size != 8: bad.append((name, 'size'))
            os.close(fd)
            if i % 5 == 4:
                os.unlink(name)
                if os.path.exists(name): bad.append((name, 'there'))
            os.listdir(root)
            if os.stat(root + '/other').st_mode & 0o777 not in (0o644, 0o600): bad.append('mode')
        except OSError as e: bad.append((name, i, e.errno))
threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
for x in threads: x.start()
for x in threads: x.join()
print(bad)
`;
  const run = world.fixture.start('python3', '-c', script, world.root);
  await chmod(`${world.root}/other`, 0o600);
  t.is((await run.end).code, 0, run.err);
  t.is(run.out.trim(), '[]');
  t.is((await lstat(`${world.root}/other`)).mode & 0o777, 0o600);
  t.is((await lstat(join(world.root, 'small'))).mode & 0o777, 0o644);
});
