// Reading what has not arrived: it waits, it ends after its bound, it survives signals, it can be
// killed, and it goes on when the server is back.
import { createHash } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import test, { type ExecutionContext } from 'ava';
import { FaultProxy } from '../lib/fault-proxy.ts';
import { Background, run, until } from '../lib/proc.ts';
import { buildReader, type SmallImage, smallImage } from '../lib/small-image.ts';
import { Stage } from '../lib/stage.ts';

interface World {
  stage: Stage;
  image: SmallImage;
  reader: string;
  proxy: FaultProxy;
}

/** A server with the small image behind a proxy that lets nothing through once the header is in. */
async function world(t: ExecutionContext<unknown>, rate?: string): Promise<World> {
  const stage = await Stage.open(t);
  const image = await smallImage(stage.dir);
  const reader = await buildReader(stage.dir);
  const server = await stage.serve(rate === undefined ? {} : { rate });
  await stage.addImage(`rootfs:${image.tar}`, 'small:1');
  const proxy = await FaultProxy.start(server.url);
  stage.onClose(() => proxy.close());
  stage.env.FIRSTLIGHT_SERVER = proxy.url;
  return { stage, image, reader, proxy };
}

/** Mounts with hardly anything beyond the header arriving, then lets nothing more arrive. */
async function mountStalled({ stage, proxy }: World, options: string[] = []): Promise<string> {
  proxy.limit(100_000);
  const dir = await stage.mount('small:1', ['--rw', 'off', ...options]);
  proxy.stall();
  return dir;
}

const sha256 = (data: Buffer) => createHash('sha256').update(data).digest('hex');
const waiting = (stage: Stage, dir: string) =>
  until('a request waits', async () => (await stage.mountStatus(dir)).waiting > 0, {
    everyMs: 100,
  });

test.serial(
  'a read of a file that has not arrived waits, and then gives its content',
  async (t) => {
    const { stage, image } = await world(t, '20mbit');
    const dir = await stage.mount('small:1', ['--rw', 'off']);
    for (const path of [image.large, image.medium, ...image.small.slice(-3)]) {
      const read = await run('cat', [join(dir, path)]);
      t.is(read.code, 0, read.stderr);
      t.is(sha256(read.stdout), image.files.get(path)!.sha256, path);
    }
    const { stats, transfer } = await stage.mountStatus(dir);
    t.true(stats!.waits > 0, 'at least the first of them had to wait');
    t.true(stats!.waitedMs > 0);
    // 12 MB at 20 Mbit/s are 4.8 s: whatever came before the mount, it cannot all have been there.
    t.true(transfer.bytes > 15_000_000);
  },
);

for (const [kind, pick] of [
  ['an open of a small file', (image: SmallImage) => image.small.at(-1)!],
  ['a read of a large file', (image: SmallImage) => image.large],
] as const) {
  test.serial(`${kind} that waits ends within a second of kill -9`, async (t) => {
    const it = await world(t);
    const dir = await mountStalled(it);
    const reader = new Background(it.reader, ['read', join(dir, pick(it.image))], {
      env: it.stage.env,
    });
    await waiting(it.stage, dir);
    const before = performance.now();
    const ended = await reader.kill('SIGKILL');
    t.true(performance.now() - before < 1000, `took ${performance.now() - before} ms`);
    t.is(ended.signal, 'SIGKILL');
    // Nothing waits for ever for a reader that is gone.
    await until('nothing waits', async () => (await it.stage.mountStatus(dir)).waiting === 0, {
      everyMs: 100,
      timeoutMs: 3000,
    });
  });

  test.serial(
    `${kind} that waits is not disturbed by a signal that the program handles`,
    async (t) => {
      const it = await world(t);
      const dir = await mountStalled(it);
      const path = pick(it.image);
      const reader = new Background(it.reader, ['read', join(dir, path)], { env: it.stage.env });
      await waiting(it.stage, dir);
      for (let i = 0; i < 3; i += 1) {
        reader.child.kill('SIGUSR1');
        await sleep(150);
      }
      t.true(reader.running);
      it.proxy.limit(0);
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
    await waiting(it.stage, dir);
    reader.child.kill('SIGUSR1');
    await sleep(300);
    const before = performance.now();
    await reader.kill('SIGTERM');
    t.true(performance.now() - before < 1000, `took ${performance.now() - before} ms`);
  });
}

test.serial(
  'with the server gone a read fails after its bound, and says so in the log',
  async (t) => {
    const stage = await Stage.open(t);
    const image = await smallImage(stage.dir);
    const server = await stage.serve({ rate: '4mbit' });
    await stage.addImage(`rootfs:${image.tar}`, 'small:1');
    const dir = await stage.mount('small:1', ['--rw', 'off', '--wait-timeout', '3s']);
    await server.process.kill('SIGKILL');

    const large = await run('cat', [join(dir, image.large)], { timeoutMs: 20_000 });
    t.is(large.code, 1);
    t.regex(large.stderr, /Input\/output error/);
    t.true(large.ms > 2500 && large.ms < 6000, `a large file: after ${large.ms} ms`);
    const late = image.small.at(-1)!;
    const small = await run('cat', [join(dir, late)], { timeoutMs: 20_000 });
    if (small.code === 0) t.log(`${late} had arrived before the server was killed`);
    else t.true(small.ms > 2500 && small.ms < 6000, `a small file: after ${small.ms} ms`);
    const log = await readFile(join(stage.root, 'daemon.log'), 'utf8');
    t.regex(log, /"level":(40|50).*wait/i);
    const { transfer } = await stage.mountStatus(dir);
    t.is(transfer.state, 'retrying');
    t.truthy(transfer.error);
  },
);

test.serial('with the server back a waiting read succeeds, and the transfer resumes', async (t) => {
  const stage = await Stage.open(t);
  const image = await smallImage(stage.dir);
  const first = await stage.serve({ rate: '16mbit' });
  await stage.addImage(`rootfs:${image.tar}`, 'small:1');
  const proxy = await FaultProxy.start(first.url);
  stage.onClose(() => proxy.close());
  stage.env.FIRSTLIGHT_SERVER = proxy.url;
  const dir = await stage.mount('small:1', ['--rw', 'off']);
  await until('a quarter has arrived', async () => {
    const { bytesDone, bytes } = await stage.mountStatus(dir);
    return bytesDone > bytes / 4;
  });
  await first.process.kill('SIGKILL');
  const reader = new Background('cat', [join(dir, image.large)], { env: stage.env });
  const stopped = await until('the transfer is retrying', async () => {
    const status = await stage.mountStatus(dir);
    return status.transfer.state === 'retrying' ? status : undefined;
  });
  t.true(reader.running);

  const before = proxy.bytesDown;
  const second = await stage.serve({ use: false });
  proxy.retarget(second.url);
  const ended = await reader.ended;
  t.is(ended.code, 0, ended.stderr);
  t.is(sha256(ended.stdout), image.files.get(image.large)!.sha256);
  await until(
    'all has arrived',
    async () => {
      return (await stage.mountStatus(dir)).transfer.state === 'complete';
    },
    { timeoutMs: 40_000 },
  ); // retries are spaced out
  const again = proxy.bytesDown - before;
  const missing = stopped.bytes - stopped.bytesDone;
  // What is fetched out of order is not in the stream, but for one case: a stream that has brought nothing
  // for a while (a starved process, here) is not waited for. Two frames of 1 MiB, and the heads of answers.
  t.log(`${again} bytes came for ${missing} that were missing`);
  t.true(again <= missing + 2_200_000, `${again} bytes came for ${missing} that were missing`);
  t.true(again < stopped.bytes - 2_000_000, 'it did not begin anew');
});
