// kill -9 of the daemon during a transfer, then a new mount: only the frames that were in flight are
// fetched again, and nothing is corrupt.
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import test from 'ava';
import { FaultProxy } from '../lib/fault-proxy.ts';
import { listTree, treeDifference } from '../lib/images.ts';
import { run, until } from '../lib/proc.ts';
import { smallImage } from '../lib/small-image.ts';
import { Stage } from '../lib/stage.ts';

test.serial(
  'kill -9 of the daemon during a transfer, then a new mount fetches only what was in flight',
  async (t) => {
    const stage = await Stage.open(t);
    const image = await smallImage(stage.dir);
    const server = await stage.serve({ rate: '24mbit' });
    await stage.addImage(`rootfs:${image.tar}`, 'small:1');
    const proxy = await FaultProxy.start(server.url);
    stage.onClose(() => proxy.close());
    stage.env.FIRSTLIGHT_SERVER = proxy.url;
    const dir = await stage.mount('small:1', ['--rw', 'off']);

    const killed = await until('a third has arrived', async () => {
      const status = await stage.mountStatus(dir);
      return status.bytesDone > status.bytes / 3 ? status : undefined;
    });
    t.true(killed.bytesDone < killed.bytes / 2, 'most of it is still missing');
    const pid = await stage.daemonPid();
    process.kill(pid, 'SIGKILL');
    await until('the daemon has ended', () => !alive(pid));
    await sleep(300);

    // The dead mount stands at the directory; the same command replaces it.
    const before = proxy.bytesDown;
    await stage.must(['mount', 'small:1', dir, '--rw', 'off', '--wait'], { timeoutMs: 60_000 });
    const again = proxy.bytesDown - before;
    const missing = killed.bytes - killed.bytesDone;
    t.true(
      again <= missing + 100_000,
      `${again} bytes came after the kill; ${missing} were missing at it`,
    );
    t.not(await stage.daemonPid(), pid);
    t.deepEqual(
      treeDifference(await listTree(join(stage.dir, 'small-root')), await listTree(dir)),
      [],
    );
    const verified = await stage.json<{ contents: number; damaged: string[] }>(['verify']);
    t.deepEqual(verified.damaged, []);
    t.true(verified.contents >= image.files.size);
  },
);

test.serial(
  'after kill -9 of the daemon an image that was complete mounts without the server',
  async (t) => {
    const stage = await Stage.open(t);
    const image = await smallImage(stage.dir);
    const server = await stage.serve();
    await stage.addImage(`rootfs:${image.tar}`, 'small:1');
    const dir = await stage.mount('small:1', ['--rw', 'off', '--wait']);
    const pid = await stage.daemonPid();
    process.kill(pid, 'SIGKILL');
    await until('the daemon has ended', () => !alive(pid));
    await server.process.kill('SIGTERM');

    await stage.must(['mount', 'small:1', dir, '--rw', 'off'], { timeoutMs: 30_000 });
    t.deepEqual(
      treeDifference(await listTree(join(stage.dir, 'small-root')), await listTree(dir)),
      [],
    );
  },
);

for (const rw of ['off', 'overlay', 'fuse']) {
  test.serial(
    `after kill -9 of the daemon the same command replaces a mount that has been looked at (--rw ${rw})`,
    async (t) => {
      const stage = await Stage.open(t);
      const image = await smallImage(stage.dir);
      await stage.serve();
      await stage.addImage(`rootfs:${image.tar}`, 'small:1');
      const dir = await stage.mount('small:1', ['--rw', rw, '--wait']);
      // From now on the kernel knows the root's attributes, and tells them though nobody answers.
      await run('ls', ['-la', dir]);
      await run('stat', [dir]);
      const pid = await stage.daemonPid();
      process.kill(pid, 'SIGKILL');
      // At once: the mount may be dying still.
      await stage.must(['mount', 'small:1', dir, '--rw', rw], { timeoutMs: 30_000 });
      t.not(await stage.daemonPid(), pid);
      // An overlay's root has the time of its upper directory, to the microsecond (clause 9.7).
      const shown = treeDifference(
        await listTree(join(stage.dir, 'small-root')),
        await listTree(dir),
      );
      const below = shown.filter((line) => !line.includes('"path": "."'));
      t.deepEqual(rw === 'overlay' ? below : shown, []);
    },
  );
}

test.serial('a mount whose daemon is stopped is not dead, and nobody hangs on it', async (t) => {
  const stage = await Stage.open(t);
  const image = await smallImage(stage.dir);
  await stage.serve();
  await stage.addImage(`rootfs:${image.tar}`, 'small:1');
  const dir = await stage.mount('small:1', ['--rw', 'off', '--wait']);
  await run('ls', ['-la', dir]);
  const pid = await stage.daemonPid();
  process.kill(pid, 'SIGSTOP');
  try {
    const again = await stage.run(['mount', 'small:1', dir], { timeoutMs: 30_000 });
    t.regex(again.stderr, /mount point already/);
    t.not(again.code, 0);
  } finally {
    process.kill(pid, 'SIGCONT');
  }
  await stage.must(['umount', dir]);
});

function alive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch {
    return false;
  }
}
