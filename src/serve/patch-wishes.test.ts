// For whom bundles with patches are computed: over real connections, while another computation holds the queue.
import { Agent } from 'node:http';
import type { AddressInfo } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import test, { type ExecutionContext } from 'ava';
import { makeApp } from './app.ts';
import type { BundleCache } from './bundle-cache.ts';
import { ImageStore } from './image-store.ts';
import { Metrics } from './metrics.ts';
import { deltaRoutes } from './routes-delta.ts';
import { addRootfs, ask, makeDirectory, makeTar, noise, quiet, serve } from './testkit.ts';

const PATCH = { 'firstlight-frames': 'patch' };

/** Four images that are each a patch away from the others; the first computation with patches waits for `go`. */
async function heldQueue(t: ExecutionContext) {
  const dataDir = await makeDirectory(t);
  const filling = await serve(t, { dataDir });
  const same = noise(20_000, 2);
  for (const name of ['a', 'b', 'c', 'd']) {
    const app = noise(30_000, 1);
    app.write(`version ${name}`, 5000);
    await addRootfs(filling.url, `${name}:1`, await makeTar({ app, same }));
  }
  await filling.close();
  const store = await ImageStore.open({ dataDir, log: quiet });
  const app = makeApp(
    quiet,
    { headersMs: 60_000, keepAliveMs: 600_000, stallMs: 60_000 },
    () => undefined,
  );
  deltaRoutes(app, store, { limiter: undefined, metrics: new Metrics(), stallMs: 60_000 });
  await app.listen({ host: '127.0.0.1', port: 0 });
  const url = `http://127.0.0.1:${(app.server.address() as AddressInfo).port}`;
  const go = Promise.withResolvers<void>();
  const computed: string[] = [];
  const compute = store.bundles.compute.bind(store.bundles);
  store.bundles.compute = async (...args: Parameters<BundleCache['compute']>) => {
    const [image, bases, , , patched] = args;
    if (patched === true) {
      computed.push(`${name(image.digest)} from ${bases.map(({ digest }) => name(digest))}`);
      await go.promise;
    }
    return compute(...args);
  };
  const digests = new Map<string, string>();
  for (const { name: full, digest } of await store.catalog.listImages()) {
    digests.set(full!.slice(0, 1), digest);
  }
  const name = (digest: string) => [...digests].find(([, each]) => each === digest)![0];
  t.teardown(async () => {
    go.resolve();
    await app.close();
    await store.close();
  });
  const get = (image: string, base: string, agent: Agent) =>
    ask(`${url}/v1/delta?image=${image}:1&base=${digests.get(base)}`, { headers: PATCH, agent });
  return { store, go, computed, get, digests };
}

/** A connection that stays open, as a worker's do. */
function connection(t: ExecutionContext): Agent {
  const agent = new Agent({ keepAlive: true, maxSockets: 1 });
  t.teardown(() => agent.destroy());
  return agent;
}

async function until(t: ExecutionContext, isSo: () => boolean): Promise<void> {
  for (let i = 0; i < 3000 && !isSo(); i++) await sleep(10);
  t.true(isSo());
}

test('patches that nobody waits for any more are not computed, and others are', async (t) => {
  const { store, go, computed, get } = await heldQueue(t);
  const [stays, leaves] = [connection(t), connection(t)];
  t.is((await get('a', 'b', stays)).status, 200);
  await until(t, () => computed.length === 1);
  for (const base of ['c', 'd']) t.is((await get('a', base, leaves)).status, 200);
  t.is((await get('a', 'd', stays)).status, 200);
  t.is(store.bundles.patching, 3);
  leaves.destroy();
  await until(t, () => store.bundles.patching === 2);
  go.resolve();
  await until(t, () => store.bundles.patching === 0);
  t.deepEqual(computed, ['a from b', 'a from d']);
});

test('what is wanted goes before what is computed ahead, also where that waits already', async (t) => {
  const { store, go, computed, get, digests } = await heldQueue(t);
  const stays = connection(t);
  await get('a', 'b', stays);
  await until(t, () => computed.length === 1);
  const ahead = [];
  for (const base of ['b', 'c']) {
    ahead.push(store.bundles.patched(digests.get('d')!, digests.get(base)!, true));
    await until(t, () => store.bundles.patching === 1 + ahead.length);
  }
  await get('a', 'c', stays);
  await get('d', 'c', stays);
  go.resolve();
  await Promise.all(ahead);
  await until(t, () => store.bundles.patching === 0);
  t.deepEqual(computed, ['a from b', 'a from c', 'd from c', 'd from b']);
});
