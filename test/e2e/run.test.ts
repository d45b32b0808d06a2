// `firstlight run`: real containers under runc, and what is left when anything about them is killed.
import { readdir, readFile, stat } from 'node:fs/promises';
import { basename, join } from 'node:path';
import test, { type ExecutionContext } from 'ava';
import { isBelow, parseMountInfo } from '../../src/daemon/mountinfo.ts';
import { runtimeDir } from '../../src/daemon/paths.ts';
import { behindProxy } from '../lib/arriving.ts';
import { busyboxImage, busyboxLayout } from '../lib/busybox-image.ts';
import { mountsBelow } from '../lib/leaks.ts';
import { type Background, must, run, until } from '../lib/proc.ts';
import { Stage } from '../lib/stage.ts';

/** A stage whose server has the tiny image as `tiny:1`. */
async function tiny(t: ExecutionContext): Promise<Stage> {
  const stage = await Stage.open(t);
  await stage.serve();
  await stage.addImage(`rootfs:${await busyboxImage(stage.dir)}`, 'tiny:1');
  return stage;
}

/** Nothing of any container is left: mounts, snapshots, configurations, runtime state, control groups. */
async function assertNothingLeft(t: ExecutionContext, stage: Stage): Promise<void> {
  const base = runtimeDir(stage.root);
  const entries = async (path: string) => readdir(path).catch(() => []);
  t.deepEqual(await entries(join(stage.root, 'snapshots')), []);
  for (const name of ['bundles', 'containers', 'mounts', 'rootfs']) {
    t.deepEqual(await entries(join(base, name)), [], name);
  }
  t.deepEqual(await mountsBelow(stage.dir), []);
  const mounts = parseMountInfo(await readFile('/proc/self/mountinfo', 'utf8'));
  t.deepEqual(
    mounts.filter((mount) => isBelow(mount.mountPoint, base)),
    [],
  );
}

/** What of a container that nobody took away in order is taken away by the daemon, in its own time. */
async function nothingLeftSoon(t: ExecutionContext, stage: Stage): Promise<void> {
  const base = runtimeDir(stage.root);
  await until('the daemon has taken all away', async () => {
    for (const path of [join(stage.root, 'snapshots'), join(base, 'bundles'), join(base, 'rootfs')])
      if ((await readdir(path).catch(() => [])).length > 0) return false;
    return (await mountsBelow(stage.dir)).length === 0;
  });
  await assertNothingLeft(t, stage);
}

/** A container's name that no other test on the machine uses. */
const named = (stage: Stage, name: string) => `${name}-${basename(stage.dir).split('-').at(-1)}`;

/** A container that says `up` and what it is told, and goes on. */
async function startSleeper(stage: Stage, name: string): Promise<Background> {
  const script =
    'trap "echo got INT" INT; trap "echo got TERM; exit 9" TERM; echo up; while :; do sleep 0.1; done';
  const args = ['run', 'tiny:1', '--name', named(stage, name), '--', 'sh', '-c', script];
  const client = stage.start(args);
  await until('the container is up', () => {
    if (!client.running) throw new Error(`it ended: ${client.stderr}`);
    return client.stdout.includes('up');
  });
  return client;
}

async function inContainer(stage: Stage, name: string): Promise<boolean> {
  const own = named(stage, name);
  const { stdout } = await run('pgrep', ['-f', `firstlight-${own}|--name ${own}`]);
  return stdout.length > 0;
}

test.serial(
  'a container has its own root, processes and host name, and its exit code is returned',
  async (t) => {
    const stage = await tiny(t);
    const ended = await stage.run([
      'run',
      'tiny:1',
      '--name',
      named(stage, 'box'),
      '--',
      'sh',
      '-c',
      'hostname; pwd; echo $$; ls /; cat /etc/hostname; echo written > /etc/new && cat /etc/new; exit 7',
    ]);
    t.is(ended.code, 7, ended.stderr);
    t.deepEqual(ended.stdout.toString().split('\n').filter(Boolean), [
      named(stage, 'box'),
      '/',
      '1',
      'bin',
      'dev',
      'etc',
      'proc',
      'srv',
      'sys',
      'tmp',
      named(stage, 'box'),
      'written',
    ]);
    t.is(ended.stderr, '');
    await assertNothingLeft(t, stage);
  },
);

test.serial(
  'entrypoint, command, user, environment and working directory come from the image',
  async (t) => {
    const stage = await Stage.open(t);
    await stage.serve();
    const script = 'id; pwd; echo $GREETING $HOME "$@"';
    const layout = await busyboxLayout(stage.dir, [
      ...['sh', '-c', script, 'sh'].flatMap((word) => ['--config.entrypoint', word]),
      '--config.cmd',
      'from-image',
      '--config.user',
      'web',
      '--config.env',
      'GREETING=hello',
      '--config.workingdir',
      '/srv/work',
    ]);
    await stage.must(['image', 'add', `oci:${layout}:latest`, '--name', 'tiny:2']);
    t.is(
      await stage.must(['run', 'tiny:2']),
      'uid=33(web) gid=34(web) groups=34(web),90(logs)\n/srv/work\nhello /srv from-image\n',
    );
    t.regex(await stage.must(['run', 'tiny:2', 'other', 'words']), /hello \/srv other words\n$/);
  },
);

test.serial('network: the host has its own, none has the loopback alone', async (t) => {
  const stage = await tiny(t);
  const interfaces = 'cat /proc/net/dev | wc -l';
  const count = async (net: string) =>
    Number(await stage.must(['run', 'tiny:1', '--net', net, '--', 'sh', '-c', interfaces]));
  t.is(await count('none'), 3, 'two lines of heading and lo');
  t.is(await count('host'), Number(await must('sh', ['-c', interfaces])));
});

test.serial('standard input reaches the container', async (t) => {
  const stage = await tiny(t);
  t.is(await stage.must(['run', 'tiny:1', '--', 'cat'], { input: 'through\n' }), 'through\n');
});

test.serial('a read-only container', async (t) => {
  const stage = await tiny(t);
  const ended = await stage.run(['run', 'tiny:1', '--rw', 'off', '--', 'touch', '/x']);
  t.is(ended.code, 1);
  t.regex(ended.stderr, /Read-only file system/);
  await assertNothingLeft(t, stage);
});

test.serial('a command that cannot be started: 127, 126, and 2 where there is none', async (t) => {
  const stage = await tiny(t);
  const code = async (...command: string[]) =>
    (await stage.run(['run', 'tiny:1', '--', ...command])).code;
  t.is(await code('nosuch'), 127);
  t.is(await code('/etc/not-executable'), 126);
  t.is(await code(), 2);
  t.is(await code('sh', '-c', 'kill -9 $$ ; exec sleep 100 & kill -15 $!; exit 3'), 3);
  await assertNothingLeft(t, stage);
});

test.serial('signals go on to the container', async (t) => {
  const stage = await tiny(t);
  const client = await startSleeper(stage, 'sleeper');
  const ended = await client.kill('SIGTERM');
  t.is(ended.code, 9);
  t.regex(ended.stdout.toString(), /got TERM/);
  await assertNothingLeft(t, stage);
});

test.serial('one that ignores SIGINT is killed at the third', async (t) => {
  const stage = await tiny(t);
  const client = await startSleeper(stage, 'stubborn');
  // One at a time: of those that are pending together the kernel delivers one.
  for (let heard = 1; heard <= 2; heard++) {
    process.kill(client.pid, 'SIGINT');
    const count = () => client.stdout.split('got INT').length - 1;
    await until(`it has heard ${heard}`, () => count() >= heard || !client.running);
    t.true(client.running, 'it goes on');
  }
  process.kill(client.pid, 'SIGINT');
  const ended = await client.ended;
  t.is(ended.code, 137);
  await assertNothingLeft(t, stage);
});

test.serial(
  'two containers of one image do not see each other; a name is taken once',
  async (t) => {
    const stage = await tiny(t);
    const first = await startSleeper(stage, 'twin');
    const second = await stage.run(['run', 'tiny:1', '--name', named(stage, 'twin'), '--', 'true']);
    t.is(second.code, 13);
    t.regex(second.stderr, new RegExp(`container ${named(stage, 'twin')} already`));
    const script = 'echo $$; test -e /only-mine || echo new; echo > /only-mine';
    t.is(await stage.must(['run', 'tiny:1', '--', 'sh', '-c', script]), '1\nnew\n');
    t.is(await stage.must(['run', 'tiny:1', '--', 'sh', '-c', script]), '1\nnew\n');
    await first.kill('SIGTERM');
    await assertNothingLeft(t, stage);
  },
);

test.serial('the root of a running container cannot be unmounted', async (t) => {
  const stage = await tiny(t);
  const client = await startSleeper(stage, 'held');
  const { mounts } = await stage.status();
  const ended = await stage.run(['umount', '--lazy', mounts[0]!.directory]);
  t.is(ended.code, 6);
  t.regex(ended.stderr, /root of a running container/);
  await client.kill('SIGTERM');
});

test.serial('kill -9 of the client: the daemon takes everything away', async (t) => {
  const stage = await tiny(t);
  const client = await startSleeper(stage, 'orphan');
  t.true(await inContainer(stage, 'orphan'));
  await client.kill('SIGKILL');
  await until('unmounted', async () => (await stage.status()).mounts.length === 0);
  await until('the runtime has gone', async () => !(await inContainer(stage, 'orphan')));
  await nothingLeftSoon(t, stage);
});

test.serial('kill -9 of the daemon: the client ends the container and says why', async (t) => {
  const stage = await tiny(t);
  const client = await startSleeper(stage, 'bereft');
  process.kill(await stage.daemonPid(), 'SIGKILL');
  const ended = await client.ended;
  t.is(ended.code, 1);
  t.regex(ended.stderr, /firstlight: the daemon has ended, and with it the file system/);
  t.false(await inContainer(stage, 'bereft'));
  // The next daemon clears away what the killed one had mounted.
  await stage.must(['ls']);
  await assertNothingLeft(t, stage);
});

test.serial('kill -9 of both: the next daemon removes container, mounts and files', async (t) => {
  const stage = await tiny(t);
  const client = await startSleeper(stage, 'nobodys');
  process.kill(await stage.daemonPid(), 'SIGKILL');
  client.child.kill('SIGKILL');
  await client.ended;
  await stage.must(['ls']);
  await until('the runtime has gone', async () => !(await inContainer(stage, 'nobodys')));
  await nothingLeftSoon(t, stage);
});

test.serial('Ctrl-C before the container runs leaves nothing', async (t) => {
  const stage = await tiny(t);
  const proxy = await behindProxy(stage);
  // More than the header, and less than the program.
  proxy.holdAfter(300_000);
  const client = stage.start(['run', 'tiny:1', '--', 'true']);
  // The runtime waits for the program: the client is inside.
  await until('mounted', async () => (await stage.status()).mounts.length > 0);
  await until(
    'it ends, though the program has not come',
    () => {
      client.child.kill('SIGINT');
      return !client.running;
    },
    { everyMs: 300 },
  );
  t.not((await client.ended).code, 0);
  t.true(proxy.isHolding);
  await until('unmounted', async () => (await stage.status()).mounts.length === 0);
  await nothingLeftSoon(t, stage);
});

test.serial('the daemon leaves no runtime directory when it ends', async (t) => {
  const stage = await tiny(t);
  await stage.must(['run', 'tiny:1', '--', 'true']);
  await stage.must(['daemon', '--stop']);
  await t.throwsAsync(stat(runtimeDir(stage.root)), { code: 'ENOENT' });
});

test.serial(
  'what a container wrote is kept by its name, and found again by the next one',
  async (t) => {
    const stage = await tiny(t);
    const sh = (script: string, ...options: string[]) =>
      stage.run([
        'run',
        'tiny:1',
        '--name',
        named(stage, 'box'),
        ...options,
        '--',
        'sh',
        '-c',
        script,
      ]);
    t.is((await sh('echo hi >/mine', '--keep')).code, 0);
    // Another container of the name, which ends badly: what is kept stays.
    t.is((await sh('echo more >>/mine; exit 3')).code, 3);
    const last = await sh('cat /mine');
    t.is(last.stdout.toString(), 'hi\nmore\n');
    t.is((await stage.json<{ snapshots: number }>(['gc', '--snapshots'])).snapshots, 1);
    t.not((await sh('cat /mine')).code, 0);
    await assertNothingLeft(t, stage);
  },
);
