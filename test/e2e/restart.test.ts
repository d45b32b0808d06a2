// kill -9 of the daemon during a transfer, then a new mount: only the frames that were in flight are
// fetched again, and nothing is corrupt.
import { join } from 'node:path';
import test from 'ava';
import { behindProxy, mountHeld } from '../lib/arriving.ts';
import { askedBytes } from '../lib/fault-proxy.ts';
import { listTree, treeDifference } from '../lib/images.ts';
import { run, until } from '../lib/proc.ts';
import { smallImage } from '../lib/small-image.ts';
import { Stage } from '../lib/stage.ts';

test.serial(
  'kill -9 of the daemon during a transfer, then a new mount fetches only what was in flight',
  async (t) => {
    const stage = await Stage.open(t);
    const image = await smallImage(stage.dir);
    // The rate bounds what is under way at a time; how much comes is what the proxy lets through.
    await stage.serve({ rate: '24mbit' });
    await stage.addImage(`rootfs:${image.tar}`, 'small:1');
    const proxy = await behindProxy(stage);
    const dir = await mountHeld(stage, proxy, 'small:1', ['--rw', 'off'], { bytes: 12 << 20 });

    // All but the largest file, and some of its parts: those are kept in another way than whole files.
    let before = 0;
    const killed = await until('a part of the largest file has arrived', async () => {
      const status = await stage.mountStatus(dir);
      if (status.bytesDone > 9_700_000) return status;
      // What is under way on several connections may not be the frame that comes next.
      if (proxy.isHolding && status.bytesDone === before) proxy.holdAfter(256 << 10);
      before = status.bytesDone;
      return undefined;
    });
    t.true(killed.bytesDone < killed.bytes * 0.9, 'some of it is still missing');
    const pid = await stage.daemonPid();
    process.kill(pid, 'SIGKILL');
    await until('the daemon has ended', () => !alive(pid));
    // What was held for the dead one is gone with its connections.
    proxy.cut();
    proxy.flow();

    // The dead mount stands at the directory; the same command replaces it.
    const [requests, bytes] = [proxy.requests.length, proxy.bytesDown];
    await stage.must(['mount', 'small:1', dir, '--rw', 'off', '--wait']);
    const asked = proxy.requests.slice(requests);
    t.deepEqual(
      asked.filter(({ method, range }) => method === 'GET' && range === undefined),
      [],
      'the header was there',
    );
    const again = askedBytes(asked);
    const missing = killed.bytes - killed.bytesDone;
    // Where a connection falls silent, which on a busy machine it may, bytes are asked for and come twice.
    t.log(`${proxy.bytesDown - bytes} bytes came, ${again} of the bundle, ${missing} were missing`);
    t.true(again <= missing + 100_000, `${again} bytes were asked for, ${missing} were missing`);
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

    await stage.must(['mount', 'small:1', dir, '--rw', 'off']);
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
      await stage.must(['mount', 'small:1', dir, '--rw', rw]);
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
    const again = await stage.run(['mount', 'small:1', dir]);
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
