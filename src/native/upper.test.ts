// The calls of the upper directory on a plain one. What needs root (owners, device nodes, trusted
// xattrs) is tried only as root.
import { execFileSync } from 'node:child_process';
import { closeSync, fstatSync, mkdtempSync, readFileSync, rmSync, writeSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test, { type ExecutionContext } from 'ava';
import { native } from './index.ts';
import { ATTR, ATTR_SLOTS } from './upcalls.ts';
import type { NativeUpper } from './upper.ts';

const O_WRONLY = 1;
const O_RDWR = 2;
const RENAME_NOREPLACE = 1;
const RENAME_EXCHANGE = 2;
const DT_DIR = 4;
const DT_REG = 8;
const S_IFIFO = 0o010000;
const S_IFCHR = 0o020000;
const UTIME_OMIT = 2 ** 30 - 2;
const AS_ROOT = process.getuid?.() === 0;
const ME = { uid: process.getuid?.() ?? 0, gid: process.getgid?.() ?? 0 };
const upper: NativeUpper = native().upper;
upper.prepareThread();

interface World {
  directory: string;
  fd: number;
}

function world(t: ExecutionContext): World {
  const directory = mkdtempSync(join(tmpdir(), 'fl-upper-'));
  const fd = upper.openDirectory(-1, directory);
  t.teardown(() => {
    upper.close(fd);
    rmSync(directory, { recursive: true, force: true });
  });
  return { directory, fd };
}

function stat(dirfd: number, name: string): Float64Array {
  const attributes = new Float64Array(ATTR_SLOTS);
  upper.stat(dirfd, name, attributes);
  return attributes;
}

/** Writes a file whole. */
function put(dirfd: number, name: string, text: string): void {
  const fd = upper.createFile(dirfd, name, O_WRONLY, 0o644, ME);
  writeSync(fd, text);
  upper.close(fd);
}

const failsWith = (t: ExecutionContext, code: string, errno: number, call: () => unknown) => {
  const error = t.throws<Error & { code: string; errno: number }>(call as () => undefined);
  t.is(error?.code, code);
  t.is(error?.errno, errno);
};

test('names are bytes, of any length and below any depth', (t) => {
  const { fd } = world(t);
  const name = `\xff\xfe${'n'.repeat(253)}`;
  let at = fd;
  const opened: number[] = [];
  for (let depth = 0; depth < 40; depth++) {
    upper.mkdir(at, name, 0o755, ME);
    at = upper.openDirectory(at, name);
    opened.push(at);
  }
  put(at, '\xe9', 'deep');
  t.deepEqual(upper.list(at, ''), [{ name: '\xe9', type: DT_REG }]);
  t.deepEqual(upper.list(fd, ''), [{ name, type: DT_DIR }]);
  t.deepEqual(upper.list(fd, name), [{ name, type: DT_DIR }]);
  failsWith(t, 'ENAMETOOLONG', 36, () => upper.mkdir(fd, 'n'.repeat(256), 0o755, ME));
  failsWith(t, 'EINVAL', 22, () => upper.mkdir(fd, 'a/b', 0o755, ME));
  failsWith(t, 'EINVAL', 22, () => upper.mkdir(fd, 'a\0b', 0o755, ME));
  for (const each of opened) upper.close(each);
});

test('modes are taken as given, whatever the umask', (t) => {
  const { fd } = world(t);
  closeSync(upper.createFile(fd, 'f', O_RDWR, 0o666, ME));
  upper.mkdir(fd, 'd', 0o777, ME);
  t.is(stat(fd, 'f')[ATTR.mode], 0o100666);
  t.is(stat(fd, 'd')[ATTR.mode], 0o040777);
  failsWith(t, 'EEXIST', 17, () => upper.createFile(fd, 'f', O_RDWR, 0o666, ME));
});

test('attributes of files, directories and symlinks, by name and by descriptor', (t) => {
  const { fd } = world(t);
  put(fd, 'f', 'hello');
  upper.symlink(Buffer.from('no/where\xff', 'latin1'), fd, 'l', ME);
  t.deepEqual(upper.readlink(fd, 'l'), Buffer.from('no/where\xff', 'latin1'));
  upper.chmod(fd, 'f', 0o4711);
  t.is(stat(fd, 'f')[ATTR.mode], 0o104711);
  upper.utimes(fd, 'l', -5, 7, 2 ** 33, 999_999_999);
  upper.utimes(fd, 'l', 0, UTIME_OMIT, 2 ** 33, 5);
  const link = stat(fd, 'l');
  t.deepEqual([link[ATTR.atimeSec], link[ATTR.atimeNsec]], [-5, 7]);
  t.deepEqual([link[ATTR.mtimeSec], link[ATTR.mtimeNsec]], [2 ** 33, 5]);
  const file = upper.openFile(fd, 'f', O_RDWR);
  upper.truncate(file, 2 ** 33);
  upper.chmod(file, '', 0o600);
  const by = stat(file, '');
  t.is(by[ATTR.size], 2 ** 33);
  t.is(by[ATTR.mode], 0o100600);
  t.is(by[ATTR.nlink], 1);
  t.is(by[ATTR.ino], fstatSync(file).ino);
  t.deepEqual(stat(fd, 'f'), by);
  upper.close(file);
  failsWith(t, 'ELOOP', 40, () => upper.openFile(fd, 'l', O_RDWR));
  failsWith(t, 'ENOENT', 2, () => stat(fd, 'none'));
  failsWith(t, 'ENOTDIR', 20, () => upper.openDirectory(fd, 'f'));
  upper.chmod(fd, '', 0o711);
  t.is(stat(fd, '')[ATTR.mode], 0o040711);
});

test('links, renames and removals', (t) => {
  const { fd } = world(t);
  put(fd, 'a', 'A');
  put(fd, 'b', 'B');
  upper.link(fd, 'a', fd, 'a2');
  t.is(stat(fd, 'a')[ATTR.nlink], 2);
  failsWith(t, 'EEXIST', 17, () => upper.rename(fd, 'a', fd, 'b', RENAME_NOREPLACE));
  upper.rename(fd, 'a', fd, 'b', RENAME_EXCHANGE);
  t.is(stat(fd, 'b')[ATTR.nlink], 2);
  upper.rename(fd, 'a', fd, 'a2', 0);
  t.is(stat(fd, 'b')[ATTR.nlink], 1);
  upper.unlink(fd, 'b');
  upper.mkdir(fd, 'd', 0o755, ME);
  failsWith(t, 'EISDIR', 21, () => upper.unlink(fd, 'd'));
  upper.rmdir(fd, 'd');
  t.deepEqual(upper.list(fd, ''), [{ name: 'a2', type: DT_REG }]);
});

test('a file without a name gets one, and one that lost its name is opened anew', (t) => {
  const { fd, directory } = world(t);
  const unnamed = upper.createUnnamed(fd, O_RDWR, 0o640, ME);
  writeSync(unnamed, 'there');
  upper.link(unnamed, '', fd, 'named');
  t.is(readFileSync(join(directory, 'named'), 'utf8'), 'there');
  upper.unlink(fd, 'named');
  const again = upper.openFile(unnamed, '', O_RDWR);
  t.is(stat(again, '')[ATTR.nlink], 0);
  t.is(readFileSync(again, 'utf8'), 'there');
  upper.close(again);
  upper.close(unnamed);
});

test('xattrs of files, of symlinks and by descriptor', (t) => {
  const { fd } = world(t);
  put(fd, 'f', '');
  upper.setxattr(fd, 'f', 'user.\xe9', Buffer.from([0, 255]), 0);
  t.deepEqual(upper.getxattr(fd, 'f', 'user.\xe9'), Buffer.from([0, 255]));
  t.is(upper.getxattr(fd, 'f', 'user.none'), undefined);
  failsWith(t, 'EEXIST', 17, () => upper.setxattr(fd, 'f', 'user.\xe9', Buffer.alloc(1), 1));
  upper.setxattr(fd, '', 'user.d', Buffer.alloc(0), 0);
  t.deepEqual(upper.getxattr(fd, '', 'user.d'), Buffer.alloc(0));
  t.true(upper.listxattr(fd, 'f').includes('user.\xe9'));
  upper.removexattr(fd, 'f', 'user.\xe9');
  failsWith(t, 'ENODATA', 61, () => upper.removexattr(fd, 'f', 'user.\xe9'));
  if (!AS_ROOT) return;
  upper.symlink(Buffer.from('f'), fd, 'l', ME);
  upper.setxattr(fd, 'l', 'trusted.on-the-link', Buffer.from('x'), 0);
  t.is(upper.getxattr(fd, 'f', 'trusted.on-the-link'), undefined);
  t.deepEqual(upper.getxattr(fd, 'l', 'trusted.on-the-link'), Buffer.from('x'));
});

test('root makes files for others where they themselves could not, and is itself again', (t) => {
  if (!AS_ROOT) return t.pass('needs root');
  const { fd } = world(t);
  const other = { uid: 1234, gid: 4321 };
  upper.chmod(fd, '', 0o700);
  upper.mkdir(fd, 'd', 0o700, other);
  upper.mknod(fd, 'null', S_IFCHR | 0o666, 0x103, other);
  upper.mknod(fd, 'fifo', S_IFIFO | 0o600, 0, other);
  upper.symlink(Buffer.from('x'), fd, 'l', other);
  closeSync(upper.createFile(fd, 'f', O_RDWR, 0o600, other));
  upper.mknod(fd, 'white', S_IFCHR, 0, ME);
  for (const name of ['d', 'null', 'fifo', 'l', 'f']) {
    const of = stat(fd, name);
    t.deepEqual([of[ATTR.uid], of[ATTR.gid]], [1234, 4321], name);
  }
  t.is(stat(fd, 'null')[ATTR.rdev], 0x103);
  t.is(stat(fd, 'white')[ATTR.rdev], 0);
  t.is(stat(fd, 'white')[ATTR.uid], 0);
  upper.chown(fd, 'l', 5, -1);
  t.deepEqual([stat(fd, 'l')[ATTR.uid], stat(fd, 'l')[ATTR.gid]], [5, 4321]);
  // A large device number survives its packing.
  upper.mknod(fd, 'big', S_IFCHR | 0o600, 0xfff12345, ME);
  t.is(stat(fd, 'big')[ATTR.rdev], 0xfff12345);
});

test('a copy keeps the content and its holes, and is as long as it is to be', async (t) => {
  const { fd, directory } = world(t);
  const from = upper.createFile(fd, 'from', O_RDWR, 0o600, ME);
  upper.truncate(from, 40 << 20);
  writeSync(from, 'start', 0);
  writeSync(from, 'middle', 20 << 20);
  const to = upper.createFile(fd, 'to', O_RDWR, 0o600, ME);
  const copied = upper.copyFile(from, to, 40 << 20);
  // The job has descriptors of its own.
  upper.close(from);
  await copied;
  execFileSync('cmp', [join(directory, 'from'), join(directory, 'to')]);
  t.true(stat(to, '')[ATTR.blocks]! * 512 < 1 << 20, 'holes stay holes');
  const again = upper.openFile(fd, 'from', O_RDWR);
  const part = upper.createFile(fd, 'part', O_RDWR, 0o600, ME);
  await upper.copyFile(again, part, (20 << 20) + 3);
  t.is(stat(part, '')[ATTR.size], (20 << 20) + 3);
  t.is(readFileSync(join(directory, 'part')).subarray(-3).toString(), 'mid');
  const short = await t.throwsAsync<Error & { errno: number }>(
    upper.copyFile(again, part, (40 << 20) + 1),
  );
  t.is(short?.errno, 5);
  await upper.fsync(to, true);
  await upper.fsyncDirectory(fd);
  await upper.syncfs(fd);
  for (const each of [to, again, part]) upper.close(each);
});

test('a copy between filesystems', async (t) => {
  const { fd } = world(t);
  const other = mkdtempSync('/dev/shm/fl-upper-');
  t.teardown(() => rmSync(other, { recursive: true, force: true }));
  const shm = upper.openDirectory(-1, other);
  const text = 'x'.repeat(3 << 20);
  put(shm, 'from', text);
  const from = upper.openFile(shm, 'from', 0);
  const to = upper.createFile(fd, 'to', O_RDWR, 0o600, ME);
  await upper.copyFile(from, to, text.length);
  t.is(readFileSync(to, 'utf8'), text);
  for (const each of [from, to, shm]) upper.close(each);
});

test('statfs, and what is no argument', (t) => {
  const { fd } = world(t);
  const numbers = new Float64Array(8);
  upper.statfs(fd, numbers);
  t.true(numbers[0]! >= 512 && numbers[2]! >= numbers[3]! && numbers[7]! >= 255);
  failsWith(t, 'EINVAL', 22, () => upper.stat(fd, '', new Float64Array(3)));
  failsWith(t, 'EINVAL', 22, () => upper.mkdir(fd, 'x', 0o755, {} as never));
  failsWith(t, 'EINVAL', 22, () => upper.truncate(Number.NaN, 0));
  failsWith(t, 'EBADF', 9, () => stat(12345678, 'x'));
});

test('a file is held for writing by descriptors that can write, and by nothing else', (t) => {
  const { fd } = world(t);
  const made = upper.createFile(fd, 'f', O_RDWR, 0o600, ME);
  const held = () => upper.isHeldForWriting(fd, 'f');
  t.true(held());
  const again = upper.openFile(made, '', 0);
  t.true(upper.isHeldForWriting(again, ''));
  upper.close(made);
  t.false(held());
  t.false(upper.isHeldForWriting(again, ''));
  const writes = upper.openFile(fd, 'f', O_WRONLY);
  t.true(held());
  upper.close(writes);
  upper.close(again);
  t.throws(() => upper.isHeldForWriting(fd, 'none'), { code: 'ENOENT' });
});
