import { chmod, mkdir, mkdtemp, rm, symlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test from 'ava';
import { FirstlightError } from '../../errors/errors.ts';
import { readInRoot, resolveInRoot } from './root-path.ts';
import { findRuntime, lastError, startFailureCode } from './runtime.ts';
import { argsOf, envOf, makeSpec, openFilesLimit, type SpecOptions } from './spec.ts';
import { resolveUser } from './user.ts';

const PASSWD = `root:x:0:0:root:/root:/bin/sh
redis:x:999:998::/home/redis:/bin/false
broken:x:nine:1::/:/bin/false
1000:x:1234:1234::/odd:/bin/sh
# comment
short:x:5`;
const GROUP = `root:x:0:
redis:x:998:
extra:x:50:redis,other
disk:x:6:other
again:x:998:redis`;

test('users by the image', (t) => {
  const cases: [string, number, number, number[], string][] = [
    ['', 0, 0, [0], '/root'],
    ['root', 0, 0, [0], '/root'],
    ['redis', 999, 998, [998, 50], '/home/redis'],
    ['999', 999, 998, [998, 50], '/home/redis'],
    ['999:7', 999, 7, [7], '/home/redis'],
    ['redis:extra', 999, 50, [50], '/home/redis'],
    ['4711', 4711, 0, [0], '/'],
    ['4711:4712', 4711, 4712, [4712], '/'],
    ['1000', 1234, 1234, [1234], '/odd'],
    ['redis:', 999, 998, [998, 50], '/home/redis'],
  ];
  for (const [spec, uid, gid, additionalGids, home] of cases) {
    t.deepEqual(resolveUser(spec, PASSWD, GROUP), { uid, gid, additionalGids, home }, spec);
  }
});

test('a user or group that the image does not know is an error', (t) => {
  for (const spec of [
    'nobody',
    'broken',
    'short',
    'redis:nogroup',
    '4294967295',
    '0:99999999999',
  ]) {
    const error = t.throws(() => resolveUser(spec, PASSWD, GROUP), { instanceOf: FirstlightError });
    t.is(error.kind, 'usage', spec);
  }
});

test('root works without any user database', (t) => {
  t.deepEqual(resolveUser('', '', ''), { uid: 0, gid: 0, additionalGids: [0], home: '/' });
});

const USER = { uid: 0, gid: 0, additionalGids: [], home: '/root' };
const OPTIONS: SpecOptions = {
  config: {
    Entrypoint: ['/entry'],
    Cmd: ['a', 'b'],
    Env: ['A=1', 'PATH=/x', 'B=x=y'],
    WorkingDir: '/w',
  },
  command: [],
  user: USER,
  rootPath: '/r',
  readonlyRoot: false,
  hostname: 'h',
  terminal: false,
  net: 'host',
  cgroupsPath: '/c',
  openFilesMax: 20_000,
  binds: [],
};

test('a command replaces Cmd and not Entrypoint', (t) => {
  t.deepEqual(argsOf({ Entrypoint: ['e'], Cmd: ['c'] }, []), ['e', 'c']);
  t.deepEqual(argsOf({ Entrypoint: ['e'], Cmd: ['c'] }, ['x', 'y']), ['e', 'x', 'y']);
  t.deepEqual(argsOf({ Cmd: ['c'] }, []), ['c']);
  t.deepEqual(argsOf({ Entrypoint: null, Cmd: null }, ['x']), ['x']);
  const error = t.throws(() => argsOf({}, []), { instanceOf: FirstlightError });
  t.is(error.kind, 'usage');
});

test("the image's environment wins over the defaults", (t) => {
  const env = envOf(OPTIONS.config, OPTIONS);
  t.true(env.includes('PATH=/x'));
  t.true(env.includes('B=x=y'));
  t.true(env.includes('HOME=/root'));
  t.true(env.includes('HOSTNAME=h'));
  t.is(env.filter((line) => line.startsWith('PATH=')).length, 1);
  t.false(env.some((line) => line.startsWith('TERM=')));
  t.true(envOf({}, { ...OPTIONS, terminal: true }).includes('TERM=xterm'));
});

interface Spec {
  process: { capabilities: Record<string, string[]>; cwd: string; user: object };
  root: object;
  mounts: { destination: string; type: string; source: string }[];
  linux: { namespaces: { type: string }[] };
}

test('host network has no network namespace and sees the sysfs of the host', (t) => {
  const spec = makeSpec(OPTIONS) as Spec;
  t.deepEqual(
    spec.linux.namespaces.map((n) => n.type),
    ['pid', 'ipc', 'uts', 'mount'],
  );
  t.like(
    spec.mounts.find((m) => m.destination === '/sys'),
    { source: '/sys', type: 'none' },
  );
  t.is(spec.process.cwd, '/w');
  const none = makeSpec({ ...OPTIONS, net: 'none' }) as Spec;
  t.true(none.linux.namespaces.some((n) => n.type === 'network'));
  t.is(none.mounts.find((m) => m.destination === '/sys')?.type, 'sysfs');
});

test('a process that is not root gets no capabilities, but may gain those of files', (t) => {
  const spec = makeSpec({ ...OPTIONS, user: { ...USER, uid: 999, additionalGids: [5] } }) as Spec;
  t.deepEqual(Object.keys(spec.process.capabilities), ['bounding']);
  t.deepEqual(spec.process.user, { uid: 999, gid: 0, additionalGids: [5] });
  const root = makeSpec(OPTIONS) as Spec;
  t.is(root.process.capabilities.effective?.length, 14);
  t.false(root.process.capabilities.bounding?.includes('CAP_SYS_ADMIN'));
});

test('links of an image stay inside it', async (t) => {
  const root = await mkdtemp(join(tmpdir(), 'firstlight-root-'));
  t.teardown(() => rm(root, { recursive: true }));
  await mkdir(join(root, 'etc'));
  await mkdir(join(root, 'run'));
  await writeFile(join(root, 'run/passwd'), 'inside');
  await symlink('/run/passwd', join(root, 'etc/passwd'));
  await symlink('../../../../../../run/passwd', join(root, 'etc/up'));
  await symlink('loop', join(root, 'etc/loop'));
  await symlink('/etc/../run', join(root, 'etc/dir'));
  t.is(await readInRoot(root, '/etc/passwd'), 'inside');
  t.is(await readInRoot(root, '/etc/up'), 'inside');
  t.is(await readInRoot(root, 'etc/dir/passwd'), 'inside');
  t.is(await readInRoot(root, '/etc/none'), undefined);
  t.is(await readInRoot(root, '/etc/passwd/below'), undefined);
  t.is(await readInRoot(root, '/etc'), undefined);
  t.is(await resolveInRoot(root, '/etc/up'), join(root, 'run/passwd'));
  await t.throwsAsync(readInRoot(root, '/etc/loop'), { message: /loop of symbolic links/ });
});

test('the runtime is looked for in PATH and in the sbin directories', async (t) => {
  const dir = await mkdtemp(join(tmpdir(), 'firstlight-path-'));
  t.teardown(() => rm(dir, { recursive: true }));
  await writeFile(join(dir, 'myruntime'), '#!/bin/sh\n');
  t.throws(() => findRuntime('myruntime', dir), { message: /no OCI runtime found \(myruntime\)/ });
  await chmod(join(dir, 'myruntime'), 0o755);
  t.is(findRuntime('myruntime', dir), join(dir, 'myruntime'));
  t.is(findRuntime(join(dir, 'myruntime'), ''), join(dir, 'myruntime'));
  const error = t.throws(() => findRuntime(join(dir, 'none'), dir), {
    instanceOf: FirstlightError,
  });
  t.is(error.kind, 'unsupported');
});

test('exit codes of containers that never started', (t) => {
  t.is(startFailureCode('exec: "x": executable file not found in $PATH'), 127);
  t.is(startFailureCode('exec: "/x": stat /x: no such file or directory'), 127);
  t.is(startFailureCode('exec: "/etc": permission denied'), 126);
  t.is(startFailureCode('something about cgroups'), 125);
});

test('the last error of a log', (t) => {
  const log = '{"level":"error","msg":"first"}\n{"level":"warn","msg":"w"}\nnot json\n';
  t.is(lastError(log), 'first');
  t.is(lastError(''), undefined);
});

test('a container gets no more open files than this process may have', (t) => {
  const rlimits = (openFilesMax: number) =>
    (makeSpec({ ...OPTIONS, openFilesMax }) as { process: { rlimits: object[] } }).process.rlimits;
  t.deepEqual(rlimits(20_000), [{ type: 'RLIMIT_NOFILE', hard: 20_000, soft: 1024 }]);
  t.deepEqual(rlimits(1 << 20), [{ type: 'RLIMIT_NOFILE', hard: 524_288, soft: 1024 }]);
  t.deepEqual(rlimits(512), [{ type: 'RLIMIT_NOFILE', hard: 512, soft: 512 }]);
  const text =
    'Limit  Soft Limit  Hard Limit  Units\nMax open files            1024                 20000                files\n';
  t.is(openFilesLimit(text), 20_000);
  t.is(
    openFilesLimit('Max open files            1024                 unlimited            files'),
    1024,
  );
});
