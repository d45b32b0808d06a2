// A whole image through the portable session. A small one, and everything else about the session:
// test/e2e/portable.test.ts.
import test from 'ava';
import { referenceTree, testImage } from '../lib/images.ts';
import { comparePortable } from '../lib/portable-tree.ts';
import { Stage } from '../lib/stage.ts';

test('a tree of thousands of names equals what umoci unpacks, but for the limits of the session', async (t) => {
  t.timeout(280_000);
  const stage = await Stage.open(t);
  const image = await testImage('layers');
  const expected = await referenceTree({ tool: 'umoci', image, file: 'oci:latest' });
  t.true(expected.split('\n').length > 3000);
  const source = `oci:${image}/oci:latest`;
  await comparePortable(t, stage, { source, expected, bytes: 'app/kinds/byte-target' });
});
