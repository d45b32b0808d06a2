// One test's worth of store, server and templates for receive/.
import { readdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import type { ExecutionContext } from 'ava';
import type { ReceiverOptions } from '../../src/receive/receiver.ts';
import { diskIo, type StoreIo } from '../../src/store/io.ts';
import { LayerStore } from '../../src/store/layer-store.ts';
import {
  encode,
  FaultyServer,
  quietLog,
  scratch,
  type TestImage,
  WatchingTemplate,
} from './fixture.ts';

/** Sizes of contents of one part, and of several. */
export const SMALL = [5, 300, 4096, 70_000, 9000, 1, 20_000, 120_000, 250_000, 12];
export const LARGE = [3_500_000, 1_048_577, 2_097_152];
const FAST = { firstMs: 5, mostMs: 40 };
const TIMEOUTS = { connectMs: 1000, deltaMs: 5000, headMs: 2000, idleMs: 400 };

/** A store, a server of one image, and templates that watch. */
export async function makeStage(t: ExecutionContext, image: TestImage, io: StoreIo = diskIo) {
  const root = await scratch(t);
  const { log, lines } = quietLog();
  const server = await FaultyServer.start(t);
  server.serve(image, await encode(image));
  const templates: WatchingTemplate[] = [];
  const stores: LayerStore[] = [];
  const openStore = async () => {
    const store = await LayerStore.open(root, { log, io });
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
export async function assertWhole(t: ExecutionContext, root: string, image: TestImage) {
  for (const [hex, data] of image.contents) {
    const stored = await readFile(join(root, 'content', hex.slice(0, 2), hex.slice(2)));
    t.true(stored.equals(data), hex);
  }
  t.deepEqual(await readdir(join(root, 'incoming')), []);
}
