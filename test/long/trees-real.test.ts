// Whole images of Debian packages equal what an independent tool unpacks, as in test/e2e/trees.test.ts.
import test from 'ava';
import { compareTrees } from '../lib/compare-trees.ts';
import { testImage } from '../lib/images.ts';

test('redis: an OCI layout of three layers', async (t) => {
  t.timeout(280_000);
  const image = await testImage('redis');
  await compareTrees(t, `oci:${image}/oci:latest`, { tool: 'umoci', image, file: 'oci:latest' });
});

test('python: a root filesystem tar', async (t) => {
  t.timeout(280_000);
  const image = await testImage('python');
  await compareTrees(t, `rootfs:${image}/rootfs.tar`, { tool: 'tar', image, file: 'rootfs.tar' });
});
