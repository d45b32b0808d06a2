// A mount with `--rw fuse` from the command line on: that changes are there, last as long as they
// should, and leave nothing behind. What each operation does is in writable.test.ts.
import { chmod, mkdtemp, readdir, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test from 'ava';
import { behindProxy, endOf, mountHeld, waits } from '../lib/arriving.ts';
import { listTree, treeDifference } from '../lib/images.ts';
import { Background, must, run, until } from '../lib/proc.ts';
import { type SmallImage, smallImage } from '../lib/small-image.ts';
import { Stage } from '../lib/stage.ts';

/** Everyday changes, of what is in the image and of what is new. */
const CHANGES = `
set -eu
umask 022
echo new > new
mkdir -p a/b/c
echo deep > a/b/c/file
ln -s ../small/file-000 a/link
ln small/file-001 a/hard
echo more >> small/file-002
: > small/file-003
rm small/file-004
mv small/file-005 a/moved
mv small/file-006 small/file-007
chmod 600 small/file-008
chown 12:34 small/file-009
touch -d @1234567890 small/file-010
rm -r medium
mkdir medium
echo instead > medium/new
mv lib usr-lib
cp -a usr-lib lib-copy
mkfifo a/fifo
mknod a/null c 1 3
head -c 3000000 zz-large/twelve-parts > a/copy
printf x | dd of=zz-large/twelve-parts bs=1 seek=5000000 conv=notrunc status=none
truncate -s 4000000 usr-lib/liblarge.so
touch -d @1500000000 . a a/b a/b/c small medium usr-lib lib-copy zz-large new a/b/c/file a/moved a/copy
touch -d @1500000000 a/hard small/file-002 small/file-003 a/fifo a/null medium/new
touch -d @1500000000 zz-large/twelve-parts usr-lib/liblarge.so lib-copy/liblarge.so
touch -h -d @1500000000 a/link
`;

const shell = (directory: string, script: string) => must('sh', ['-c', script], { cwd: directory });

let shared: string;
let image: SmallImage;

test.before(async () => {
  shared = await mkdtemp(join(tmpdir(), 'firstlight-rw-fuse-'));
  image = await smallImage(shared);
});
test.after.always(() => rm(shared, { recursive: true, force: true }));

async function imageOn(stage: Stage): Promise<void> {
  await stage.serve();
  await stage.addImage(`rootfs:${image.tar}`, 'small:1');
}

/** The image's tree as a plain directory of the test's own. */
async function plainTree(stage: Stage): Promise<string> {
  const plain = join(stage.dir, 'plain');
  await must('cp', ['-a', join(shared, 'small-root'), plain]);
  return plain;
}

async function killDaemon(stage: Stage): Promise<void> {
  const pid = await stage.daemonPid();
  process.kill(pid, 'SIGKILL');
  await until('the daemon has ended', async () => {
    return (await run('kill', ['-0', String(pid)])).code !== 0 || undefined;
  });
}

test.serial('everyday changes give the tree that a plain directory has', async (t) => {
  const stage = await Stage.open(t);
  await imageOn(stage);
  const plain = await plainTree(stage);
  const dir = await stage.mount('small:1', ['--rw', 'fuse']);
  t.deepEqual(treeDifference(await listTree(plain), await listTree(dir)), []);
  await shell(plain, CHANGES);
  await shell(dir, CHANGES);
  const changed = await listTree(plain);
  t.deepEqual(treeDifference(changed, await listTree(dir)), []);
  // Also when the kernel has forgotten everything.
  await must('sh', ['-c', 'echo 2 > /proc/sys/vm/drop_caches']);
  t.deepEqual(treeDifference(changed, await listTree(dir)), []);

  const { rw, tree } = await stage.mountStatus(dir);
  t.is(rw, 'fuse');
  t.true(tree!.upcalls > 20);
  t.is(tree!.failures, 0);
  const { damaged } = await stage.json<{ damaged: string[] }>(['verify']);
  t.deepEqual(damaged, [], 'nothing that the store holds was written to');

  await stage.must(['umount', dir]);
  t.deepEqual(await readdir(join(stage.root, 'snapshots')), []);
  const again = await stage.mount('small:1', ['--rw', 'fuse']);
  await must('test', ['!', '-e', join(again, 'new')]);
  await stage.must(['umount', again]);
});

test.serial('two mounts of one image change apart from each other', async (t) => {
  const stage = await Stage.open(t);
  await imageOn(stage);
  const one = await stage.mount('small:1', ['--rw', 'fuse'], 'one');
  const two = await stage.mount('small:1', ['--rw', 'fuse'], 'two');
  await shell(one, 'echo one >> small/file-000; rm small/file-001');
  await shell(two, 'echo two > small/file-001; test "$(wc -c < small/file-000)" = 40960');
  await shell(one, 'test ! -e small/file-001; test "$(tail -c 4 small/file-000)" = one');
  await stage.must(['umount', one]);
  await shell(two, 'test "$(cat small/file-001)" = two');
  await stage.must(['umount', two]);
  t.pass();
});

test.serial(
  'a write to what has not arrived waits for it; one that replaces it does not',
  async (t) => {
    const stage = await Stage.open(t);
    await imageOn(stage);
    const proxy = await behindProxy(stage);
    const dir = await mountHeld(stage, proxy, 'small:1', ['--rw', 'fuse']);
    const start = (script: string) => new Background('sh', ['-c', script], { cwd: dir });
    const short = await endOf(start('echo short > zz-large/twelve-parts'), 'a file is replaced');
    t.is(short.code, 0, short.stderr);
    t.true(proxy.isHolding, 'what is thrown away was not waited for');
    const tail = start(`printf tail >> ${image.library}`);
    await waits(stage, dir);
    t.true(tail.running);
    proxy.flow();
    t.is((await tail.ended).code, 0, tail.stderr);
    await shell(dir, `test "$(tail -c 4 ${image.library})" = tail`);
    const library = join(shared, 'small-root', image.library);
    await must('cmp', ['-n', '3000000', library, join(dir, image.library)]);
    await shell(dir, 'test "$(cat zz-large/twelve-parts)" = short');
  },
);

/** Requests of a mount that came to its tree so far. */
async function upcalls(stage: Stage, directory: string): Promise<number> {
  return (await stage.mountStatus(directory)).tree?.upcalls ?? 0;
}

test.serial(
  'paths from the root that somebody else walks, and files opened again, cost the tree little',
  async (t) => {
    const stage = await Stage.open(t);
    await imageOn(stage);
    const directory = await stage.mount('small:1', ['--rw', 'fuse']);
    await shell(directory, 'echo new >new; chmod 644 new; mkdir mine; chmod 777 mine');
    await chmod(stage.dir, 0o711);
    const other = (script: string) =>
      must('setpriv', ['--reuid=1234', '--regid=1234', '--clear-groups', 'sh', '-c', script]);
    const count = 300;
    const walk = `for i in $(seq ${count}); do read -r line <"$0"; done`;
    const walked = await upcalls(stage, directory);
    await other(`set -- '${join(directory, 'new')}'; ${walk.replaceAll('$0', '$1')}`);
    const forWalks = (await upcalls(stage, directory)) - walked;
    t.true(forWalks < count / 2, `${forWalks} upcalls for ${count} walks`);
    // The ACL of the root is what was set last, to the kernel as well.
    const enter = () => other(`cat '${join(directory, 'new')}'`);
    t.is(await enter(), 'new\n');
    await must('setfacl', ['-m', 'u:1234:---', directory]);
    await t.throwsAsync(enter, { message: /Permission denied/ });
    t.regex(await must('getfacl', ['-cp', directory]), /user:1234:---/);
    await must('setfacl', ['-b', directory]);
    t.is(await enter(), 'new\n');
    // open for reading and writing, fstat by `test -s /dev/fd/3`, close.
    const opened = await upcalls(stage, directory);
    await other(
      `cd '${join(directory, 'mine')}'; for i in $(seq ${count}); do exec 3<>file; test -s /dev/fd/3; exec 3>&-; done`,
    );
    const forOpens = (await upcalls(stage, directory)) - opened;
    // One for the open, one for its attributes before it; none for those of an open file.
    t.true(forOpens < count * 2.5, `${forOpens} upcalls for ${count} opens`);
  },
);

test.serial('unmounted while in use: refused, or lazily with the changes going on', async (t) => {
  const stage = await Stage.open(t);
  await imageOn(stage);
  const dir = await stage.mount('small:1', ['--rw', 'fuse']);
  const fifo = join(stage.dir, 'go');
  const said = join(stage.dir, 'said');
  await must('mkfifo', [fifo]);
  const script = `cd ${dir} && echo in && read go < ${fifo} && echo late >> small/file-000 && tail -c 5 small/file-000 > ${said}`;
  const inside = run('sh', ['-c', script]);
  await until('somebody is inside', async () => {
    const { code } = await run('sh', ['-c', `fuser -m ${dir} >/dev/null 2>&1`]);
    return code === 0 || undefined;
  });
  const refused = await stage.run(['umount', dir]);
  t.is(refused.code, 6);
  await shell(dir, 'echo still > there');
  await stage.must(['umount', '--lazy', dir]);
  await must('sh', ['-c', `echo go > ${fifo}`]);
  t.is((await inside).code, 0);
  t.is(await readFile(said, 'utf8'), 'late\n');
  await until('what was written is removed with its last user', async () => {
    return (await readdir(join(stage.root, 'snapshots'))).length === 0 || undefined;
  });
});

test.serial('after kill -9 of the daemon the same mount finds its changes again', async (t) => {
  const stage = await Stage.open(t);
  await imageOn(stage);
  const plain = await plainTree(stage);
  const dir = await stage.mount('small:1', ['--rw', 'fuse', '--wait']);
  await shell(plain, CHANGES);
  await shell(dir, CHANGES);
  const inodes = await must('sh', ['-c', 'find . -printf "%P %i\\n" | sort'], { cwd: dir });
  await killDaemon(stage);
  await stage.must(['mount', 'small:1', dir, '--rw', 'fuse']);
  t.deepEqual(treeDifference(await listTree(plain), await listTree(dir)), []);
  t.is(await must('sh', ['-c', 'find . -printf "%P %i\\n" | sort'], { cwd: dir }), inodes);
  // The other way to write takes the same changes.
  await killDaemon(stage);
  await must('umount', ['-l', dir]);
  await stage.must(['mount', 'small:1', dir, '--rw', 'overlay']);
  await must('test', ['-e', join(dir, 'a/moved')]);
  await shell(dir, 'test ! -e small/file-004; test "$(cat new)" = new');
});

test.serial(
  'a full disk is told to the program, harms nothing, and is over when there is room',
  async (t) => {
    const stage = await Stage.open(t);
    await imageOn(stage);
    const disk = join(stage.dir, 'root');
    await must('mkdir', [disk]);
    await must('mount', ['-t', 'tmpfs', '-o', 'size=40m', 'tmpfs', disk]);
    stage.onClose(async () => {
      await stage.run(['daemon', '--stop']);
      await must('umount', [disk]);
    });
    const dir = await stage.mount('small:1', ['--rw', 'fuse', '--wait']);
    await shell(disk, 'head -c 100000000 /dev/zero > ballast || true');
    for (const command of ['echo x >> zz-large/twelve-parts', 'cp zz-large/twelve-parts copy']) {
      const { code, stderr } = await run('sh', ['-c', command], { cwd: dir });
      t.not(code, 0);
      t.regex(stderr, /No space left/);
    }
    const large = join(shared, 'small-root/zz-large/twelve-parts');
    await must('cmp', [large, join(dir, 'zz-large/twelve-parts')]);
    await must('rm', [join(disk, 'ballast')]);
    await shell(
      dir,
      'rm -f copy; echo x >> zz-large/twelve-parts; test "$(tail -c 2 zz-large/twelve-parts)" = x',
    );
  },
);
