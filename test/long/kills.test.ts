// Many kills of the daemon at arbitrary moments: the store is always sound, and every byte that was
// verified before a kill is never asked for again.
import { randomInt } from 'node:crypto';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import test from 'ava';
import { FaultProxy } from '../lib/fault-proxy.ts';
import { listTree, treeDifference } from '../lib/images.ts';
import { until } from '../lib/proc.ts';
import { smallImage } from '../lib/small-image.ts';
import { Stage } from '../lib/stage.ts';

const ROUNDS = 12;

test(`${ROUNDS} kills of the daemon at arbitrary moments of one transfer`, async (t) => {
  const stage = await Stage.open(t);
  const image = await smallImage(stage.dir);
  const server = await stage.serve({ rate: '40mbit' });
  await stage.addImage(`rootfs:${image.tar}`, 'small:1');
  const proxy = await FaultProxy.start(server.url);
  stage.onClose(() => proxy.close());
  stage.env.FIRSTLIGHT_SERVER = proxy.url;
  const dir = await stage.mountPoint();
  let missing = Number.POSITIVE_INFINITY;
  for (let round = 0; round < ROUNDS; round += 1) {
    await stage.must(['mount', 'small:1', dir, '--rw', 'off'], { timeoutMs: 60_000 });
    const ms = randomInt(20, 600);
    await sleep(ms);
    const { bytes, bytesDone } = await stage.mountStatus(dir);
    t.true(
      bytes - bytesDone <= missing,
      `round ${round}: ${bytes - bytesDone} bytes are missing, ${missing} were before`,
    );
    missing = bytes - bytesDone;
    process.kill(await stage.daemonPid(), 'SIGKILL');
    await until('the daemon has ended', async () => (await stage.status()).daemon === null);
    t.log(`round ${round}: killed ${ms} ms after the mount, ${missing} bytes missing`);
  }
  const before = proxy.bytesDown;
  await stage.must(['mount', 'small:1', dir, '--rw', 'off', '--wait'], { timeoutMs: 60_000 });
  const again = proxy.bytesDown - before;
  t.true(again <= missing + 100_000, `${again} bytes came, ${missing} were missing`);
  t.deepEqual(
    treeDifference(await listTree(join(stage.dir, 'small-root')), await listTree(dir)),
    [],
  );
  t.deepEqual((await stage.json<{ damaged: string[] }>(['verify'])).damaged, []);
});
