// containerd on firstlight: real containerd, docker-registry and runc. Images that the delta server has come
// lazily by the kubelet's ordinary pull; others, and all of them while it is down, come in the ordinary way.
import { readdir } from 'node:fs/promises';
import { join } from 'node:path';
import test from 'ava';
import { type Containerd, layerDigests } from '../lib/containerd.ts';
import { mountsBelow } from '../lib/leaks.ts';
import { must, until } from '../lib/proc.ts';
import { pulls, startDaemon, world } from '../lib/snapshotter.ts';

test.serial(
  'two versions are pulled lazily and run; only what differs travels; nothing is left',
  async (t) => {
    const { stage, images, registry, containerd, metric, server } = await world(t);
    const [one, two] = [`${registry}/app:v1`, `${registry}/app:v2`];
    await containerd.pull(one);
    const blobs = await containerd.contents();
    for (const digest of await layerDigests(images.layout, 'v1')) {
      t.false(blobs.includes(digest), `containerd has downloaded layer ${digest}`);
    }
    t.is(await containerd.run(one, 'c1', ['cat', '/app/version']), 'one\n');
    const script = 'ls /data; wc -c </data/base; echo changed >/app/version; cat /app/version';
    await reconnected(containerd);
    t.is(await containerd.run(one, 'c2', ['sh', '-c', script]), 'base\n6000000\nchanged\n');
    await reconnected(containerd);
    t.is(await containerd.run(one, 'c3', ['cat', '/app/version']), 'one\n');

    await until('the first version is complete', async () => {
      const { images: stored } = await stage.json<{ images: { complete: boolean }[] }>(['ls']);
      return stored.every(({ complete }) => complete);
    });
    const before = await metric('firstlight_received_bytes_total');
    t.true(before > 9_000_000, `${before} bytes came for the first version`);
    await containerd.pull(two);
    t.is(await containerd.run(two, 'c4', ['cat', '/app/version']), 'two\n');
    await until('the second version is complete', async () => {
      const { images: stored } = await stage.json<{ images: { complete: boolean }[] }>(['ls']);
      return stored.length === 2 && stored.every(({ complete }) => complete);
    });
    const delta = (await metric('firstlight_received_bytes_total')) - before;
    const { digest } = await stage.json<{ digest: string }>(['image', 'inspect', one]);
    const url = `${server.url}/v1/delta?image=${encodeURIComponent(two)}&base=${digest}`;
    const head = await fetch(url, { method: 'HEAD' });
    const bytes = Number(head.headers.get('content-length'));
    t.true(bytes > 90_000 && bytes < 150_000, `${bytes} bytes for 90 kB that differ`);
    // On a busy machine a connection may count as silent, and what it was to bring comes twice.
    t.true(delta >= bytes && delta < 3 * bytes, `${delta} bytes came of ${bytes}`);

    t.deepEqual(
      (await pulls(stage)).map(({ image, way, reason }) => ({ image, way, reason })),
      [
        { image: one, way: 'lazy', reason: null },
        { image: two, way: 'lazy', reason: null },
      ],
    );
    await containerd.removeImage(one);
    await containerd.removeImage(two);
    await until('the snapshots are gone', async () => (await pulls(stage)).length === 0);
    await stage.must(['gc']);
    const left = await stage.json<{ images: unknown[] }>(['ls']);
    t.deepEqual(left.images, []);
    t.deepEqual(await readdir(join(stage.root, 'containerd/snapshots')), []);
    t.deepEqual(await readdir(join(stage.root, 'containerd/images')), []);
    const contents = await readdir(join(stage.root, 'content'), { recursive: true });
    t.deepEqual(
      contents.filter((name) => name.includes('/')),
      [],
    );
    t.deepEqual(await mountsBelow(stage.dir), []);
  },
);

test.serial(
  'an image that the server does not know is pulled in the ordinary way, on a base that came lazily',
  async (t) => {
    const { stage, registry, containerd, daemon, metric } = await world(t);
    const [one, other] = [`${registry}/app:v1`, `${registry}/app:other`];
    await containerd.pull(one);
    // Base and library are shared with the image that came lazily: they have no directory of their own.
    await containerd.pull(other);
    const list = 'cat /other/file; ls /data; wc -c </usr/lib/library; ls /app 2>&1 | wc -l';
    t.is(
      await containerd.run(other, 'c1', ['sh', '-c', list]),
      'other\nbase\n3000000\n1\n',
      "the application's layer is not in it",
    );
    await reconnected(containerd);
    t.is(await containerd.run(one, 'c2', ['cat', '/app/version']), 'one\n');
    t.regex(daemon.stderr, /a layer is pulled in the ordinary way: the delta server does not have/);
    t.deepEqual(
      (await pulls(stage)).map(({ image, way, reason }) => ({ image, way, reason })),
      [
        { image: one, way: 'lazy', reason: null },
        { image: other, way: 'ordinary', reason: 'the delta server does not have the image' },
      ],
    );
    t.is(await metric('firstlight_layers_total', '{way="ordinary",reason="unknown-image"}'), 1);
    // What the kubelet asks of every snapshot now and then.
    const usage = await containerd.ctr(['snapshots', '--snapshotter', 'firstlight', 'usage']);
    t.regex(usage, /KiB|MiB/);
    await containerd.removeImage(one);
    t.is(await containerd.run(other, 'c3', ['sh', '-c', 'cat /data/base | wc -c']), '6000000\n');
    await containerd.removeImage(other);
    await stage.must(['gc']);
    t.deepEqual((await stage.json<{ images: unknown[] }>(['ls'])).images, []);
  },
);

test.serial(
  'while the server is down everything is pulled in the ordinary way, and says so',
  async (t) => {
    const { stage, registry, containerd, daemon, server, metric } = await world(t);
    const one = `${registry}/app:v1`;
    await server.process.kill('SIGTERM');
    await containerd.pull(one);
    t.is(await containerd.run(one, 'c1', ['cat', '/app/version']), 'one\n');
    t.true((await metric('firstlight_layers_total', '{way="ordinary",reason="unreachable"}')) >= 1);
    t.regex(daemon.stderr, /ordinary way: .*cannot be reached/);
    const [pulled] = await pulls(stage);
    t.like(pulled, { image: one, way: 'ordinary' });
    t.regex(pulled?.reason ?? '', /cannot be reached/);
    const shown = await stage.must(['ls']);
    t.regex(shown, /PULLED BY CONTAINERD .*REASON/);
    t.regex(shown, /app:v1 .*ordinary .*cannot be reached/);
  },
);

test.serial('a pull that says nothing but chain ids comes lazily too', async (t) => {
  const { stage, images, registry, containerd } = await world(t, { annotations: false });
  const [one, other] = [`${registry}/app:v1`, `${registry}/app:other`];
  await containerd.pull(one);
  const blobs = await containerd.contents();
  for (const digest of await layerDigests(images.layout, 'v1')) t.false(blobs.includes(digest));
  t.is(await containerd.run(one, 'c1', ['cat', '/app/version']), 'one\n');
  await containerd.pull(other);
  t.is(await containerd.run(other, 'c2', ['sh', '-c', 'ls /data; ls -d /app || true']), 'base\n');
  t.deepEqual(
    (await pulls(stage)).map(({ way }) => way),
    ['lazy', 'ordinary'],
  );
});

test.serial('commits, views and copies on an image that comes lazily, by ctr', async (t) => {
  const { stage, registry, containerd } = await world(t);
  const one = `${registry}/app:v1`;
  await containerd.pull(one);
  await containerd.start(one, 'writer');
  await containerd.exec('writer', [
    'sh',
    '-c',
    'echo new >/app/new; rm /app/same; echo two >/app/version',
  ]);
  t.regex(await containerd.exec('writer', ['sh', '-c', 'cat /app/*']), /new\n.*two\n/s);
  const sn = ['snapshots', '--snapshotter', 'firstlight'];
  // What the container has changed, as a layer: containerd compares views of both, as a commit does.
  const layer = join(stage.dir, 'changes.tar.gz');
  await must('sh', [
    '-c',
    'ctr --address "$0" --namespace k8s.io snapshots --snapshotter firstlight diff --keep "$2" >"$1"',
    containerd.address,
    layer,
    containerd.named('writer'),
  ]);
  const names = (await must('tar', ['-tzf', layer])).split('\n').filter(Boolean).sort();
  // ctr and runc make mount points of their own beside them.
  t.deepEqual(
    names.filter((name) => name.startsWith('app/')),
    ['app/', 'app/.wh.same', 'app/new', 'app/version'],
  );
  t.false(
    names.some((name) => /^(bin|data|usr)/.test(name)),
    'nothing that was not changed',
  );
  // A commit that another container stands on: a plain layer over the lazy image.
  await containerd.ctr([...sn, 'commit', 'committed', containerd.named('writer')]);
  // No lease and no label holds a view that ctr makes: containerd's own collector takes it away, now or later.
  const shown = await containerd.ctr([...sn, 'view', '--target', '/mnt', 'look', 'committed']);
  t.regex(shown, /lowerdir=\S+\/snapshots\/\d+\/fs:\S+\/images\/[0-9a-f]{24}/);
  await containerd.remove('writer');
});

/**
 * Waits until containerd's gRPC client has dialled again. It does so in its own time: calls fail with `unavailable`
 * until then, also while a new daemon is there already.
 */
function reconnected(containerd: Containerd): Promise<boolean> {
  return until('containerd has connected', async () => {
    const listed = containerd.ctr(['snapshots', '--snapshotter', 'firstlight', 'ls']);
    return listed.then(
      () => true,
      (error: Error) => {
        // The second is how 2.x says it of a socket that nobody listens on.
        if (!/unavailable|connection error/.test(error.message)) throw error;
        return false;
      },
    );
  });
}

test.serial(
  'containers go on reading while the daemon is stopped or killed, and wait for it where they must',
  async (t) => {
    const { stage, registry, containerd, daemon } = await world(t, { rate: '16mbit' });
    const one = `${registry}/app:v1`;
    await containerd.pull(one);
    await containerd.start(one, 'c1');
    const early = await containerd.exec('c1', ['cat', '/app/version']);
    t.is(early, 'one\n');
    const [status] = await pulls(stage);
    t.is(status?.way, 'lazy');

    const stopped = await daemon.kill('SIGTERM');
    t.is(stopped.code, 0, stopped.stderr.slice(-2000));
    t.is(await containerd.exec('c1', ['cat', '/app/version']), 'one\n', 'without a daemon');
    // Not here yet: it waits, beyond the daemon's absence.
    const waiting = containerd.exec('c1', ['sh', '-c', 'cat /data/base | wc -c']);
    const second = await startDaemon(stage);
    t.is(await waiting, '6000000\n', 'what was waited for came after the restart');
    await reconnected(containerd);
    t.is(await containerd.run(one, 'c2', ['cat', '/app/version']), 'one\n');

    await second.kill('SIGKILL');
    t.is(
      await containerd.exec('c1', ['sh', '-c', 'ls /usr/lib; cat /app/version']),
      'library\none\n',
    );
    const third = await startDaemon(stage);
    t.regex(third.stderr, /keeper found/);
    t.is(await containerd.exec('c1', ['sh', '-c', 'wc -c </usr/lib/library']), '3000000\n');
    await reconnected(containerd);
    t.is(await containerd.run(one, 'c3', ['cat', '/app/version']), 'one\n');
    t.notRegex(second.stderr + third.stderr, /not connected/);
    await containerd.remove('c1');
    await containerd.removeImage(one);
    await until('nothing is mounted', async () => (await mountsBelow(stage.dir)).length === 0);
    t.is((await third.kill('SIGTERM')).code, 0);
  },
);
