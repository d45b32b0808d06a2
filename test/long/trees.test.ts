// The other formats of the test images give the same trees, and so does a connection that breaks
// all the time.
import test from 'ava';
import { FaultProxy } from '../lib/fault-proxy.ts';
import {
  listTree,
  referenceTree,
  testImage,
  treeDifference,
  type Unpacker,
} from '../lib/images.ts';
import { Stage } from '../lib/stage.ts';

const FORMATS: [string, 'redis' | 'layers', string, Unpacker['tool'], string][] = [
  [
    'redis as docker-archive',
    'redis',
    'docker-archive:%/docker-archive.tar',
    'umoci',
    'oci:latest',
  ],
  [
    'layers as docker-archive',
    'layers',
    'docker-archive:%/docker-archive.tar',
    'umoci',
    'oci:latest',
  ],
  ['a rootfs tar in old GNU format', 'layers', 'rootfs:%/rootfs-gnu.tar', 'tar', 'rootfs-gnu.tar'],
];
for (const [what, name, source, tool, file] of FORMATS) {
  test(`${what} has the tree that ${tool} unpacks`, async (t) => {
    const stage = await Stage.open(t);
    const image = await testImage(name);
    await stage.serve();
    await stage.addImage(source.replace('%', image), 'image:test');
    const dir = await stage.mount('image:test', ['--rw', 'off']);
    const expected = await referenceTree({ tool, image, file });
    t.deepEqual(treeDifference(expected, await listTree(dir)), []);
  });
}

test('a tree that arrives over a connection which is cut again and again is the same', async (t) => {
  const stage = await Stage.open(t);
  const image = await testImage('layers');
  const server = await stage.serve({ rate: '400mbit' });
  await stage.addImage(`oci:${image}/oci:latest`, 'image:test');
  const proxy = await FaultProxy.start(server.url);
  stage.onClose(() => proxy.close());
  stage.env.FIRSTLIGHT_SERVER = proxy.url;
  const dir = await stage.mount('image:test', ['--rw', 'off']);
  const cutter = setInterval(() => proxy.cut(), 700);
  try {
    const expected = await referenceTree({ tool: 'umoci', image, file: 'oci:latest' });
    t.deepEqual(treeDifference(expected, await listTree(dir)), []);
  } finally {
    clearInterval(cutter);
  }
  const { transfer } = await stage.mountStatus(dir);
  t.true(transfer.retries > 0, 'the connection was cut while it was needed');
});

test('eight mounts of one image share its contents and are the same', async (t) => {
  const stage = await Stage.open(t);
  const image = await testImage('redis');
  await stage.serve({ rate: '400mbit' });
  await stage.addImage(`oci:${image}/oci:latest`, 'image:test');
  const names = Array.from({ length: 8 }, (_, i) => `mnt-${i}`);
  // The first ones start at once, and so race for daemon, store and transfer.
  const dirs = await Promise.all(
    names.map((name, i) => stage.mount('image:test', ['--rw', i % 2 ? 'overlay' : 'off'], name)),
  );
  const expected = await referenceTree({ tool: 'umoci', image, file: 'oci:latest' });
  for (const dir of dirs) t.deepEqual(treeDifference(expected, await listTree(dir)), [], dir);
  const { mounts } = await stage.status();
  t.is(mounts.length, 8);
  t.is(new Set(mounts.map((mount) => mount.digest)).size, 1);
  for (const dir of dirs) await stage.must(['umount', dir]);
  t.deepEqual((await stage.status()).mounts, []);
});
