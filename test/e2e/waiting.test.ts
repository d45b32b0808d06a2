// Reading what has not arrived: it waits, it ends after its bound, it survives signals, it can be
// killed, and it goes on when the server is back.
import { createHash } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import test, { type ExecutionContext } from 'ava';
import { behindProxy, endOf, mountHeld, signalIsTold, waits } from '../lib/arriving.ts';
import { askedBytes, type FaultProxy } from '../lib/fault-proxy.ts';
import { Background, run, until } from '../lib/proc.ts';
import { buildReader, type SmallImage, smallImage } from '../lib/small-image.ts';
import { Stage } from '../lib/stage.ts';

interface World {
  stage: Stage;
  image: SmallImage;
  reader: string;
  proxy: FaultProxy;
}

/** A server with the small image behind a proxy. */
async function world(t: ExecutionContext<unknown>): Promise<World> {
  const stage = await Stage.open(t);
  const image = await smallImage(stage.dir);
  const reader = await buildReader(stage.dir);
  await stage.serve();
  await stage.addImage(`rootfs:${image.tar}`, 'small:1');
  return { stage, image, reader, proxy: await behindProxy(stage) };
}

/** Mounts with hardly anything beyond the header arriving. */
const mountStalled = ({ stage, proxy }: World, options: string[] = []) =>
  mountHeld(stage, proxy, 'small:1', ['--rw', 'off', ...options]);

const sha256 = (data: Buffer) => createHash('sha256').update(data).digest('hex');

test.serial(
  'a read of a file that has not arrived waits, and then gives its content',
  async (t) => {
    const it = await world(t);
    const { stage, image, proxy } = it;
    const dir = await mountStalled(it);
    const paths = [image.large, image.medium, ...image.small.slice(-3)];
    const reads = paths.map((path) => new Background('cat', [join(dir, path)]));
    await waits(stage, dir, paths.length);
    t.true(reads.every(({ running, stdout }) => running && stdout === ''));
    proxy.flow();
    for (const [i, path] of paths.entries()) {
      const read = await reads[i]!.ended;
      t.is(read.code, 0, read.stderr);
      t.is(sha256(read.stdout), image.files.get(path)!.sha256, path);
    }
    const { stats } = await stage.mountStatus(dir);
    t.true(stats!.waits >= paths.length, 'each of them had to wait');
    t.true(stats!.waitedMs > 0);
  },
);

for (const [kind, pick] of [
  ['an open of a small file', (image: SmallImage) => image.small.at(-1)!],
  ['a read of a large file', (image: SmallImage) => image.large],
] as const) {
  test.serial(`${kind} that waits ends on kill -9, though nothing comes`, async (t) => {
    const it = await world(t);
    const dir = await mountStalled(it);
    const reader = new Background(it.reader, ['read', join(dir, pick(it.image))], {
      env: it.stage.env,
    });
    await waits(it.stage, dir);
    reader.child.kill('SIGKILL');
    t.is((await endOf(reader, 'it ends')).signal, 'SIGKILL');
    // Nothing waits for ever for a reader that is gone.
    await until('nothing waits', async () => (await it.stage.mountStatus(dir)).waiting === 0, {
      everyMs: 100,
      timeoutMs: 60_000,
    });
    t.true(it.proxy.isHolding);
  });

  test.serial(
    `${kind} that waits is not disturbed by a signal that the program handles`,
    async (t) => {
      const it = await world(t);
      const dir = await mountStalled(it);
      const path = pick(it.image);
      const reader = new Background(it.reader, ['read', join(dir, path)], { env: it.stage.env });
      await waits(it.stage, dir);
      for (let i = 0; i < 3; i += 1) {
        reader.child.kill('SIGUSR1');
        await signalIsTold(reader.pid, dir);
      }
      t.true(reader.running);
      it.proxy.flow();
      const ended = await reader.ended;
      t.is(ended.code, 0, ended.stderr);
      t.is(sha256(ended.stdout), it.image.files.get(path)!.sha256);
      t.regex(ended.stderr, /done, signals: [1-3]/);
    },
  );

  test.serial(`${kind} that waits ends on SIGTERM that came after a handled signal`, async (t) => {
    const it = await world(t);
    const dir = await mountStalled(it);
    const reader = new Background(it.reader, ['read', join(dir, pick(it.image))], {
      env: it.stage.env,
    });
    await waits(it.stage, dir);
    reader.child.kill('SIGUSR1');
    await signalIsTold(reader.pid, dir);
    reader.child.kill('SIGTERM');
    t.is((await endOf(reader, 'it ends')).signal, 'SIGTERM');
    t.true(it.proxy.isHolding);
  });
}

test.serial(
  'with the server gone a read fails after its bound, and says so in the log',
  async (t) => {
    const it = await world(t);
    const { stage, image, proxy } = it;
    const dir = await mountStalled(it, ['--wait-timeout', '3s']);
    await proxy.down();

    // Without a bound of its own a wait lasts five minutes.
    for (const path of [image.large, image.small.at(-1)!]) {
      const read = await run('cat', [join(dir, path)], { timeoutMs: 120_000 });
      t.is(read.code, 1, path);
      t.regex(read.stderr, /Input\/output error/);
      t.true(read.ms > 2500, `${path}: after ${read.ms} ms`);
    }
    const log = await readFile(join(stage.root, 'daemon.log'), 'utf8');
    t.regex(log, /"level":(40|50).*wait/i);
    const error = await until('the transfer is retrying', async () => {
      const { transfer } = await stage.mountStatus(dir);
      return transfer.state === 'retrying' && transfer.error;
    });
    t.truthy(error);
  },
);

test.serial('with the server back a waiting read succeeds, and the transfer resumes', async (t) => {
  const stage = await Stage.open(t);
  const image = await smallImage(stage.dir);
  // The rate bounds what is under way at a time; how much comes is what the proxy lets through.
  const first = await stage.serve({ rate: '16mbit' });
  await stage.addImage(`rootfs:${image.tar}`, 'small:1');
  const proxy = await behindProxy(stage);
  const dir = await mountHeld(stage, proxy, 'small:1', ['--rw', 'off'], { bytes: 6 << 20 });
  await until('something has arrived', async () => {
    const { bytesDone } = await stage.mountStatus(dir);
    return proxy.isHolding && bytesDone > 2_000_000;
  });
  await first.process.kill('SIGKILL');
  // What was held of it is gone, too.
  proxy.cut();
  proxy.flow();
  const reader = new Background('cat', [join(dir, image.large)], { env: stage.env });
  const stopped = await until('the transfer is retrying', async () => {
    const status = await stage.mountStatus(dir);
    return status.transfer.state === 'retrying' ? status : undefined;
  });
  t.true(reader.running);

  const [requests, bytes] = [proxy.requests.length, proxy.bytesDown];
  const second = await stage.serve({ use: false });
  proxy.retarget(second.url);
  const ended = await reader.ended;
  t.is(ended.code, 0, ended.stderr);
  t.is(sha256(ended.stdout), image.files.get(image.large)!.sha256);
  await until('all has arrived', async () => {
    return (await stage.mountStatus(dir)).transfer.state === 'complete';
  });
  const again = askedBytes(proxy.requests.slice(requests));
  const missing = stopped.bytes - stopped.bytesDone;
  // A stream that has brought nothing for a while, as that of a starved process, is not waited for: some come twice.
  t.log(`${proxy.bytesDown - bytes} bytes came, ${again} of the bundle, ${missing} were missing`);
  t.true(again <= missing + 100_000, `${again} bytes were asked for, ${missing} were missing`);
});
