// Many kills of the daemon at arbitrary bytes of a transfer: the store is always sound, and every byte that was
// verified before a kill is never asked for again.
import { randomInt } from 'node:crypto';
import { join } from 'node:path';
import test from 'ava';
import { behindProxy, HEADER_BYTES, mountHeld } from '../lib/arriving.ts';
import { askedBytes } from '../lib/fault-proxy.ts';
import { listTree, treeDifference } from '../lib/images.ts';
import { until } from '../lib/proc.ts';
import { smallImage } from '../lib/small-image.ts';
import { Stage } from '../lib/stage.ts';

const ROUNDS = 12;
/** Bytes that a round lets through: more than a frame or two, and seven rounds fewer than the image has. */
const ROUND_BYTES = { asItMounts: 64 << 10, least: 1_200_000, most: 2_600_000 };
const LEAST_ROUNDS = 7;

test(`${ROUNDS} kills of the daemon at arbitrary bytes of one transfer`, async (t) => {
  const stage = await Stage.open(t);
  const image = await smallImage(stage.dir);
  // The rate bounds what is under way at a time; how much comes is what the proxy lets through.
  await stage.serve({ rate: '40mbit' });
  await stage.addImage(`rootfs:${image.tar}`, 'small:1');
  const proxy = await behindProxy(stage);
  const dir = await stage.mountPoint();
  let missing = Number.POSITIVE_INFINITY;
  for (let round = 0; round < ROUNDS; round += 1) {
    const bytesAtFirst = round === 0 ? HEADER_BYTES : ROUND_BYTES.asItMounts;
    await mountHeld(stage, proxy, 'small:1', ['--rw', 'off'], { bytes: bytesAtFirst });
    const more = randomInt(ROUND_BYTES.least, ROUND_BYTES.most);
    const pid = await stage.daemonPid();
    const { bytes, bytesDone } = await stage.mountStatus(dir);
    if (round >= LEAST_ROUNDS && bytesDone === bytes) break;
    t.true(bytesDone < bytes, 'there is something to come');
    t.true(
      bytes - bytesDone <= missing,
      `round ${round}: ${bytes - bytesDone} bytes are missing, ${missing} were before`,
    );
    missing = bytes - bytesDone;
    // While it works on what has just come.
    proxy.holdAfter(more);
    await until('so much has come', () => proxy.isHolding, { everyMs: 1 });
    process.kill(pid, 'SIGKILL');
    await until('the daemon has ended', async () => (await stage.status()).daemon === null);
    proxy.cut();
    t.log(`round ${round}: ${missing} bytes missing, killed ${more} bytes later`);
  }
  proxy.flow();
  t.true(missing < 17_000_000, `${missing} bytes are missing: what came was never kept`);
  const requests = proxy.requests.length;
  await stage.must(['mount', 'small:1', dir, '--rw', 'off', '--wait']);
  const again = askedBytes(proxy.requests.slice(requests));
  t.true(again <= missing + 100_000, `${again} bytes were asked for, ${missing} were missing`);
  t.deepEqual(
    treeDifference(await listTree(join(stage.dir, 'small-root')), await listTree(dir)),
    [],
  );
  t.deepEqual((await stage.json<{ damaged: string[] }>(['verify'])).damaged, []);
});
