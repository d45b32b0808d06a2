// New files, and their removal, as native threads do it for the writable tree: what programs see of them is
// what a plain directory shows, whoever makes them and whatever else is done at the same time; and nothing
// is lost with the daemon. How often the tree is asked stands here too.
import { mkdir, mkdtemp, rm, statfs } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test from 'ava';
import { listTree, treeDifference } from '../lib/images.ts';
import { must, run, until } from '../lib/proc.ts';
import { type SmallImage, smallImage } from '../lib/small-image.ts';
import { Stage } from '../lib/stage.ts';

let shared: string;
let image: SmallImage;

test.before(async () => {
  shared = await mkdtemp(join(tmpdir(), 'firstlight-rw-lent-'));
  image = await smallImage(shared);
});
test.after.always(() => rm(shared, { recursive: true, force: true }));

async function mounted(stage: Stage): Promise<string> {
  await stage.serve();
  await stage.addImage(`rootfs:${image.tar}`, 'small:1');
  return stage.mount('small:1', ['--rw', 'fuse', '--wait']);
}

const python = (directory: string, script: string, ...args: string[]) =>
  must('python3', ['-c', script, ...args], { cwd: directory });

const upcalls = async (stage: Stage, directory: string): Promise<number> =>
  (await stage.mountStatus(directory)).tree?.upcalls ?? Number.NaN;

const LIST = 'find . -printf "%P %i %y %n %s\\n" | sort';

async function killDaemon(stage: Stage): Promise<void> {
  const pid = await stage.daemonPid();
  process.kill(pid, 'SIGKILL');
  await until('the daemon has ended', async () => {
    return (await run('kill', ['-0', String(pid)])).code !== 0 || undefined;
  });
}

test.serial(
  'files that come and go cost the tree little, in new directories and in the image’s',
  async (t) => {
    const stage = await Stage.open(t);
    const dir = await mounted(stage);
    await mkdir(join(dir, 'new'));
    const files = 400;
    for (const place of ['new', 'small']) {
      const before = await upcalls(stage, dir);
      await python(
        join(dir, place),
        `
import os
for i in range(${files}):
    fd = os.open(f'file-{i:06}-new', os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o644)
    os.write(fd, b'x' * 4096)
    os.close(fd)
    os.unlink(f'file-{i:06}-new')
`,
      );
      const asked = (await upcalls(stage, dir)) - before;
      // What the kernel forgets it hears, of each file where it has the time; of the rest only what comes
      // while it works on something. With the tree it is three for each file, or more.
      t.true(asked < files * 1.5, `${asked} upcalls for ${files} files that came and went`);
    }
    t.is((await stage.mountStatus(dir)).tree?.failures, 0);
  },
);

const FILES = 40;
const FILE_BYTES = 1 << 20;
const SPACE = `
import os, sys
for i in range(${FILES}):
    if sys.argv[1] == 'make': open(f'f{i}', 'wb').write(b'x' * ${FILE_BYTES})
    else: os.unlink(f'f{i}')
if sys.argv[1] != 'remove quietly':
    fs = os.statvfs('.')
    print(fs.f_bavail * fs.f_frsize)
`;

for (const { what, size } of [
  { what: 'has room', size: '2g' },
  // Less than there has to be where anything is put off (kRoomBytes of native/session.cc).
  { what: 'is small', size: '200m' },
]) {
  test.serial(
    `the space of removed files comes back when nothing more is asked, on a disk that ${what}`,
    async (t) => {
      const stage = await Stage.open(t);
      await mkdir(stage.root);
      await must('mount', ['-t', 'tmpfs', '-o', `size=${size}`, 'tmpfs', stage.root]);
      stage.onClose(async () => {
        await stage.run(['daemon', '--stop']);
        await must('umount', [stage.root]);
      });
      const dir = join(await mounted(stage), 'new');
      await mkdir(dir);
      const free = async () => {
        const { bavail, bsize } = await statfs(stage.root);
        return bavail * bsize;
      };
      const before = await free();
      await python(dir, SPACE, 'make');
      t.true(before - (await free()) >= FILES * FILE_BYTES);
      const told = Number(await python(dir, SPACE, 'remove'));
      // The kernel itself lets some FORGETs wait for a few requests.
      const late = before - told - 10 * FILE_BYTES;
      t.true(late <= 0, `${late} bytes too many were in use when it was asked in the mount`);
      const back = async () => before - (await free()) < FILE_BYTES;
      await until('the space is back', back);
      await python(dir, SPACE, 'make');
      await python(dir, SPACE, 'remove quietly');
      await until('the space is back that nobody has asked for', back);
    },
  );
}

test.serial('files that stay are looked at and opened again without the tree', async (t) => {
  const stage = await Stage.open(t);
  const dir = await mounted(stage);
  await mkdir(join(dir, 'new'));
  const files = 300;
  const before = await upcalls(stage, dir);
  await python(
    join(dir, 'new'),
    `
import os
for i in range(${files}):
    for flags in (os.O_CREAT | os.O_RDWR, os.O_RDONLY, os.O_RDWR, os.O_WRONLY | os.O_APPEND):
        fd = os.open(f'{i}', flags, 0o640)
        if flags != os.O_RDONLY: os.write(fd, b'x' * 100)
        os.close(fd)
    assert os.stat(f'{i}').st_size == 200, os.stat(f'{i}')
`,
  );
  const asked = (await upcalls(stage, dir)) - before;
  t.true(asked < files, `${asked} upcalls for ${files} files that were opened four times`);
  // One that gets setuid is the tree's again: a write by another takes it away.
  await must('chmod', ['4777', join(dir, 'new/8')]);
  const append = `echo more >> '${join(dir, 'new/8')}'`;
  await must('chmod', ['711', stage.dir]);
  await must('setpriv', ['--reuid=1234', '--regid=1234', '--clear-groups', 'sh', '-c', append]);
  t.is(
    (await must('stat', ['-c', '%a', join(dir, 'new/8')])).trim(),
    '777',
    'a write takes setuid',
  );
});

/** Prints what each step gives. Ends with a tree that can be compared. */
const STEPS = `
import errno, json, os, stat, subprocess, sys
os.umask(0)
said = []
def tell(what, call):
    try: said.append([what, call()])
    except OSError as error: said.append([what, errno.errorcode[error.errno]])
def look(name):
    st = os.lstat(name)
    return [oct(st.st_mode), st.st_uid, st.st_gid, st.st_nlink, st.st_size]
def make(name, mode=0o666, flags=os.O_RDWR, data=b''):
    fd = os.open(name, os.O_CREAT | os.O_EXCL | flags, mode)
    if data: os.write(fd, data)
    os.close(fd)
    return look(name)
def as_user(script):
    done = subprocess.run(['setpriv', '--reuid=1234', '--regid=1235', '--clear-groups', 'sh', '-c', script], capture_output=True)
    return done.returncode == 0
os.mkdir('d', 0o777)
os.chdir('d')
for i in range(3): tell('miss', lambda: os.stat(f'none-{i}').st_mode)
for mask in (0, 0o022, 0o077, 0o777):
    os.umask(mask)
    for mode in (0o666, 0o777, 0o1644, 0o4755, 0o2755, 0):
        tell(f'{mask:o} {mode:o}', lambda: make(f'm{mask:o}-{mode:o}', mode))
os.umask(0)
for flags in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR | os.O_APPEND, os.O_RDWR | os.O_SYNC, os.O_WRONLY | os.O_TRUNC):
    tell(f'flags {flags:o}', lambda: make(f'f{flags:o}', 0o644, flags, b'' if flags == 0 else b'data'))
tell('again', lambda: make('m0-666'))
tell('long', lambda: make('x' * 255))
tell('too long', lambda: make('x' * 256))
tell('by another', lambda: as_user('umask 027; echo mine > mine && test -O mine'))
tell('mine', lambda: look('mine'))
os.mkdir('s'); os.chown('s', 0, 4321); os.chmod('s', 0o2777)
tell('miss', lambda: os.stat('s/none').st_mode)
tell('setgid', lambda: make('s/a', 0o664))
tell('setgid by another', lambda: as_user('echo x > s/b'))
tell('setgid b', lambda: look('s/b'))
os.mkdir('acl', 0o777)
tell('miss', lambda: os.stat('acl/none').st_mode)
tell('before the ACL', lambda: make('acl/before', 0o666))
os.umask(0o077)
subprocess.run(['setfacl', '-d', '-m', 'u:1234:rw,g::r,o::-', 'acl'], check=True)
tell('with the ACL', lambda: make('acl/with', 0o666))
subprocess.run(['setfacl', '-k', 'acl'], check=True)
tell('miss', lambda: os.stat('acl/none-2').st_mode)
tell('without the ACL', lambda: make('acl/without', 0o666))
os.umask(0)
# Names that go.
fd = os.open('gone', os.O_CREAT | os.O_RDWR, 0o600)
os.write(fd, b'still here')
os.unlink('gone')
tell('gone', lambda: look('gone'))
tell('held', lambda: [os.fstat(fd).st_nlink, os.pread(fd, 99, 0).decode()])
make('gone', 0o644, os.O_RDWR, b'another')
tell('by descriptor', lambda: open(f'/proc/self/fd/{fd}').read())
held = os.open('gone', os.O_PATH)
os.unlink('gone')
tell('held by path', lambda: [os.fstat(held).st_nlink, os.fstat(held).st_size])
tell('read by path', lambda: open(f'/proc/self/fd/{held}').read())
os.close(held); os.close(fd)
make('one'); os.link('one', 'two')
tell('linked', lambda: look('two'))
os.unlink('one'); tell('one of two', lambda: look('two'))
os.unlink('two'); tell('none', lambda: look('two'))
make('from', data=b'from'); make('to', data=b'to')
os.rename('from', 'to'); tell('renamed', lambda: open('to').read())
tell('unlink a directory', lambda: os.unlink('s'))
tell('unlink nothing', lambda: os.unlink('nothing'))
os.symlink('to', 'link'); os.unlink('link'); tell('link', lambda: look('link'))
os.mkfifo('fifo'); os.unlink('fifo'); tell('fifo', lambda: look('fifo'))
# A directory that is moved, and one that takes its place.
os.mkdir('old'); make('old/a'); os.rename('old', 'moved'); make('moved/b')
os.mkdir('old'); make('old/c')
tell('moved', lambda: sorted(os.listdir('moved')) + sorted(os.listdir('old')))
os.unlink('old/c'); os.rename('moved', 'old'); make('old/d'); os.unlink('old/a')
tell('replaced', lambda: sorted(os.listdir('old')))
tell('removed', lambda: [os.unlink('old/b'), os.unlink('old/d'), os.rmdir('old')])
tell('in it', lambda: make('old/e'))
# In a directory of the image: its names, covered and not.
os.chdir('../small')
tell('miss', lambda: os.stat('none').st_mode)
tell('new', lambda: make('new'))
tell('of the image', lambda: make('file-000'))
os.unlink('file-001'); tell('over a whiteout', lambda: make('file-001', 0o640, os.O_RDWR, b'new'))
os.unlink('file-001'); tell('covered again', lambda: look('file-001'))
os.rename('file-002', 'moved-002'); tell('moved', lambda: look('moved-002')[3:])
os.unlink('moved-002'); tell('its old name', lambda: look('file-002'))
os.rename('file-003', 'moved-003'); os.unlink('new')
tell('listed', lambda: sorted(os.listdir('.')))
print(json.dumps(said))
`;

test.serial(
  'files that native threads make and remove are what a plain directory has',
  async (t) => {
    const stage = await Stage.open(t);
    const dir = await mounted(stage);
    const plain = join(stage.dir, 'plain');
    await must('cp', ['-a', join(shared, 'small-root'), plain]);
    const expected = JSON.parse(await python(plain, STEPS)) as unknown[];
    const said = JSON.parse(await python(dir, STEPS)) as unknown[];
    t.deepEqual(said, expected);
    // Their times are others.
    const same = async (root: string) =>
      must('sh', ['-c', 'find . -printf "%P %y %m %n %U %G\\n" | sort'], { cwd: root });
    t.is(await same(dir), await same(plain));
    const inodes = await must('sh', ['-c', LIST], { cwd: dir });
    await killDaemon(stage);
    await stage.must(['mount', 'small:1', dir, '--rw', 'fuse']);
    t.is(await must('sh', ['-c', LIST], { cwd: dir }), inodes, 'after kill -9, as before');
  },
);

/** Threads that use the same few names of two directories in every way. */
const RACE = `
import os, random, sys, threading, time
end = time.monotonic() + float(sys.argv[1])
names = [f'{d}/{n}' for d in ('new', 'small') for n in ('a', 'b', 'c', 'file-000', 'file-001')]
bad = []
def work(seed):
    r = random.Random(seed)
    while time.monotonic() < end:
        a, b = r.choice(names), r.choice(names)
        try:
            what = r.randrange(10)
            if what < 3:
                fd = os.open(a, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o644)
                mark = f'{a} {r.random()}'.encode()
                os.pwrite(fd, mark, 0)
                # Others may have appended to it.
                if not os.pread(fd, 200, 0).startswith(mark): bad.append('another file')
                if os.fstat(fd).st_size < len(mark): bad.append('another size')
                os.close(fd)
            elif what < 5: os.unlink(a)
            elif what == 5: os.rename(a, b)
            elif what == 6: os.link(a, b)
            elif what == 7:
                fd = os.open(a, os.O_RDWR | os.O_APPEND)
                os.write(fd, b'+')
                os.fstat(fd)
                os.close(fd)
            elif what == 8: os.chmod(a, r.choice([0o600, 0o644, 0o4755]))
            else:
                os.listdir(r.choice(['new', 'small']))
                os.stat(a)
        except (FileNotFoundError, FileExistsError): pass
        except OSError as error:
            # The file was replaced while it was being opened, twice.
            if error.errno != 116: bad.append(f'{what} {error}')
threads = [threading.Thread(target=work, args=(int(sys.argv[2]) + i,)) for i in range(4)]
for t in threads: t.start()
for t in threads: t.join()
for name in names:
    directory, base = name.split('/')
    if os.path.lexists(name) != (base in os.listdir(directory)): bad.append(f'{name} is listed wrongly')
print(bad)
`;

test.serial(
  'names that many threads make, remove, move and link are the same for all of them, and after kill -9',
  async (t) => {
    const stage = await Stage.open(t);
    const dir = await mounted(stage);
    await mkdir(join(dir, 'new'));
    const seed = Number(process.env.FIRSTLIGHT_SEED ?? Date.now() & 0xffffff);
    t.log(`FIRSTLIGHT_SEED=${seed}`);
    t.is((await python(dir, RACE, '4', String(seed))).trim(), '[]');
    t.is((await stage.mountStatus(dir)).tree?.failures, 0);
    const before = await listTree(dir);
    const inodes = await must('sh', ['-c', LIST], { cwd: dir });
    await must('sh', ['-c', 'echo 2 > /proc/sys/vm/drop_caches']);
    t.deepEqual(
      treeDifference(before, await listTree(dir)),
      [],
      'what the kernel had is what there is',
    );
    await killDaemon(stage);
    await stage.must(['mount', 'small:1', dir, '--rw', 'fuse']);
    t.is(await must('sh', ['-c', LIST], { cwd: dir }), inodes);
    t.deepEqual(treeDifference(before, await listTree(dir)), []);
  },
);
