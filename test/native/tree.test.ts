// What programs see of a tree: every kind of file, every attribute, listings, names, errors.
import { execFile } from 'node:child_process';
import { type BigIntStats, constants } from 'node:fs';
import {
  access,
  link,
  lstat,
  mkdir,
  open,
  readdir,
  readFile,
  readlink,
  rename,
  rm,
  rmdir,
  statfs,
  symlink,
  truncate,
  unlink,
  utimes,
  writeFile,
} from 'node:fs/promises';
import { promisify } from 'node:util';
import test from 'ava';
import { fromText } from '../../src/image/tree.ts';
import { Fixture, noise, Tree } from './fixture.ts';

const run = promisify(execFile);
const CAPABILITY = Buffer.from('0100000200200000000000000000000000000000', 'hex');

function everything(): Tree {
  const tree = new Tree();
  const root = tree.root.inode;
  Object.assign(root, {
    mode: 0o751,
    uid: 3,
    gid: 4,
    mtimeSec: 1_234_567_890,
    mtimeNsec: 123_456_789,
  });
  tree.file('etc/hello', 'hello\n', { mode: 0o640, uid: 1000, gid: 1001, mtimeNsec: 999_999_999 });
  tree.file('usr/bin/ping', noise(9000, 1), {
    mode: 0o4755,
    xattrs: new Map([
      ['security.capability', CAPABILITY],
      ['user.empty', Buffer.alloc(0)],
      ['user.large', noise(40_000, 2)],
    ]),
  });
  tree.file('usr/lib/big', noise((1 << 20) + 17, 5), { mode: 0o2644 });
  tree.file('empty', '', { mode: 0o600, mtimeSec: -86_400, mtimeNsec: 500 });
  tree.add('dev', 'null', { type: 'char', mode: 0o666, major: 1, minor: 3 });
  tree.add('dev', 'wide', { type: 'char', mode: 0o666, major: 0xabc, minor: 0xabcde });
  tree.add('dev', 'disk', { type: 'block', mode: 0o660, gid: 6, major: 259, minor: 7 });
  tree.add('run', 'pipe', { type: 'fifo', mode: 0o622 });
  tree.add('run', 'socket', { type: 'socket', mode: 0o777 });
  tree.add('', 'link', { type: 'symlink', mode: 0o777, target: fromText('etc/hello'), size: 9 });
  tree.add('', 'raw', { type: 'symlink', mode: 0o777, target: '\xff\xfe/\x01', size: 4 });
  tree.add('', 'far', { type: 'symlink', mode: 0o777, target: 'x'.repeat(4095), size: 4095 });
  const shared = tree.file('a/one', 'linked', { uid: 7 });
  tree.link('a', 'two', shared);
  tree.link('b', 'three', shared);
  const node = tree.add('a', 'zero', { type: 'char', mode: 0o600, major: 1, minor: 5 });
  tree.link('b', 'null', node);
  tree.file('tmp/sticky/x', 'x');
  tree.directory('tmp').inode.mode = 0o1777;
  tree.directory('tmp').inode.xattrs = new Map([['user.where', Buffer.from('here')]]);
  for (const name of [
    '\xff\xfe',
    '\xe4',
    'ä'.normalize('NFD'),
    ' ',
    '\n',
    '\\',
    'n'.repeat(255),
    '...',
  ]) {
    tree.link(
      'names',
      name.length === 255 ? name : name === 'ä'.normalize('NFD') ? fromText(name) : name,
      {
        type: 'file',
        mode: 0o644,
        uid: 0,
        gid: 0,
        mtimeSec: 1,
        mtimeNsec: 1,
        size: 0,
        layer: 0,
      },
    );
  }
  let deep = '';
  for (let i = 0; i < 60; i++) deep += '/deeper-and-deeper-still-until-it-is-too-far-for-one-path';
  tree.directory(deep);
  return tree;
}

test('every path, type, attribute and target is that of the TOC', async (t) => {
  const fixture = await Fixture.make(t, everything());
  await fixture.storeAll();
  const { points } = await fixture.mount({ ready: true });
  const { toc } = fixture;
  let seen = 0;
  // Relative to /proc/self/fd, since the deepest paths are longer than PATH_MAX.
  const walk = async (row: number, directory: Buffer): Promise<void> => {
    const names = await readdir(directory, { encoding: 'buffer' });
    const { first, end } = toc.children(row);
    const expected = [];
    for (let child = first; child < end; child++) expected.push(toc.name(child));
    t.deepEqual(names.map((name) => name.toString('latin1')).sort(), expected.sort());
    for (let child = first; child < end; child++) {
      const path = Buffer.concat([directory, Buffer.from('/'), toc.nameBytes(child)]);
      const name = toc.path(child);
      const st: BigIntStats = await lstat(path, { bigint: true });
      check(child, st, name);
      seen++;
      if (toc.isSymlink(child)) {
        t.deepEqual(await readlink(path, { encoding: 'buffer' }), toc.target(child), name);
      }
      if (toc.isFile(child) && toc.content(child) >= 0) {
        t.true((await readFile(path)).equals(fixture.bytes(toc.content(child))), name);
      }
      if (toc.isDirectory(child)) {
        const held = await open(path, constants.O_RDONLY | constants.O_DIRECTORY);
        await walk(child, Buffer.from(`/proc/self/fd/${held.fd}`));
        await held.close();
      }
    }
  };
  const check = (row: number, st: BigIntStats, name: string) => {
    const want = {
      ino: BigInt(toc.inode(row) + 1),
      mode: BigInt(toc.mode(row)),
      nlink: BigInt(toc.nlink(row)),
      uid: BigInt(toc.uid(row)),
      gid: BigInt(toc.gid(row)),
      size: BigInt(toc.size(row)),
      mtimeNs: BigInt(toc.mtimeSec(row)) * 1_000_000_000n + BigInt(toc.mtimeNsec(row)),
      rdev: userDevice(toc.rdev(row)),
      blocks:
        toc.isFile(row) || toc.isDirectory(row) ? BigInt(Math.ceil(toc.size(row) / 4096) * 8) : 0n,
    };
    const have = Object.fromEntries(
      Object.keys(want).map((key) => [key, st[key as keyof typeof want]]),
    );
    t.deepEqual(have, want, name);
  };
  check(0, await lstat(points[0]!, { bigint: true }), 'root');
  await walk(0, Buffer.from(points[0]!));
  t.is(seen, toc.rows - 1);
});

/** st_rdev as the C library encodes it, from the kernel's new_encode_dev. */
function userDevice(rdev: number): bigint {
  const major = BigInt((rdev >>> 8) & 0xfff);
  const minor = BigInt((rdev & 0xff) | ((rdev >>> 12) & 0xfff00));
  return (
    ((major & 0xfffff000n) << 32n) |
    ((major & 0xfffn) << 8n) |
    ((minor & 0xffffff00n) << 12n) |
    (minor & 0xffn)
  );
}

test('extended attributes are listed and read; absent ones are "no data"', async (t) => {
  const fixture = await Fixture.make(t, everything());
  const { points } = await fixture.mount();
  const root = points[0]!;
  const dump = (path: string) =>
    run('getfattr', ['-d', '-m', '-', '-e', 'hex', '--absolute-names', path]);
  const { stdout } = await dump(`${root}/usr/bin/ping`);
  t.true(stdout.includes(`security.capability=0x${CAPABILITY.toString('hex')}\n`));
  t.regex(stdout, /^user\.empty(=0x)?$/m);
  t.true(stdout.includes(`user.large=0x${noise(40_000, 2).toString('hex')}\n`));
  t.true(
    (await dump(`${root}/tmp`)).stdout.includes(
      `user.where=0x${Buffer.from('here').toString('hex')}`,
    ),
  );
  t.is((await dump(`${root}/etc/hello`)).stdout, '');
  const absent = await t.throwsAsync(run('getfattr', ['-n', 'user.absent', `${root}/tmp`]));
  t.regex(String(absent), /No such attribute/);
});

test('an image without extended attributes lists none, and asks nothing for exec', async (t) => {
  const tree = new Tree();
  tree.file('x', 'x');
  const fixture = await Fixture.make(t, tree);
  const { points } = await fixture.mount();
  t.is((await run('getfattr', ['-d', '-m', '-', `${points[0]}/x`])).stdout, '');
  await t.throwsAsync(run('getfattr', ['-n', 'user.absent', `${points[0]}/x`]));
});

test('ACLs count for access, and are shown', async (t) => {
  // user::rw- user:1234:r-- group::--- mask::r-- other::---  (version 2; tag, permissions, id)
  const entries = [
    [0x01, 6, 0xffffffff],
    [0x02, 4, 1234],
    [0x04, 0, 0xffffffff],
    [0x10, 4, 0xffffffff],
    [0x20, 0, 0xffffffff],
  ];
  const acl = Buffer.alloc(4 + entries.length * 8);
  acl.writeUInt32LE(2);
  for (const [i, [tag, permissions, id]] of entries.entries()) {
    acl.writeUInt16LE(tag!, 4 + i * 8);
    acl.writeUInt16LE(permissions!, 6 + i * 8);
    acl.writeUInt32LE(id!, 8 + i * 8);
  }
  const tree = new Tree();
  tree.file('guarded', 'secret', {
    mode: 0o640,
    xattrs: new Map([['system.posix_acl_access', acl]]),
  });
  const fixture = await Fixture.make(t, tree);
  await fixture.storeAll();
  const { points } = await fixture.mount({ ready: true });
  await run('chmod', ['755', fixture.dir]);
  const path = `${points[0]}/guarded`;
  const { stdout } = await run('getfacl', ['-n', '--absolute-names', path]);
  t.true(stdout.includes('user:1234:r--\n'), stdout);
  const as = (uid: number) =>
    run('setpriv', ['--reuid', String(uid), '--regid', '77', '--clear-groups', 'cat', path]);
  t.is((await as(1234)).stdout, 'secret');
  await t.throwsAsync(as(1235), { message: /Permission denied/ });
});

test('a directory of 5000 entries is listed whole, once, in pieces of any size', async (t) => {
  const tree = new Tree();
  const names = Array.from(
    { length: 5000 },
    (_, i) => `entry-${String(i).padStart(5, '0')}-${'x'.repeat(i % 97)}`,
  );
  for (const name of names) tree.file(`many/${name}`, '');
  const fixture = await Fixture.make(t, tree);
  const { points } = await fixture.mount();
  t.deepEqual((await readdir(`${points[0]}/many`)).sort(), names.toSorted());
  // The kernel has it cached now; a fresh mount, with listings that are given up half-way.
  for (let i = 0; i < 3; i++) {
    const { opendir } = await import('node:fs/promises');
    const directory = await opendir(`${points[0]}/many`, { bufferSize: 7 });
    for (let n = 0; n < 100; n++) t.truthy(await directory.read());
    await directory.close();
  }
  const script = 'import os,sys\nd=sys.argv[1]\nprint(len(set(e.inode() for e in os.scandir(d))))';
  const { stdout } = await run('python3', ['-c', script, `${points[0]}/many`]);
  t.is(stdout.trim(), '5000');
});

test('names that do not exist are asked for once', async (t) => {
  const fixture = await Fixture.make(t, everything());
  const { points } = await fixture.mount();
  const missing = `${points[0]}/etc/absent`;
  await t.throwsAsync(lstat(missing), { code: 'ENOENT' });
  const before = (await fixture.stats()).lookups;
  for (let i = 0; i < 20; i++) await t.throwsAsync(lstat(missing), { code: 'ENOENT' });
  for (let i = 0; i < 20; i++) await lstat(`${points[0]}/etc`);
  t.is((await fixture.stats()).lookups, before);
  await t.throwsAsync(lstat(`${points[0]}/etc/hello/x`), { code: 'ENOTDIR' });
  await t.throwsAsync(lstat(`${points[0]}/${'n'.repeat(256)}`), { code: 'ENAMETOOLONG' });
});

test('every change is refused as on a read-only filesystem', async (t) => {
  const fixture = await Fixture.make(t, everything());
  await fixture.storeAll();
  const { points } = await fixture.mount({ ready: true });
  const root = points[0]!;
  const changes: Record<string, Promise<unknown>> = {
    create: writeFile(`${root}/new`, ''),
    write: open(`${root}/etc/hello`, 'r+'),
    append: open(`${root}/etc/hello`, 'a'),
    truncate: truncate(`${root}/etc/hello`, 0),
    mkdir: mkdir(`${root}/new`),
    rmdir: rmdir(`${root}/names`),
    unlink: unlink(`${root}/etc/hello`),
    rename: rename(`${root}/etc/hello`, `${root}/etc/other`),
    link: link(`${root}/etc/hello`, `${root}/etc/other`),
    symlink: symlink('x', `${root}/etc/other`),
    utimes: utimes(`${root}/etc/hello`, 1, 1),
    rm: rm(`${root}/etc/hello`),
    access: access(`${root}/etc/hello`, constants.W_OK),
  };
  for (const [name, change] of Object.entries(changes)) {
    await t.throwsAsync(change, { code: 'EROFS' }, name);
  }
  for (const words of [
    ['chmod', '600'],
    ['chown', '5'],
    ['setfattr', '-n', 'user.x', '-v', 'y'],
  ]) {
    const [command, ...more] = words as [string, ...string[]];
    const failed = await t.throwsAsync(run(command, [...more, `${root}/etc/hello`]));
    t.regex(String(failed), /Read-only file system/, command);
  }
  t.is(await readFile(`${root}/etc/hello`, 'utf8'), 'hello\n');
});

test('data and holes, sizes and the filesystem itself', async (t) => {
  const fixture = await Fixture.make(t, everything());
  await fixture.storeAll();
  const { points } = await fixture.mount({ ready: true });
  const fs = await statfs(points[0]!);
  t.is(fs.bsize, 4096);
  t.is(fs.bfree, 0);
  t.is(fs.files, fixture.toc.inodes);
  t.is(fs.blocks, Math.ceil(fixture.toc.totalBytes / 4096));
  const script = `import os,sys
fd=os.open(sys.argv[1],os.O_RDONLY)
print(os.lseek(fd,0,os.SEEK_DATA),os.lseek(fd,0,os.SEEK_HOLE),os.lseek(fd,0,os.SEEK_END))
try: os.lseek(fd,1<<30,os.SEEK_DATA)
except OSError as e: print(e.errno)
os.posix_fadvise(fd,0,0,os.POSIX_FADV_WILLNEED)
print(len(os.pread(fd,10,5)),len(os.pread(fd,10,1<<40)))`;
  const { stdout } = await run('python3', ['-c', script, `${points[0]}/usr/bin/ping`]);
  t.deepEqual(stdout.trim().split('\n'), ['0 9000 9000', '6', '10 0']);
  t.is((await run('du', ['-B1', `${points[0]}/usr/bin/ping`])).stdout.split('\t')[0], '12288');
});

test('programs run from the mount, setuid bits and devices count', async (t) => {
  const tree = new Tree();
  tree.file('bin/echo', await readFile('/bin/echo'), { mode: 0o755 });
  tree.file('bin/id', await readFile('/usr/bin/id'), { mode: 0o4755, uid: 65533 });
  tree.add('dev', 'zero', { type: 'char', mode: 0o666, major: 1, minor: 5 });
  const fixture = await Fixture.make(t, tree);
  await fixture.storeAll();
  const { points } = await fixture.mount({ ready: true });
  t.is((await run(`${points[0]}/bin/echo`, ['it', 'runs'])).stdout, 'it runs\n');
  t.regex((await run(`${points[0]}/bin/id`, [])).stdout, /euid=65533/);
  const zero = await open(`${points[0]}/dev/zero`);
  t.is((await zero.read(Buffer.alloc(10, 1), 0, 10)).buffer.indexOf(1), -1);
  await zero.close();
});

test('permissions hold for other users', async (t) => {
  const fixture = await Fixture.make(t, everything());
  await fixture.storeAll();
  const { points } = await fixture.mount({ ready: true });
  const as = (uid: number, path: string) =>
    run('setpriv', ['--reuid', String(uid), '--regid', '1001', '--clear-groups', 'cat', path]);
  // The test directory is only its owner's; the mount has to be reached through it.
  await run('chmod', ['755', fixture.dir]);
  t.is((await as(1000, `${points[0]}/etc/hello`)).stdout, 'hello\n');
  t.is((await as(2000, `${points[0]}/etc/hello`)).stdout, 'hello\n');
  const refused = await t.throwsAsync(as(2000, `${points[0]}/empty`));
  t.regex(String(refused), /Permission denied/);
});
