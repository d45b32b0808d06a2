// Files that are mapped while they are arriving, and what later opens of them get.
import { createHash } from 'node:crypto';
import { join } from 'node:path';
import test, { type ExecutionContext } from 'ava';
import {
  arriveUntil,
  behindProxy,
  MissedError,
  mountHeld,
  untilMet,
  waits,
} from '../lib/arriving.ts';
import type { FaultProxy } from '../lib/fault-proxy.ts';
import { Background, run, until } from '../lib/proc.ts';
import { buildReader, type SmallImage, smallImage } from '../lib/small-image.ts';
import { Stage } from '../lib/stage.ts';

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
  // The rate bounds what is under way at a time; how much comes is what the proxy lets through.
  await stage.serve({ rate: '40mbit' });
  await stage.addImage(`rootfs:${image.tar}`, 'small:1');
  return { stage, image, reader, proxy: await behindProxy(stage) };
}

const complete = (stage: Stage, dir: string) =>
  until(
    'all has arrived',
    async () => (await stage.mountStatus(dir)).transfer.state === 'complete',
    { everyMs: 200 },
  );

/** The reader, whose file stays open and mapped until its input ends. */
function hold({ stage, reader }: World, mode: string, path: string): Background {
  const holder = new Background(reader, [mode, path], {
    env: { ...stage.env, HOLD: '1' },
    keepInput: true,
  });
  stage.onClose(async () => void (await holder.kill('SIGKILL')));
  return holder;
}

for (const rw of ['off', 'overlay']) {
  test(`a library mapped while it is arriving works, and later opens get passthrough (--rw ${rw})`, async (t) => {
    const it = await world(t);
    const options = ['--rw', rw, '--opens', 'seen'];
    const dir = await it.stage.mountPoint();
    const holder = await untilMet(t, async () => {
      await mountHeld(it.stage, it.proxy, 'small:1', options);
      const started = hold(it, 'library', join(dir, it.image.library));
      const answered = () => /done/.test(started.stderr) || !started.running;
      await arriveUntil(it.stage, it.proxy, 'the library answers', answered);
      t.is(started.stdout.trim(), it.image.answer, started.stderr);
      if ((await it.stage.mountStatus(dir)).transfer.state !== 'complete') return started;
      await started.kill('SIGKILL');
      await it.stage.must(['umount', dir]);
      await it.stage.must(['gc', '--all']);
      throw new MissedError('all had arrived when it answered');
    });
    it.proxy.flow();
    await complete(it.stage, dir);

    // While the first program still has it mapped, and after that.
    const opened = (await it.stage.mountStatus(dir)).stats!.passthroughOpens;
    const again = await run(it.reader, ['library', join(dir, it.image.library)]);
    t.is(again.stdout.toString().trim(), it.image.answer, again.stderr);
    holder.child.stdin!.end();
    t.is((await holder.ended).code, 0);
    const later = await run(it.reader, ['library', join(dir, it.image.library)]);
    t.is(later.stdout.toString().trim(), it.image.answer, later.stderr);
    const { features, stats } = await it.stage.mountStatus(dir);
    if (!features!.passthrough) {
      t.log('this kernel has no FUSE passthrough: later opens are plain reads');
      return;
    }
    t.true(stats!.passthroughOpens > opened, 'a later open got passthrough');
  });

  for (const [mode, opens] of [
    ['map-private', 'seen'],
    ['map-private', 'auto'],
    ['map-shared', 'seen'],
    ['map-shared', 'auto'],
  ] as const) {
    test(`a file read through a ${mode.slice(4)} mapping while it is arriving has its content (--rw ${rw}, --opens ${opens})`, async (t) => {
      const it = await world(t);
      const dir = await mountHeld(it.stage, it.proxy, 'small:1', ['--rw', rw, '--opens', opens]);
      const path = join(dir, it.image.large);
      const expected = it.image.files.get(it.image.large)!.sha256;
      const holder = hold(it, mode, path);
      await waits(it.stage, dir);
      it.proxy.flow();
      await until('it has been read', () => /done/.test(holder.stderr) || !holder.running);
      await complete(it.stage, dir);
      // Every way to open it works beside the mapping, which the kernel knows and nobody else.
      for (const other of ['read', 'map-private', 'map-shared']) {
        const ended = await run(it.reader, [other, path]);
        t.is(ended.code, 0, `${other} beside ${mode}: ${ended.stderr}`);
        t.is(createHash('sha256').update(ended.stdout).digest('hex'), expected, other);
      }
      holder.child.stdin!.end();
      const ended = await holder.ended;
      t.is(createHash('sha256').update(ended.stdout).digest('hex'), expected, ended.stderr);
    });
  }
}
