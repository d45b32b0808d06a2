// containerd on firstlight when what the daemon relies on has gone without a word: connections that a router has
// forgotten, and the process that keeps mounts.

import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import test from 'ava';
import { mountsBelow } from '../lib/leaks.ts';
import { type Background, until } from '../lib/proc.ts';
import { behindProxy, pulls, startDaemon, world } from '../lib/snapshotter.ts';

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

test('after a kill of the daemon and of the keeper, what stands there dead is cleared away', async (t) => {
  const { stage, registry, containerd, daemon } = await world(t);
  const one = `${registry}/app:v1`;
  await containerd.pull(one);
  t.is(await containerd.run(one, 'c1', ['cat', '/app/version']), 'one\n');
  const images = join(stage.root, 'containerd/images');
  const killBoth = async (each: Background) => {
    const keeper = Number(/"pid":(\d+),"msg":"keeper connected"/.exec(each.stderr)?.[1]);
    t.true(keeper > 1);
    await each.kill('SIGKILL');
    process.kill(keeper, 'SIGKILL');
    t.is((await mountsBelow(images)).length, 1, 'nobody takes it down');
  };
  /** containerd hears of the new daemon in its own time. */
  const connected = () =>
    until('containerd has connected again', () =>
      containerd.ctr(['snapshots', '--snapshotter', 'firstlight', 'ls']).then(
        () => true,
        () => false,
      ),
    );
  await killBoth(daemon);
  const second = await startDaemon(stage);
  await connected();
  t.is(await containerd.run(one, 'c2', ['cat', '/app/version']), 'one\n');
  await killBoth(second);
  const third = await startDaemon(stage);
  await connected();
  await containerd.removeImage(one);
  await until('nothing stands there', async () => (await mountsBelow(images)).length === 0);
  t.regex(third.stderr, /a mount of an earlier keeper detached/);
});
