// Holds a mounted tree against what an independent tool makes of the same image.
import type { ExecutionContext } from 'ava';
import { listTree, referenceTree, treeDifference, type Unpacker } from './images.ts';
import { Stage } from './stage.ts';

/** The image `source`, mounted with and without an overlay, equals what `unpacker` unpacks. */
export async function compareTrees(
  t: ExecutionContext<unknown>,
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
