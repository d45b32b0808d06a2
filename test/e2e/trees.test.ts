// The mounted tree equals the image as an independent tool unpacks it: every path, type, mode, owner,
// size, time, link target, hard-link group, device number, extended attribute and content.
import test from 'ava';
import {
  listTree,
  referenceTree,
  testImage,
  treeDifference,
  type Unpacker,
} from '../lib/images.ts';
import { Stage } from '../lib/stage.ts';

async function compare(
  t: import('ava').ExecutionContext<unknown>,
  source: string,
  unpacker: Unpacker,
): Promise<void> {
  const stage = await Stage.open(t);
  await stage.serve();
  await stage.addImage(source, 'image:test');
  const expected = await referenceTree(unpacker);
  t.true(expected.split('\n').length > 3000, 'the reference is a whole tree');
  for (const rw of ['off', 'overlay']) {
    // Listing begins while contents are still arriving: what it reads, it waits for.
    const dir = await stage.mount('image:test', ['--rw', rw], `mnt-${rw}`);
    t.deepEqual(treeDifference(expected, await listTree(dir)), [], `--rw ${rw}`);
    await stage.must(['umount', dir]);
  }
}

test('redis: an OCI layout of three layers', async (t) => {
  t.timeout(280_000);
  const image = await testImage('redis');
  await compare(t, `oci:${image}/oci:latest`, { tool: 'umoci', image, file: 'oci:latest' });
});

test('layers: seven layers with whiteouts, opaque directories and every kind of entry', async (t) => {
  t.timeout(280_000);
  const image = await testImage('layers');
  await compare(t, `oci:${image}/oci:latest`, { tool: 'umoci', image, file: 'oci:latest' });
});

test('python: a root filesystem tar', async (t) => {
  t.timeout(280_000);
  const image = await testImage('python');
  await compare(t, `rootfs:${image}/rootfs.tar`, { tool: 'tar', image, file: 'rootfs.tar' });
});
