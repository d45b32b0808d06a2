// The mounted tree equals the image as an independent tool unpacks it: every path, type, mode, owner,
// size, time, link target, hard-link group, device number, extended attribute and content. Two more
// images are in test/long/trees-real.test.ts.
import test from 'ava';
import { compareTrees } from '../lib/compare-trees.ts';
import { testImage } from '../lib/images.ts';

test.serial(
  'layers: seven layers with whiteouts, opaque directories and every kind of entry',
  async (t) => {
    t.timeout(280_000);
    const image = await testImage('layers');
    await compareTrees(t, `oci:${image}/oci:latest`, { tool: 'umoci', image, file: 'oci:latest' });
  },
);
