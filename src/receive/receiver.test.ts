import { readdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import test, { type ExecutionContext } from 'ava';
import {
  encode,
  FaultyServer,
  makeImage,
  quietLog,
  scratch,
  someFiles,
  type TestImage,
  WatchingTemplate,
} from '../../test/receive/fixture.ts';
import { LayerStore } from '../store/layer-store.ts';
import { Receiver, type ReceiverOptions } from './receiver.ts';

const SMALL = [5, 300, 4096, 70_000, 9000, 1, 20_000, 120_000, 250_000, 12];
const LARGE = [3_500_000, 1_048_577, 2_097_152];
const FAST = { firstMs: 5, mostMs: 40 };
const TIMEOUTS = { connectMs: 1000, deltaMs: 5000, headMs: 2000, idleMs: 400 };

/** A store, a server of one image, and templates that watch. */
async function stage(t: ExecutionContext, image: TestImage) {
  const root = await scratch(t);
  const { log, lines } = quietLog();
  const server = await FaultyServer.start(t);
  server.serve(image, await encode(image));
  const templates: WatchingTemplate[] = [];
  const stores: LayerStore[] = [];
  const openStore = async () => {
    const store = await LayerStore.open(root, { log });
    stores.push(store);
    return store;
  };
  t.teardown(async () => {
    for (const store of stores) await store.close();
  });
  const options = (more: Partial<ReceiverOptions> = {}): ReceiverOptions => ({
    server: server.url,
    ref: 'app:1',
    platform: 'linux/amd64',
    log,
    backoff: FAST,
    timeouts: TIMEOUTS,
    makeTemplate: (o) => {
      const template = new WatchingTemplate(o);
      templates.push(template);
      return template;
    },
    ...more,
  });
  return { root, log, lines, server, templates, store: await openStore(), openStore, options };
}

/** Every content has the image's bytes, is durable, and nothing else lies about. */
async function assertWhole(t: ExecutionContext, root: string, image: TestImage) {
  for (const [hex, data] of image.contents) {
    const stored = await readFile(join(root, 'content', hex.slice(0, 2), hex.slice(2)));
    t.true(stored.equals(data), hex);
  }
  t.deepEqual(await readdir(join(root, 'incoming')), []);
}

test('an image arrives whole, in one request', async (t) => {
  const image = makeImage('whole', someFiles('whole', [...SMALL, ...LARGE]));
  const { root, server, templates, store, options } = await stage(t, image);
  const receiver = await Receiver.open(store, options());
  t.is(receiver.digest, image.digest);
  t.true(receiver.toc.bytes.equals(image.toc.bytes));
  await receiver.complete;
  t.deepEqual(templates[0]!.violations, []);
  t.true(templates[0]!.states.every((state) => state === 2));
  t.is(server.requests.length, 1);
  await assertWhole(t, root, image);
  const progress = receiver.progress();
  t.is(progress.state, 'complete');
  t.is(progress.framesDone, progress.frames);
  t.is(progress.bytesDone, progress.bytes);
  t.is(progress.receivedBytes, progress.bytes);
  t.true(progress.headerAt > 0 && progress.firstFrameAt >= progress.headerAt);
  await receiver.close();
  t.true(templates[0]!.closed);
  const [info] = store.images();
  t.is(info?.complete, true);
  t.deepEqual(info?.names, ['app:1']);
});
