// containerd on firstlight where something is wrong: a delta server that is deaf, mounts that somebody has
// taken away. Real containerd, docker-registry and runc, as in snapshotter.test.ts.
import { join } from 'node:path';
import test from 'ava';
import { layerDigests } from '../lib/containerd.ts';
import { mountsBelow } from '../lib/leaks.ts';
import { must } from '../lib/proc.ts';
import { behindProxy, pulls, world } from '../lib/snapshotter.ts';

test.serial(
  'a delta server that accepts and never answers holds a pull up for the bound only, and it shows',
  async (t) => {
    const daemonArgs = ['--prepare-timeout', '3s'];
    const w = await behindProxy(t, { daemon: daemonArgs, stalled: true });
    const { stage, registry, containerd, daemon, proxy, metric } = w;
    const one = `${registry}/app:v1`;
    await containerd.pull(one);
    t.true(proxy.connections > 0, 'it accepts');
    t.is(proxy.bytesDown, 0, 'and answers nothing');
    t.is(await containerd.run(one, 'c1', ['cat', '/app/version']), 'one\n');

    const layers = (await layerDigests(w.images.layout, 'v1')).length;
    t.is(await metric('firstlight_layers_total', '{way="ordinary",reason="timeout"}'), layers);
    t.is(await metric('firstlight_layers_total', '{way="lazy",reason=""}'), 0);
    const reason = /the delta server did not answer within 3 s/;
    t.regex(daemon.stderr, new RegExp(`a layer is pulled in the ordinary way: ${reason.source}`));
    const [pulled] = await pulls(stage);
    t.like(pulled, { image: one, way: 'ordinary' });
    t.regex(pulled?.reason ?? '', reason);
    t.regex(await stage.must(['ls']), new RegExp(`app:v1 .*ordinary .*${reason.source}`));

    // No call took longer than its bound and what an ordinary one takes on a machine under load; an answer of the
    // server itself would be waited for five minutes.
    const seconds = 'firstlight_snapshot_operation_duration_seconds';
    const all = await metric(`${seconds}_count`, '{operation="Prepare"}');
    t.true(all > layers);
    t.is(await metric(`${seconds}_bucket`, '{le="60",operation="Prepare"}'), all);
    t.is((await daemon.kill('SIGTERM')).code, 0, 'nothing that it has begun keeps it');
  },
);

test.serial(
  'an image that somebody unmounts under a running container is mounted anew for the next one',
  async (t) => {
    const { stage, registry, containerd, daemon } = await world(t);
    const one = `${registry}/app:v1`;
    await containerd.pull(one);
    await containerd.start(one, 'c1');
    const images = join(stage.root, 'containerd/images');
    const [mount] = await mountsBelow(images);
    await must('umount', ['--lazy', mount!.mountPoint]);
    t.deepEqual(await mountsBelow(images), []);
    t.is(await containerd.exec('c1', ['cat', '/app/version']), 'one\n', 'it keeps its files');
    t.is(await containerd.run(one, 'c2', ['cat', '/app/version']), 'one\n', 'over a new mount');
    t.regex(daemon.stderr, /an image was unmounted/);
    t.is((await mountsBelow(images)).length, 1);
    t.is(await containerd.exec('c1', ['sh', '-c', 'wc -c </usr/lib/library']), '3000000\n');
    await containerd.remove('c1');
    // At the same moment as a start: that one may fail, between its Prepare and its own mount; never the next.
    for (const round of [1, 2, 3]) {
      const [mount] = await mountsBelow(images);
      await Promise.allSettled([
        containerd.run(one, `r${round}`, ['cat', '/app/version']),
        must('umount', ['--lazy', mount!.mountPoint]),
      ]);
      t.is(await containerd.run(one, `s${round}`, ['cat', '/app/version']), 'one\n');
    }
  },
);
