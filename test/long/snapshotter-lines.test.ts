// containerd on firstlight behind a router that forgets connections: what the daemon has kept open is dead, and
// nobody has told it.
import { setTimeout as sleep } from 'node:timers/promises';
import test from 'ava';
import { until } from '../lib/proc.ts';
import { behindProxy, pulls } from '../lib/snapshotter.ts';

test('connections that have died without a word make no pull an ordinary one', async (t) => {
  const { stage, registry, containerd, proxy } = await behindProxy(t);
  await containerd.pull(`${registry}/app:v1`);
  await until('the first version is complete', async () => {
    const { images } = await stage.json<{ images: { complete: boolean }[] }>(['ls']);
    return images.length === 1 && images.every(({ complete }) => complete);
  });
  proxy.blackhole();
  // From five seconds on a connection counts as idle, and is tried before it is trusted.
  await sleep(5500);
  const before = proxy.connections;
  await containerd.pull(`${registry}/app:v2`);
  t.deepEqual(
    (await pulls(stage)).map(({ way }) => way),
    ['lazy', 'lazy'],
  );
  t.true(proxy.connections > before);
  t.is(await containerd.run(`${registry}/app:v2`, 'c1', ['cat', '/app/version']), 'two\n');
});
