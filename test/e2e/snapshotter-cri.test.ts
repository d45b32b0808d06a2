// Kubernetes' way through containerd on firstlight: pods and containers by the calls that crictl and the kubelet
// make of the runtime interface, statistics and removal included. Pulls with and without annotations, and when the
// delta server is not there: snapshotter.test.ts.
import { readdir } from 'node:fs/promises';
import { join } from 'node:path';
import test from 'ava';
import { HEADER_BYTES } from '../lib/arriving.ts';
import { layerDigests } from '../lib/containerd.ts';
import { containerdVersion } from '../lib/containerd-config.ts';
import { Cri } from '../lib/cri.ts';
import { FaultProxy } from '../lib/fault-proxy.ts';
import { mountsBelow } from '../lib/leaks.ts';
import { until } from '../lib/proc.ts';
import { pulls, world } from '../lib/snapshotter.ts';

const STEP_BYTES = 256 << 10;

test.serial('a pod runs before its image is there, is measured, and leaves nothing', async (t) => {
  const made = Promise.withResolvers<FaultProxy>();
  const through = async ({ url }: { url: string }) => {
    const proxy = await FaultProxy.start(url);
    made.resolve(proxy);
    return proxy.url;
  };
  const { stage, images, registry, pause, containerd, metric } = await world(t, {
    through,
    pods: true,
  });
  const proxy = await made.promise;
  stage.onClose(() => proxy.close());
  const image = `${registry}/app:v1`;
  const cri = new Cri(stage, containerd);
  const { major, minor } = await containerdVersion();

  // The sandbox's own image, which the delta server does not have, comes in the ordinary way.
  const pod = await cri.runPod('p1');
  t.deepEqual(
    (await pulls(stage)).map(({ way }) => way),
    ['ordinary'],
  );
  proxy.holdAfter(HEADER_BYTES);
  const id = await cri.pull(image);
  const starting = cri.start(pod, 'c1', image, ['/bin/sleep', '1000000']);
  let isStarted = false;
  const started = () => {
    isStarted = true;
  };
  starting.then(started, started);
  // No more than what somebody waits for.
  await until('the container runs', async () => {
    const waiting = proxy.isHolding && (await metric('firstlight_waiting_requests')) > 0;
    if (waiting) proxy.holdAfter(STEP_BYTES);
    return isStarted;
  });
  const container = await starting;
  const isComplete = async () => {
    const { images: all } = await stage.json<{ images: { complete: boolean }[] }>(['ls']);
    return all.every(({ complete }) => complete);
  };
  t.false(await isComplete(), 'it runs before all has arrived');
  const waiting = cri.exec(container, ['/bin/sh', '-c', 'wc -c </data/base; cat /app/version']);
  proxy.flow();
  t.is(await waiting, '6000000\none\n');
  const blobs = await containerd.contents();
  for (const digest of await layerDigests(images.layout, 'v1')) t.false(blobs.includes(digest));

  const listed = (await cri.images()).find((each) => each.id === id);
  t.deepEqual(listed?.repoTags, [image]);
  await cri.exec(container, ['/bin/sh', '-c', 'cat /usr/lib/library >/app/copy; touch /app/new']);
  const written = await until(
    'what the container has written is measured',
    async () => {
      const use = (await cri.written()).get(container);
      return use !== undefined && use.bytes >= 3_000_000 && use;
    },
    { timeoutMs: 120_000 },
  );
  t.true(written.bytes < 4_000_000, `${written.bytes} bytes of 3 MB that were written`);
  t.true(written.inodes >= 3, `${written.inodes} of /app, /app/copy and /app/new`);
  const [filesystem] = await until('images are measured', async () => {
    const all = await cri.imageFilesystems();
    return all[0] !== undefined && all[0].bytes > 10_000_000 && all;
  });
  // Whose disk the kubelet looks at. 1.6 knows no directory of a proxy plugin and makes a name up.
  const known = join(stage.root, 'containerd');
  const madeUp = join(stage.dir, 'containerd/root/io.containerd.snapshotter.v1.firstlight');
  t.is(filesystem!.mountPoint, major >= 2 || minor >= 7 ? known : madeUp);

  await cri.remove(container);
  await cri.removePod(pod);
  await cri.removeImage(image);
  await cri.removeImage(pause!);
  t.deepEqual(await cri.images(), []);
  await until('the snapshots are gone', async () => {
    return (await readdir(join(stage.root, 'containerd/snapshots'))).length === 0;
  });
  await until('nothing is mounted', async () => (await mountsBelow(stage.root)).length === 0);
  await stage.must(['gc']);
  const contents = await readdir(join(stage.root, 'content'), { recursive: true });
  t.deepEqual(
    contents.filter((name) => name.includes('/')),
    [],
  );
  t.deepEqual(await readdir(join(stage.root, 'containerd/images')), []);
  t.deepEqual(await containerd.contents(), []);
});
