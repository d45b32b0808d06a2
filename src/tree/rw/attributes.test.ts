// Attributes of the writable tree, extended ones among them: what is inherited, promoted, hidden, lost.
import { closeSync, existsSync, constants as flags, openSync } from 'node:fs';
import { constants } from 'node:os';
import { join } from 'node:path';
import ava, { type ExecutionContext } from 'ava';
import { ATTR } from '../../native/upcalls.ts';
import { AS_ROOT, errnoOfCall, ME, type Stage, stage, statOf } from './testing.ts';

const test = AS_ROOT ? ava : ava.skip;
const { O_RDONLY, O_RDWR, O_TRUNC, O_WRONLY } = flags;
const { EMFILE } = constants.errno;

/** A file capability (struct vfs_cap_data, revision 2): cap_net_raw. */
const NET_RAW = Buffer.alloc(20);
NET_RAW.writeUInt32LE(0x02000000, 0);
NET_RAW.writeUInt32LE(1 << 13, 4);

/** An ACL that lets the group run the file: revision 2; user, group and others with rwx, r-x and r--. */
const GROUP_RUNS = Buffer.from(
  '02000000' + '01000700ffffffff' + '04000500ffffffff' + '20000400ffffffff',
  'hex',
);

function image(t: ExecutionContext): Stage {
  const linked = { data: 'linked content', mode: 0o600 };
  return stage(t, {
    etc: {
      entries: {
        passwd: { data: 'root:x:0:0', mode: 0o640, uid: 1, gid: 2 },
        link: { type: 'symlink', target: 'passwd', mode: 0o777 },
        a: linked,
      },
    },
    lib: {
      entries: { b: linked, once: { data: '' }, sub: { entries: { deep: { data: 'deep' } } } },
    },
    fifo: { type: 'fifo' },
    null: { type: 'char', major: 1, minor: 3 },
  });
}

const fails = async (
  t: ExecutionContext,
  code: keyof typeof constants.errno,
  operation: () => unknown,
) => t.is(await errnoOfCall(operation), constants.errno[code], code);

test('umask, setgid directories and default ACLs reach new files, over whiteouts too', (t) => {
  const s = image(t);
  // user::rwx user:42:r-x group::r-x mask::rwx other::r-x
  const entries = [
    [1, 7, 0xffffffff],
    [2, 5, 42],
    [4, 5, 0xffffffff],
    [16, 7, 0xffffffff],
    [32, 5, 0xffffffff],
  ];
  const acl = Buffer.alloc(4 + 8 * entries.length);
  acl.writeUInt32LE(2);
  entries.forEach(([tag, perm, id], i) => {
    acl.writeUInt16LE(tag!, 4 + 8 * i);
    acl.writeUInt16LE(perm!, 6 + 8 * i);
    acl.writeUInt32LE(id!, 8 + 8 * i);
  });
  const caller = { ...ME, uid: 11, gid: 12, umask: 0o077 };
  t.is(s.create('lib/plain', '', 0o666, caller).mode, 0o100600);
  s.tree.setattr(s.node('lib'), { mode: 0o2777 });
  t.like(s.create('lib/group', '', 0o666, caller), { uid: 11, gid: 0 });
  t.like(s.mkdir('lib/below', 0o755, caller), { uid: 11, gid: 0, mode: 0o42700 });
  s.unlink('lib/once');
  t.like(s.mkdir('lib/once', 0o755, caller), { uid: 11, gid: 0, mode: 0o42700 });
  s.tree.setxattr(s.node('lib'), 'system.posix_acl_default', acl, 0, false);
  s.unlink('lib/sub/deep');
  s.rmdir('lib/sub');
  s.unlink('lib/b');
  const pairs: [string, string][] = [];
  const get = (path: string, name: string) => {
    const node = s.node(path);
    return s.tree.listxattr(node, ME).includes(name)
      ? Buffer.from(s.tree.getxattr(node, name)).toString('hex')
      : 'none';
  };
  for (const mode of [0o666, 0o640, 0o7777 & ~0o2000, 0o111]) {
    s.create('lib/direct', '', mode, caller);
    s.create('lib/b', '', mode, caller);
    s.mkdir('lib/directory', mode, caller);
    s.mkdir('lib/sub', mode, caller);
    for (const [one, other] of [
      ['lib/direct', 'lib/b'],
      ['lib/directory', 'lib/sub'],
    ] as const) {
      const { mode: m1, gid: g1, uid: u1 } = s.stat(one);
      const { mode: m2, gid: g2, uid: u2 } = s.stat(other);
      t.deepEqual([m1, g1, u1], [m2, g2, u2]);
      for (const name of ['system.posix_acl_access', 'system.posix_acl_default'])
        pairs.push([get(one, name), get(other, name)]);
    }
    s.unlink('lib/direct');
    s.unlink('lib/b');
    s.rmdir('lib/directory');
    s.rmdir('lib/sub');
  }
  t.true(pairs.some(([one]) => one !== 'none'));
  for (const [one, other] of pairs) t.is(other, one);
});

test('extended attributes: of the image, own ones, and those that are overlayfs’', async (t) => {
  const s = stage(t, {
    f: { data: 'x', xattrs: new Map([['user.a', Buffer.from('1')]]) },
    d: { entries: {}, xattrs: new Map([['user.d', Buffer.from('d')]]) },
  });
  const node = s.node('f');
  t.deepEqual(s.tree.listxattr(node, ME), ['user.a']);
  await fails(t, 'ENODATA', () => s.tree.getxattr(node, 'user.b'));
  await fails(t, 'ENODATA', () => s.go((tree) => tree.removexattr(node, 'user.b')));
  t.false(existsSync(join(s.upper, 'f')));
  const set = (name: string, flags = 0) =>
    s.go((tree) => tree.setxattr(node, name, Buffer.from('2'), flags, false));
  await set('user.b');
  await fails(t, 'EEXIST', () => set('user.a', 1));
  await fails(t, 'ENODATA', () => set('user.c', 2));
  t.deepEqual(s.tree.listxattr(node, ME).sort(), ['user.a', 'user.b']);
  t.is(Buffer.from(s.tree.getxattr(node, 'user.a')).toString(), '1');
  await set('trusted.overlay.opaque');
  t.true(s.tree.listxattr(node, ME).includes('trusted.overlay.opaque'));
  await fails(t, 'ENODATA', () => s.tree.getxattr(node, 'trusted.firstlight.origin'));
  await fails(t, 'EOPNOTSUPP', () => set('trusted.firstlight.origin'));
  await s.go((tree) => tree.setxattr(s.node('d'), 'user.e', Buffer.from('e'), 0, false));
  t.deepEqual(s.tree.listxattr(s.node('d'), ME).sort(), ['user.d', 'user.e']);
  s.reopen();
  t.deepEqual(s.tree.listxattr(s.node('f'), ME).sort(), [
    'trusted.overlay.opaque',
    'user.a',
    'user.b',
  ]);
});

test('symlinks, fifos and devices of the image are promoted as they are', async (t) => {
  const s = image(t);
  for (const path of ['etc/link', 'fifo', 'null']) {
    const before = s.stat(path);
    await s.go((tree) => tree.setattr(s.node(path), { uid: 9 }));
    t.deepEqual(s.stat(path), { ...before, uid: 9 });
  }
  t.is(Buffer.from(s.tree.readlink(s.node('etc/link'))).toString(), 'passwd');
  s.reopen();
  t.is(Buffer.from(s.tree.readlink(s.node('etc/link'))).toString(), 'passwd');
  t.like(s.stat('null'), { uid: 9, rdev: 0x103, ino: s.node('null') });
});

test('setuid goes where it must, and such files are not written by passthrough', async (t) => {
  const s = image(t);
  s.create('suid', 'x', 0o4755, { ...ME, umask: 0 });
  await s.open_('suid', O_WRONLY, (_, opened) => t.like(opened, { direct: true }));
  await s.open_('suid', O_RDONLY, (_, opened) => t.like(opened, { direct: false }));
  await s.go((tree) => tree.setattr(s.node('suid'), { size: 0, killSuidgid: true }));
  t.is(s.stat('suid').mode, 0o100755);
  await s.open_('suid', O_WRONLY, (_, opened) => t.like(opened, { direct: false }));
});

test('a name of a hard link goes: the time of the last change of the inode is new', (t) => {
  const s = image(t);
  s.unlink('etc/a');
  const { attributes } = s.tree.getattr(s.node('lib/b'));
  t.true(attributes[ATTR.ctimeSec]! > attributes[ATTR.mtimeSec]!);
});

test('files of the image have no time of birth, also when they were promoted; new ones have', async (t) => {
  const s = image(t);
  const birth = (path: string) => s.tree.getattr(s.node(path)).attributes[ATTR.btimeSec]!;
  await s.write('etc/passwd', 'x');
  s.create('etc/new');
  t.deepEqual([birth('etc/passwd'), birth('etc')], [0, 0]);
  t.true(birth('etc/new') > 0);
  s.reopen();
  t.deepEqual([birth('etc/passwd'), birth('etc')], [0, 0]);
});

test('trusted attributes are listed for root alone', async (t) => {
  const s = image(t);
  const node = s.node('etc/passwd');
  await s.go((tree) => tree.setxattr(node, 'trusted.a', Buffer.from('1'), 0, false));
  t.deepEqual(s.tree.listxattr(node, ME), ['trusted.a']);
  t.deepEqual(s.tree.listxattr(node, { ...ME, uid: 1000 }), []);
});

test('a size that no file can have is refused before anything is copied', async (t) => {
  const s = image(t);
  const node = s.node('etc/passwd');
  await fails(t, 'EFBIG', () => s.go((tree) => tree.setattr(node, { size: 2 ** 63 })));
  t.false(existsSync(join(s.upper, 'etc')));
});

test('what is read again and again is left to the session', async (t) => {
  const s = image(t);
  const { node, ino } = s.create('etc/new', 'x');
  const read = () => s.open_('etc/new', O_RDONLY, () => undefined);
  await read();
  await read();
  t.false(s.host.adopted.has(node));
  await read();
  t.true(s.host.adopted.has(node));
  t.is(s.stat('etc/new').ino, ino);
  s.unlink('etc/new');
  s.tree.forget(node, 1e6);
  t.false(s.host.adopted.has(node));
});

test('what is written again is left to the session, unless a write takes something away from it', async (t) => {
  const s = image(t);
  const { node } = s.create('etc/new', 'x');
  const write = () => s.open_('etc/new', O_RDWR, () => undefined);
  t.false(s.host.writable.has(node), 'made once, perhaps never written again');
  await write();
  t.true(s.host.writable.has(node));
  for (const change of [
    (tree: typeof s.tree) => void tree.setattr(node, { mode: 0o4755 }),
    (tree: typeof s.tree) => void tree.setattr(node, { mode: 0o2755 }),
    (tree: typeof s.tree) => tree.setxattr(node, 'security.capability', NET_RAW, 0, false),
    (tree: typeof s.tree) => {
      tree.setattr(node, { mode: 0o2644 });
      tree.setxattr(node, 'system.posix_acl_access', GROUP_RUNS, 0, false);
    },
  ]) {
    await s.go(change);
    t.false(s.host.adopted.has(node), 'before the answer to what makes it so');
    await write();
    t.true(s.host.adopted.has(node));
    t.false(s.host.writable.has(node), 'to be read alone');
    await s.go((tree) => tree.setattr(node, { mode: 0o644, killSuidgid: true }));
  }
});

test('attributes are not to be kept while a mapping outlives its descriptor, whoever has opened it', async (t) => {
  const s = image(t);
  // Whoever has it open for writing stands for the mapping: the kernel counts both in the same way.
  const opened = await s.go((tree) => tree.open(s.node('etc/passwd'), O_RDWR, false));
  if (opened.kind !== 'upper') return t.fail('opened for writing, and it is the template');
  const node = s.node('etc/passwd');
  const valid = () => s.tree.getattr(node).attrValidMs;
  t.is(valid(), 0);
  closeSync(opened.fd);
  t.is(valid(), Number.POSITIVE_INFINITY);
  // The session opens it, and says nothing.
  t.true(s.host.writable.has(node));
  const fd = openSync(join(s.upper, 'etc/passwd'), 'r+');
  t.is(valid(), 0);
  // Not after it has been taken back either.
  await s.go((tree) => tree.setattr(node, { mode: 0o4755 }));
  t.false(s.host.adopted.has(node));
  t.is(valid(), 0);
  closeSync(fd);
  t.is(valid(), Number.POSITIVE_INFINITY);
});

test('a file that is there already is no error where no descriptor is left to look at it', (t) => {
  const s = image(t);
  const { isHeldForWriting } = s.io;
  let left = 0;
  const looked: number[] = [];
  const io = Object.create(s.io) as typeof s.io;
  io.isHeldForWriting = (dirfd, name) => {
    looked.push(left);
    if (left > 0) return isHeldForWriting(dirfd, name);
    throw Object.assign(new Error('too many'), { errno: EMFILE, code: 'EMFILE' });
  };
  s.closeTree();
  s.io = io;
  s.tree = s.open();
  const etc = s.node('etc');
  const { entry, opened } = s.tree.create(etc, 'new', O_RDWR, 0o644, ME);
  closeSync(opened.fd);
  const { attributes, attrValidMs } = s.tree.link(entry.node, etc, 'again');
  t.is(attributes[ATTR.nlink], 2);
  t.is(attrValidMs, 0, 'who knows who writes to it');
  t.is(s.tree.setattr(entry.node, { mode: 0o600 }).attrValidMs, 0);
  t.true(looked.length >= 2);
  left = 1;
  t.is(s.tree.getattr(entry.node).attrValidMs, Number.POSITIVE_INFINITY);
});

test('what a truncation takes away is told to the kernel before the open is answered', async (t) => {
  const s = image(t);
  const node = s.node('etc/passwd');
  await s.go((tree) => tree.setattr(node, { mode: 0o4755 }));
  const before = s.host.attributesDropped.length;
  const opened = await s.go((tree) => tree.open(node, O_WRONLY | O_TRUNC, true));
  if (opened.kind === 'upper') closeSync(opened.fd);
  t.deepEqual(s.host.attributesDropped.slice(before), [node]);
  t.is(s.stat('etc/passwd').mode, 0o100755);
});

test('attributes of an open file are not to be kept, others are for good', async (t) => {
  const s = image(t);
  const { entry, opened } = s.tree.create(s.node('etc'), 'new', O_RDWR, 0o644, ME);
  t.is(entry.attrValidMs, 0);
  const { node } = statOf(entry);
  closeSync(opened.fd);
  t.is(s.tree.getattr(node).attrValidMs, Number.POSITIVE_INFINITY);
  s.host.handles.set(node, 1);
  t.is(s.tree.getattr(node).attrValidMs, 0);
  t.is(s.tree.getattr(s.node('etc')).attrValidMs, Number.POSITIVE_INFINITY);
});
