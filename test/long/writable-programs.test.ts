// Programs that people run, inside writable mounts of a Debian image: package installation, git, PostgreSQL,
// SQLite, fio, stress-ng, npm. None may fail, nothing may be left behind, and the image's contents must be
// what they were.
import { mkdir, readdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import test, { type ExecutionContext } from 'ava';
import { testImage } from '../lib/images.ts';
import { must, until } from '../lib/proc.ts';
import { Stage } from '../lib/stage.ts';
import type { Subject } from '../posix/script.ts';
import { closeSubject, openSubject, serveTar, wantedSubjects } from '../posix/subject.ts';

const MINUTES = 60_000;
const POSTGRES = '/usr/lib/postgresql/15/bin';

/** What runs in the chroot: a shell script, with no terminal and no network. */
async function inside(directory: string, script: string, timeoutMs = 5 * MINUTES): Promise<string> {
  const env = { PATH: '/usr/sbin:/usr/bin:/sbin:/bin', HOME: '/root', LC_ALL: 'C.UTF-8' };
  const command = ['chroot', directory, 'sh', '-euc', script];
  return must('unshare', ['--net', '--ipc', ...command], { timeoutMs, env });
}

/** What a container's runtime would mount: devices, processes, memory. */
async function withRuntimeMounts(directory: string, work: () => Promise<void>): Promise<void> {
  const mounts = [
    ['-t', 'tmpfs', 'dev', 'dev'],
    ['-t', 'proc', 'proc', 'proc'],
  ];
  for (const options of mounts) {
    await must('mount', [...options.slice(0, -1), join(directory, options.at(-1)!)]);
  }
  try {
    const nodes = 'mkdir /dev/shm; mknod -m 666 /dev/null c 1 3; mknod -m 666 /dev/zero c 1 5;';
    await inside(directory, `${nodes} mknod -m 666 /dev/urandom c 1 9; chmod 1777 /dev/shm`);
    await work();
  } finally {
    for (const options of mounts) await must('umount', ['-l', join(directory, options.at(-1)!)]);
  }
}

/** Every object of the store still has the digest that is its name. */
async function assertContentsUnchanged(t: ExecutionContext, stage: Stage): Promise<void> {
  const verified = await stage.json<{ contents: number; damaged: string[] }>(['verify'], {
    timeoutMs: 5 * MINUTES,
  });
  t.true(verified.contents > 1000);
  t.deepEqual(verified.damaged, []);
  // The same once more, by another program than the one under test.
  const content = join(stage.root, 'content');
  const sums = await must('sh', ['-c', 'find . -type f -print0 | xargs -0 sha256sum'], {
    cwd: content,
    timeoutMs: 5 * MINUTES,
  });
  for (const line of sums.trim().split('\n')) {
    const [sum = '', path = ''] = line.split('  ');
    t.is(path.replace('./', '').replace('/', ''), sum);
  }
}

const APT = `
printf 'deb [trusted=yes] file:/repo ./\\n' > /etc/apt/sources.list
rm -f /etc/apt/sources.list.d/*
export DEBIAN_FRONTEND=noninteractive
apt-get update -q
apt-get install -y -q --no-install-recommends less nano vim-tiny
dpkg --audit
dpkg --verify less nano vim-tiny vim-common
vi --version | head -n 1
test "$(readlink -f /usr/bin/vi)" = /usr/bin/vim.tiny
apt-get purge -y -q nano
test ! -e /usr/bin/nano
apt-get install -y -q --reinstall less
`;

const GIT = `
git config --global user.name A; git config --global user.email a@b.c
git init -q --bare /srv/origin.git
git init -q /srv/one; cd /srv/one
for i in $(seq 1 60); do mkdir -p d$((i % 7)); seq 1 $((i * 50)) > d$((i % 7))/f$i; git add .; git commit -q -m "change $i"; done
git remote add origin /srv/origin.git; git push -q origin HEAD:main
git clone -q -b main /srv/origin.git /srv/two; cd /srv/two
git gc -q --aggressive --prune=now; git fsck --strict
git checkout -q HEAD~30; git checkout -q main; git mv d1 e1; git commit -q -m moved; git repack -q -a -d -f
git fsck --strict; test -z "$(git status --porcelain)"
cd /srv/one; git pull -q --rebase origin main
`;

const SQLITE = `
cd /var/tmp
sqlite3 a.db "PRAGMA journal_mode=WAL; CREATE TABLE t(a INTEGER PRIMARY KEY, b TEXT); CREATE INDEX i ON t(b);" > /dev/null
for i in 1 2 3 4; do
  for n in $(seq 1 60); do
    echo ".timeout 60000
INSERT INTO t(b) SELECT hex(randomblob(100)) FROM (SELECT 1 UNION SELECT 2 UNION SELECT 3);"
  done | sqlite3 a.db &
done
wait
test "$(sqlite3 a.db 'SELECT count(*) FROM t')" = 720
test "$(sqlite3 a.db 'PRAGMA integrity_check')" = ok
sqlite3 a.db 'PRAGMA wal_checkpoint(TRUNCATE); VACUUM; DELETE FROM t WHERE a % 2; PRAGMA integrity_check' > /dev/null
`;

const DATABASE = `
install -d -o postgres -g postgres -m 700 /srv/data
as() { setpriv --reuid=postgres --regid=postgres --clear-groups "$@"; }
cd /
as ${POSTGRES}/initdb -D /srv/data -A trust --no-locale -E UTF8 --data-checksums > /dev/null
as ${POSTGRES}/pg_ctl -D /srv/data -o '-k /tmp -h ""' -l /srv/data/log -w start > /dev/null
as ${POSTGRES}/pgbench -q -h /tmp -i -s 2 postgres 2> /dev/null
as ${POSTGRES}/pgbench -h /tmp -c 4 -j 2 -T 10 postgres
as ${POSTGRES}/pg_ctl -D /srv/data -m fast -w stop > /dev/null
as ${POSTGRES}/pg_checksums -D /srv/data --check
`;

const FIO = `
mkdir /var/tmp/fio; cd /var/tmp/fio
for engine in psync mmap; do
  fio --name=$engine --ioengine=$engine --rw=randwrite --bs=4k-64k --bsrange=4k-64k --size=24m --numjobs=2 --verify=crc32c \\
    --do_verify=1 --verify_fatal=1 --fsync=200 --minimal > /dev/null
done
fio --name=direct --ioengine=psync --direct=1 --rw=randrw --bs=4k --size=8m --verify=md5 --verify_fatal=1 --minimal > /dev/null
rm -r /var/tmp/fio
`;

/** Stressors of file systems that ext4 passes, too. */
const STRESSORS =
  'chdir chmod chown copy-file dentry dir dirdeep dirmany fallocate fcntl fiemap filename flock fstat getdent hdd ' +
  'iomix link locka lockf lockofd mknod mmap open readahead rename seek sendfile symlink sync-file utime xattr';

const STRESS = `
mkdir /var/tmp/stress
for stressor in ${STRESSORS}; do
  if ! stress-ng --temp-path /var/tmp/stress --verify --timeout 2 --$stressor 2 > /tmp/stress.log 2>&1; then
    echo "$stressor:"; cat /tmp/stress.log; exit 1
  fi >&2
done
test -z "$(ls -A /var/tmp/stress)"
`;

/** npm of the machine, with a project whose packages are tars beside it: no registry is asked. */
async function npm(directory: string): Promise<void> {
  const project = join(directory, 'srv/project');
  await mkdir(project, { recursive: true });
  const dependencies: Record<string, string> = {};
  for (let i = 0; i < 12; i++) {
    const name = `part-${i}`;
    const source = join(directory, `srv/packages/${name}`);
    await mkdir(join(source, 'lib'), { recursive: true });
    for (let n = 0; n < 20; n++) await writeFile(join(source, `lib/m${n}.js`), `exports.n=${n};\n`);
    const bin = { [name]: 'lib/m0.js' };
    await writeFile(join(source, 'package.json'), JSON.stringify({ name, version: '1.0.0', bin }));
    await must('npm', ['pack', '--silent', '--pack-destination', project], { cwd: source });
    dependencies[name] = `file:${name}-1.0.0.tgz`;
  }
  const manifest = { name: 'project', version: '1.0.0', dependencies };
  await writeFile(join(project, 'package.json'), JSON.stringify(manifest));
  const offline = ['--offline', '--no-audit', '--no-fund', '--loglevel=error'];
  await must('npm', ['install', ...offline], { cwd: project, timeoutMs: 5 * MINUTES });
  await must('npm', ['ci', ...offline], { cwd: project, timeoutMs: 5 * MINUTES });
  await must('npm', ['ls', '--all'], { cwd: project });
}

const SCRIPTS: [name: string, script: string][] = [
  ['apt-get', APT],
  ['git', GIT],
  ['SQLite', SQLITE],
  ['PostgreSQL', DATABASE],
  ['fio', FIO],
  ['stress-ng', STRESS],
];

async function allPrograms(t: ExecutionContext, subject: Subject): Promise<void> {
  t.timeout(15 * MINUTES);
  const stage = await Stage.open(t);
  const tar = join(await testImage('programs'), 'rootfs.tar');
  await serveTar(stage, tar, 'programs:1');
  const directory = await openSubject(stage, subject, tar, 'programs:1');
  const wanted = process.env.FIRSTLIGHT_PROGRAMS?.split(',');
  await withRuntimeMounts(directory, async () => {
    for (const [name, script] of SCRIPTS) {
      if (wanted !== undefined && !wanted.includes(name)) continue;
      const start = performance.now();
      await t.notThrowsAsync(inside(directory, script), name);
      t.log(`${subject}: ${name}: ${((performance.now() - start) / 1000).toFixed(1)} s`);
    }
  });
  if (wanted === undefined || wanted.includes('npm')) {
    // The daemon is another process: that this one writes into the mount harms nobody.
    await t.notThrowsAsync(npm(directory), 'npm');
  }
  await closeSubject(stage, subject, directory);
  await assertContentsUnchanged(t, stage);
  // What else runs on the machine may have copied the mount into a namespace of its own: until that is gone, the
  // mount is detached and what was written stays.
  const snapshots = join(stage.root, 'snapshots');
  await until('nothing is left behind', async () => (await readdir(snapshots)).length === 0);
}

for (const subject of wantedSubjects().filter((each) => each !== 'plain')) {
  test(`${subject}: 10.7 apt-get, git, SQLite, PostgreSQL, fio, stress-ng and npm run, and the image stays what it was.`, async (t) => {
    await allPrograms(t, subject);
  });
}
