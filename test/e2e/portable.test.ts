// The portable session (--session fuse-native) on real mounts: the same tree within its limits, reads
// that wait, ends of all kinds, and the choice by itself where the addon cannot be loaded.
import { createHash } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import test, { type ExecutionContext } from 'ava';
import { behindProxy, endOf, mountHeld, waits } from '../lib/arriving.ts';
import type { FaultProxy } from '../lib/fault-proxy.ts';
import { listTree } from '../lib/images.ts';
import { layeredImage } from '../lib/layered-image.ts';
import { comparePortable } from '../lib/portable-tree.ts';
import { Background, must, run, until } from '../lib/proc.ts';
import { buildReader, type SmallImage, smallImage } from '../lib/small-image.ts';
import { Stage } from '../lib/stage.ts';

const sha256 = (data: Buffer) => createHash('sha256').update(data).digest('hex');

test.serial('the tree equals what umoci unpacks, but for the limits of the session', async (t) => {
  const stage = await Stage.open(t);
  const layout = await layeredImage(stage.dir);
  const root = join(stage.dir, 'unpacked');
  await must('umoci', ['raw', 'unpack', '--image', `${layout}:1`, root]);
  const expected = await listTree(root);
  t.regex(expected, /xff/);
  await comparePortable(t, stage, { source: `oci:${layout}:1`, expected, bytes: 'app/bytes' });
});

interface World {
  stage: Stage;
  image: SmallImage;
  reader: string;
  proxy: FaultProxy;
}

async function world(t: ExecutionContext<unknown>): Promise<World> {
  const stage = await Stage.open(t);
  const image = await smallImage(stage.dir);
  const reader = await buildReader(stage.dir);
  await stage.serve();
  await stage.addImage(`rootfs:${image.tar}`, 'small:1');
  return { stage, image, reader, proxy: await behindProxy(stage) };
}

test.serial('reads wait for what has not arrived; a reader that waits can be killed', async (t) => {
  const { stage, image, reader, proxy } = await world(t);
  const options = ['--rw', 'off', '--session', 'fuse-native'];
  const dir = await mountHeld(stage, proxy, 'small:1', options);
  const start = (path: string) =>
    new Background(reader, ['read', join(dir, path)], { env: stage.env });
  const killed = start(image.large);
  await waits(stage, dir);
  killed.child.kill('SIGKILL');
  t.is((await endOf(killed, 'it ends though nothing comes')).signal, 'SIGKILL');
  t.true(proxy.isHolding);
  const paths = [image.large, image.medium, image.small.at(-1)!];
  const waiting = paths.map(start);
  await waits(stage, dir, 3);
  // In use: not to be unmounted, and told by whom.
  const busy = await stage.run(['umount', dir]);
  t.is(busy.code, 6, busy.stderr);
  proxy.flow();
  for (const [i, path] of paths.entries()) {
    const ended = await waiting[i]!.ended;
    t.is(ended.code, 0, ended.stderr);
    t.is(sha256(ended.stdout), image.files.get(path)!.sha256, path);
  }
  const { stats } = await stage.mountStatus(dir);
  t.true(stats!.waits > 0 && stats!.waitedMs > 0 && stats!.firstReadAt > 0);
  await stage.must(['umount', dir]);
});

test.serial('a wait ends in EIO after its bound, and at a lazy unmount', async (t) => {
  const { stage, image, reader, proxy } = await world(t);
  const options = ['--rw', 'off', '--session', 'fuse-native'];
  const briefly = [...options, '--wait-timeout', '300ms'];
  const short = await mountHeld(stage, proxy, 'small:1', briefly, { name: 'short' });
  const long = await stage.mount('small:1', options, 'long');
  const late = await run(reader, ['read', join(short, image.large)]);
  t.not(late.code, 0);
  t.regex(late.stderr, /Input\/output error/);
  t.true((await stage.mountStatus(short)).stats!.timeouts > 0);
  t.regex(await readFile(join(stage.root, 'daemon.log'), 'utf8'), /did not arrive in time/);
  const waiting = new Background(reader, ['read', join(long, image.large)], { env: stage.env });
  await waits(stage, long);
  await stage.must(['umount', '--lazy', long]);
  const ended = await waiting.ended;
  t.not(ended.code, 0);
  t.regex(ended.stderr, /Input\/output error/);
  await stage.must(['umount', short]);
});

test.serial('without the addon it is chosen by itself, and all of the daemon works', async (t) => {
  const { stage, image, reader } = await world(t);
  stage.env.FIRSTLIGHT_NATIVE = '/nonexistent';
  const dir = await stage.mount('small:1', ['--wait']);
  const read = await run(reader, ['read', join(dir, image.large)], { env: stage.env });
  t.is(sha256(read.stdout), image.files.get(image.large)!.sha256, read.stderr);
  const { session, rw } = await stage.mountStatus(dir);
  t.deepEqual({ session, rw }, { session: 'fuse-native', rw: 'overlay' });
  t.is((await run('sh', ['-c', 'echo new >new && cat new'], { cwd: dir })).code, 0);
  const log = await readFile(join(stage.root, 'daemon.log'), 'utf8');
  t.regex(log, /mounted by fuse-native/);
  t.regex(log, /native part is not built/);
  const { findings } = await stage.json<{ findings: { name: string; level: string }[] }>([
    'doctor',
  ]);
  t.is(findings.find(({ name }) => name === 'native part')?.level, 'warn');
  t.is((await stage.run(['diff', dir])).code, 12, 'what needs the addon says so');
  await stage.must(['umount', dir]);

  // Killed with its mount standing: the next daemon clears it away.
  await stage.must(['mount', 'small:1', dir, '--rw', 'off']);
  process.kill(await stage.daemonPid(), 'SIGKILL');
  await until('the mount is dead', async () => (await run('ls', [dir])).code !== 0);
  await stage.must(['mount', 'small:1', dir, '--rw', 'off']);
  const again = await run(reader, ['read', join(dir, image.medium)], { env: stage.env });
  t.is(sha256(again.stdout), image.files.get(image.medium)!.sha256, again.stderr);

  // Unmounted behind its back: it notices.
  t.is((await run('umount', [dir])).code, 0);
  await until('the mount is gone', async () => (await stage.status()).mounts.length === 0, {
    everyMs: 100,
  });
});

test.serial('what a portable mount reads is recorded', async (t) => {
  const { stage, image, reader } = await world(t);
  const dir = await stage.mount('small:1', [
    ...['--rw', 'off', '--session', 'fuse-native', '--trace', 'shop'],
  ]);
  for (const path of [image.medium, image.large, image.small[3]!]) {
    t.is((await run(reader, ['read', join(dir, path)], { env: stage.env })).code, 0);
  }
  await stage.must(['umount', dir]);
  const { traces } = await stage.json<{ traces: { files: number }[] }>(['trace', 'ls']);
  t.deepEqual(
    traces.map(({ files }) => files),
    [3],
  );
});
