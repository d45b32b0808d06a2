// Which layers come lazily, over gRPC and with a real delta server, and what happens when what they stand on
// cannot be had. What the mounts show stands in test/e2e/snapshotter.test.ts.

import type { AddressInfo } from 'node:net';
import { createServer, type Server, type Socket } from 'node:net';
import { status } from '@grpc/grpc-js';
import test, { type ExecutionContext } from 'ava';
import { FaultProxy } from '../../test/lib/fault-proxy.ts';
import { serve } from '../serve/testkit.ts';
import { type Harness, type HarnessOptions, snapshotter } from './testkit.ts';
import { addImage, type LayeredImage, layeredImage, pullLabels } from './testkit-images.ts';

const BASE = { 'etc/os': 'base' };

/** A snapshotter and a delta server that has an image of two layers, called `app:1`. */
async function world(t: ExecutionContext, options: HarnessOptions = {}) {
  const server = await serve(t);
  const app = await layeredImage(BASE, { 'app/version': 'one' });
  await addImage(server.url, app, 'app:1');
  const proxy = await FaultProxy.start(server.url);
  t.teardown(() => proxy.close());
  const h = await snapshotter(t, { server: proxy.url, prepareTimeoutMs: 120_000, ...options });
  return { h, app, proxy };
}

/** Prepares a layer as the kubelet does; whether it comes lazily. */
async function pull(h: Harness, image: LayeredImage, index: number, ref: string): Promise<boolean> {
  const parent = index === 0 ? '' : image.chainIds[index - 1]!;
  const key = `extract-${ref}-${index}-${Math.random()}`;
  try {
    await h.client.prepare(key, parent, pullLabels(image, index, ref));
    return false;
  } catch (error) {
    if ((error as { code?: number }).code !== status.ALREADY_EXISTS) throw error;
    return true;
  }
}

async function counted(h: Harness, metric: 'pulls' | 'lowerTrees') {
  const { values } = await h.metrics[metric].get();
  return values.map(({ labels, value }) => `${labels.way} ${labels.reason} ${value}`);
}

test('the base of an image that the server has is not that image', async (t) => {
  const { h, app } = await world(t);
  const base = await layeredImage(BASE);
  t.deepEqual(base.chainIds, app.chainIds.slice(0, 1), 'the same layer');
  t.false(await pull(h, base, 0, 'reg.example/base:1'));
  t.deepEqual(await counted(h, 'pulls'), ['ordinary unknown-image 1']);
  const other = await layeredImage(BASE, { 'other/version': 'one' });
  t.false(await pull(h, other, 0, 'reg.example/other:1'));
  for (const index of [0, 1]) t.true(await pull(h, app, index, 'reg.example/app:1'));
  t.like(await h.client.stat(app.chainIds[1]!), { kind: 3, parent: app.chainIds[0] });
});

/** A registry that takes connections and answers nothing. */
async function deafRegistry(t: ExecutionContext) {
  const open = new Set<Socket>();
  const server: Server = createServer((socket) => {
    open.add(socket);
    socket.on('error', () => undefined); // `close` follows.
    socket.once('close', () => open.delete(socket));
    socket.resume();
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  t.teardown(() => {
    for (const socket of open) socket.destroy();
    server.close();
  });
  const { port } = server.address() as AddressInfo;
  return { host: `127.0.0.1:${port}`, open };
}

/** Waits until something holds. */
async function until(what: string, holds: () => boolean | Promise<boolean>): Promise<void> {
  const deadline = Date.now() + 120_000;
  while (!(await holds())) {
    if (Date.now() > deadline) throw new Error(`not in time: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
}

test('lower layers are taken from the registry when the server is down, and given up with their last call', async (t) => {
  const { h, app, proxy } = await world(t);
  const registry = await deafRegistry(t);
  const ref = `${registry.host}/app:1`;
  t.true(await pull(h, app, 0, ref));
  await proxy.down();
  const gone = new AbortController();
  const call = { signal: gone.signal };
  const calls = [1, 2].map((n) =>
    h.client.call(
      'Prepare',
      { key: `c${n}`, parent: app.chainIds[0], labels: {} },
      undefined,
      call,
    ),
  );
  const ended = Promise.allSettled(calls);
  await until('the registry is asked', () => registry.open.size === 1);
  t.deepEqual(await counted(h, 'lowerTrees'), ['ordinary unreachable 1'], 'once for both calls');
  gone.abort();
  for (const { status: how } of await ended) t.is(how, 'rejected');
  await until('the registry is left alone', () => registry.open.size === 0);
  t.deepEqual((await h.client.list()).keys, [app.chainIds[0]!], 'nothing stands half made');
});

test('what the server does not answer about lower layers within the bound is taken from the registry', async (t) => {
  const { h, app, proxy } = await world(t, { prepareTimeoutMs: 3000 });
  const registry = await deafRegistry(t);
  let lazily = false;
  await until('the layer comes lazily', async () => {
    lazily ||= await pull(h, app, 0, `${registry.host}/app:1`);
    return lazily;
  });
  proxy.stall();
  const gone = new AbortController();
  const call = h.client.call(
    'Prepare',
    { key: 'c', parent: app.chainIds[0], labels: {} },
    undefined,
    {
      signal: gone.signal,
    },
  );
  const ended = Promise.allSettled([call]);
  await until('the registry is asked', () => registry.open.size === 1);
  t.deepEqual(await counted(h, 'lowerTrees'), ['ordinary timeout 1']);
  gone.abort();
  await ended;
});
