// A store on a filesystem that is really full: a small tmpfs, filled and freed again. Needs root.
import { mkdir, readdir, readFile, rm, statfs, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import test, { type ExecutionContext } from 'ava';
import { toErrno } from '../../src/errors/errors.ts';
import { native } from '../../src/native/index.ts';
import { Receiver } from '../../src/receive/receiver.ts';
import { LayerStore } from '../../src/store/layer-store.ts';
import {
  encode,
  FaultyServer,
  makeImage,
  quietLog,
  scratch,
  someFiles,
  WatchingTemplate,
} from '../receive/fixture.ts';
import { assertWhole } from '../receive/stage.ts';

const ENOSPC = 28;
const TMPFS_BYTES = 6 << 20;

/** A tmpfs of TMPFS_BYTES, unmounted after the test. */
async function smallDisk(t: ExecutionContext): Promise<string> {
  const disk = join(await scratch(t), 'disk');
  await mkdir(disk);
  await native().mount('tmpfs', disk, 'tmpfs', 0, `size=${TMPFS_BYTES},nr_inodes=2000,mode=0700`);
  t.teardown(() => native().umount(disk, 2));
  return disk;
}

/** Fills the disk but for `bytes`; the returned function frees it again. */
async function fill(disk: string, bytes: number): Promise<() => Promise<void>> {
  const { bavail, bsize } = await statfs(disk);
  const ballast = join(disk, 'ballast');
  await writeFile(ballast, Buffer.alloc(Math.max(0, bavail * bsize - bytes), 1));
  return () => rm(ballast);
}

test.serial(
  'a disk that fills up during a transfer: ENOSPC for readers, and on when there is room',
  async (t) => {
    const disk = await smallDisk(t);
    const root = join(disk, 'root');
    const { log, lines } = quietLog();
    const image = makeImage(
      'full',
      someFiles('full', [900_000, 500_000, 30_000, 1_500_000, 20, 700_000]),
    );
    const server = await FaultyServer.start(t);
    server.serve(image, await encode(image));
    const store = await LayerStore.open(root, { log });
    let template: WatchingTemplate | undefined;
    const free = await fill(disk, 2_000_000);
    const receiver = await Receiver.open(store, {
      server: server.url,
      ref: 'app:1',
      platform: 'linux/amd64',
      log,
      backoff: { firstMs: 20, mostMs: 100 },
      makeTemplate: (options) => {
        template = new WatchingTemplate(options);
        return template;
      },
    });
    await template!.until(() => template!.states.includes(4));
    await template!.until(() => receiver.progress().retries >= 3);
    const failed = [...template!.states.keys()].filter(
      (content) => template!.states[content] === 4,
    );
    for (const content of failed) t.is(template!.errnos.get(content), ENOSPC);
    t.is(receiver.progress().state, 'retrying');
    t.regex(receiver.progress().error!, /free some space/);
    t.is(lines.filter(({ level }) => Number(level) >= 50).length, 1);
    // Whatever stands under a digest's name is whole.
    for (const name of await readdir(join(root, 'incoming'))) {
      const data = image.contents.get(name);
      if (data !== undefined) t.true((await readFile(join(root, 'incoming', name))).equals(data));
    }
    await free();
    await receiver.complete;
    t.true(template!.states.every((state) => state === 2));
    t.deepEqual(template!.violations, []);
    await assertWhole(t, root, image);
    await receiver.close();
    await store.close();
  },
);

test.serial('no room for the header: a clear error, and nothing is left', async (t) => {
  const disk = await smallDisk(t);
  const root = join(disk, 'root');
  const { log } = quietLog();
  const names = Array.from({ length: 8000 }, (_, i) => [
    `d${i % 50}/file-${i}`,
    Buffer.from(`${i}`),
  ]);
  const image = makeImage('header', Object.fromEntries(names));
  const server = await FaultyServer.start(t);
  server.serve(image, await encode(image));
  const store = await LayerStore.open(root, { log });
  t.teardown(() => store.close());
  const free = await fill(disk, 300_000);
  const options = {
    server: server.url,
    ref: 'app:1',
    platform: 'linux/amd64',
    log,
    makeTemplate: (o: ConstructorParameters<typeof WatchingTemplate>[0]) => new WatchingTemplate(o),
  };
  const error = await t.throwsAsync(Receiver.open(store, options));
  t.is(toErrno(error), ENOSPC);
  t.deepEqual(store.images(), []);
  t.deepEqual(await readdir(join(root, 'incoming')), []);
  t.deepEqual(await readdir(join(root, 'images')), []);
  await free();
});
