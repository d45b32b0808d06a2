// `ctr images pull` onto firstlight. From 2.0 on it goes by containerd's transfer service, which asks for each snapshot
// before it downloads the layer; before, and with --local, ctr downloads all before it asks for any. The kubelet's
// pulls: snapshotter.test.ts.
import test from 'ava';
import { layerDigests } from '../lib/containerd.ts';
import { containerdVersion } from '../lib/containerd-config.ts';
import { pulls, world } from '../lib/snapshotter.ts';

const PULL = ['images', 'pull', '--plain-http'];
const ON_FIRSTLIGHT = ['--snapshotter', 'firstlight'];

test.serial(
  'ctr pulls lazily where it asks before it downloads; beside another snapshotter',
  async (t) => {
    const { stage, images, registry, containerd, metric } = await world(t);
    const { transfers } = await containerdVersion();
    const [one, two, other] = ['v1', 'v2', 'other'].map((tag) => `${registry}/app:${tag}`);
    const downloaded = async (tag: string) => {
      const blobs = new Set(await containerd.contents());
      const digests = await layerDigests(images.layout, tag);
      return digests.map((digest) => blobs.has(digest));
    };
    await containerd.ctr([...PULL, ...ON_FIRSTLIGHT, one!]);
    t.deepEqual(await downloaded('v1'), [!transfers, !transfers, !transfers]);
    t.is(await containerd.run(one!, 'c1', ['cat', '/app/version']), 'one\n');
    const [pulled] = await pulls(stage);
    t.is(pulled?.way, transfers ? 'lazy' : 'ordinary');
    // It says which image it is of, so its name is known.
    if (transfers) t.is(pulled?.image, one);

    // Its layer stands on two that came lazily, and are downloaded by nobody.
    await containerd.ctr([...PULL, ...ON_FIRSTLIGHT, other!]);
    t.deepEqual(await downloaded('other'), [!transfers, !transfers, true]);
    t.is(
      await containerd.run(other!, 'c2', ['sh', '-c', 'ls /data; cat /other/file']),
      'base\nother\n',
    );

    // To another snapshotter the same image is an ordinary one.
    const before = await metric('firstlight_layers_total', '{way="lazy",reason=""}');
    await containerd.ctr([...PULL, '--snapshotter', 'overlayfs', two!]);
    t.deepEqual(await downloaded('v2'), [true, true, true]);
    t.is(await metric('firstlight_layers_total', '{way="lazy",reason=""}'), before);
    const run = ['run', '--rm', '--net-host', '--snapshotter', 'overlayfs', two!];
    t.is(await containerd.ctr([...run, containerd.named('c3'), 'cat', '/app/version']), 'two\n');
  },
);
