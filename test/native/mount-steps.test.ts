// What may happen between two steps of a mount: the process is killed, the kernel cannot clone. What
// does not live here: sessions that have begun (lifecycle.test.ts).
import { execFile } from 'node:child_process';
import {
  chmod,
  lstat,
  mkdir,
  mkdtemp,
  readdir,
  readFile,
  readlink,
  rm,
  writeFile,
} from 'node:fs/promises';
import { constants, release, tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import test, { type ExecutionContext } from 'ava';
import { Fixture, Tree, until } from './fixture.ts';

const run = promisify(execFile);

let directory: string;
let faults: string;

test.before(async () => {
  directory = await mkdtemp(join(tmpdir(), 'firstlight-faults-'));
  faults = join(directory, 'mount-fault.so');
  const source = new URL('./mount-fault.c', import.meta.url).pathname;
  const flags = ['-O1', '-Wall', '-shared', '-fPIC'];
  await run(process.env.CC ?? 'cc', [...flags, '-o', faults, source, '-ldl']);
});

test.after.always(async () => {
  await rm(directory, { recursive: true, force: true });
});

/** A tree of which a read-only mount has ACLs, too. */
function withAcl(): Tree {
  const tree = new Tree();
  // user::rwx group::r-x other::r-x (version 2; tag, permissions, id).
  const acl = Buffer.from('0200000001000700ffffffff04000500ffffffff20000500ffffffff', 'hex');
  const xattrs = new Map([['system.posix_acl_access', acl]]);
  tree.add('', 'shared', { type: 'dir', mode: 0o755, xattrs });
  return tree;
}

/** Detached mounts can be cloned (Linux 6.15). */
function clonesDetached(): boolean {
  const [major = 0, minor = 0] = release().split('.').map(Number);
  return major > 6 || (major === 6 && minor >= 15);
}

/** A store, and a process for its mount to which something will happen. */
async function prepared(
  t: ExecutionContext,
  fault: Record<string, string>,
  tree = new Tree(),
): Promise<Fixture> {
  tree.file('dir/small', 'small content');
  const fixture = await Fixture.make(t, tree);
  await fixture.storeAll();
  await fixture.startChild({ preload: faults, env: fault });
  return fixture;
}

/** Fields of mountinfo. */
async function mountedAt(point: string): Promise<string[] | undefined> {
  const lines = (await readFile('/proc/self/mountinfo', 'utf8')).split('\n');
  return lines.map((line) => line.split(' ')).find((fields) => fields[4] === point);
}

/** Aborts the connections of a process, so that it can end. */
async function abortConnections(fixture: Fixture): Promise<void> {
  const control = join(fixture.dir, 'control');
  await mkdir(control);
  await run('mount', ['-t', 'fusectl', 'none', control]);
  const tasks = `/proc/${fixture.child.pid}/task`;
  for (const tid of await readdir(tasks)) {
    for (const fd of await readdir(`${tasks}/${tid}/fd`).catch(() => [])) {
      if ((await readlink(`${tasks}/${tid}/fd/${fd}`).catch(() => '')) !== '/dev/fuse') continue;
      const info = await readFile(`${tasks}/${tid}/fdinfo/${fd}`, 'utf8');
      const connection = /^fuse_connection:\s*(\d+)$/m.exec(info)?.[1];
      if (connection !== undefined) await writeFile(`${control}/${connection}/abort`, '1');
    }
  }
}

// 1: the handshake. 2 and 3: what the clone of the root asks.
for (const answer of [1, 2, 3]) {
  test(`a process that is killed in place of its answer ${answer} is gone, and so is its mount`, async (t) => {
    const fixture = await prepared(t, { KILL_AT_ANSWER: `${answer}` });
    const { child } = fixture;
    const mounting = fixture.mount({ ready: true, writable: true });
    const refused = t.throwsAsync(mounting, { message: /the mounting process ended: SIGKILL/ });
    try {
      await until('the process is gone', async () => child.signalCode !== null);
    } catch (error) {
      await abortConnections(fixture);
      throw error;
    }
    await refused;
    t.is(await mountedAt(`${fixture.dir}/mnt0`), undefined);
  });
}

const { ENOSYS, EPERM } = constants.errno;
// Longer than fsconfig(2) takes; names of images may be.
const LONG = `registry.example.com/${'x'.repeat(250)}:tag`;
for (const { where, fault, source } of [
  { where: 'fsopen is filtered (EPERM)', fault: { NO_FSOPEN: `${EPERM}` }, source: 'image:1' },
  { where: 'fsopen is filtered (ENOSYS)', fault: { NO_FSOPEN: `${ENOSYS}` }, source: 'image:1' },
  { where: 'the source is long', fault: {}, source: LONG },
]) {
  for (const writable of [true, false]) {
    const kind = writable ? 'writable' : 'read-only';
    test(`where ${where}, it is mounted all the same (${kind})`, async (t) => {
      const fixture = await prepared(t, fault);
      const { points } = await fixture.mount({ ready: true, writable, source });
      const fields = await mountedAt(points[0]!);
      t.deepEqual(fields?.slice(-3, -1), ['fuse.firstlight', source]);
      t.regex(fields!.at(-1)!, writable ? /^rw,/ : /^ro,/);
      t.is(await readFile(`${points[0]}/dir/small`, 'utf8'), 'small content');
      await fixture.send({ do: 'unmount', mount: 0, detach: false });
      t.is(await mountedAt(points[0]!), undefined);
    });
  }
}

for (const writable of [true, false]) {
  const kind = writable ? 'a writable mount' : 'a read-only mount with ACLs';
  test(`where the kernel cannot clone, ${kind} shows the image and no more`, async (t) => {
    const fixture = await prepared(t, { NO_CLONE: '1' }, withAcl());
    const { points } = await fixture.mount({ ready: true, writable });
    const root = points[0]!;
    t.is((await mountedAt(root))?.[3], '/', 'it is the root of the filesystem');
    await t.throwsAsync(lstat(`${root}/rootfs`), { code: 'ENOENT' });
    t.is(await readFile(`${root}/dir/small`, 'utf8'), 'small content');
    t.deepEqual(await readdir(root), ['dir', 'shared']);
    if (writable) {
      await writeFile(`${root}/rootfs`, 'text', { flag: 'wx' });
      t.is(await readFile(`${root}/rootfs`, 'utf8'), 'text');
    }
    await fixture.send({ do: 'unmount', mount: 0, detach: false });
  });
}

// Of the root that FUSE makes the kernel asks for the ACL again with each path (native/root_below.h).
(clonesDetached() ? test : test.skip)(
  'paths that others have walked once are walked without a request',
  async (t) => {
    for (const writable of [true, false]) {
      const fixture = await prepared(t, {}, withAcl());
      await chmod(fixture.dir, 0o755);
      const { points } = await fixture.mount({ ready: true, writable });
      t.is((await mountedAt(points[0]!))?.[3], '/rootfs');
      const script =
        'while read -r path; do [ -s "$path" ] && echo "sees $path" || echo "lacks $path"; done';
      const other = ['--reuid=1234', '--regid=77', '--clear-groups', 'sh', '-c', script];
      const walker = fixture.start('setpriv', ...other);
      const path = `${points[0]}/dir/small`;
      const paths = Array.from(
        { length: 100 },
        (_, i) => `${points[0]}${'/.'.repeat(i)}/dir/small`,
      );
      walker.child.stdin!.write(`${path}\n`);
      await walker.says(`sees ${path}\n`);
      // Nobody would answer.
      process.kill(fixture.child.pid!, 'SIGSTOP');
      try {
        walker.child.stdin!.write(`${paths.join('\n')}\n`);
        await walker.says(`sees ${paths.at(-1)}\n`);
      } finally {
        process.kill(fixture.child.pid!, 'SIGCONT');
      }
      t.false(walker.out.includes('lacks'));
    }
  },
);
