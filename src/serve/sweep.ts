// Takes away files that no row of the catalog names: after a removal, after an intake that failed at
// its very end, and after a crash. Always behind the gate, or before anybody else is there.
import type { BlobStore } from './blobs.ts';
import type { Catalog } from './catalog.ts';

/** Contents that are looked up in the catalog at a time. */
const LOOKUP = 4096;

interface Stores {
  catalog: Catalog;
  blobs: BlobStore;
}

async function unused(catalog: Catalog, contents: Buffer): Promise<string[]> {
  const used = await catalog.usedContents(contents);
  const hex: string[] = [];
  for (let i = 0; i < used.length; i++) {
    if (used[i] === 0) hex.push(contents.toString('hex', i * 32, i * 32 + 32));
  }
  return hex;
}

/** Removes those of these images and contents (32 bytes each) that have no row, then closes the change. */
export async function sweepSome(
  { catalog, blobs }: Stores,
  change: number,
  contents: Buffer,
  images: readonly string[],
): Promise<void> {
  for (const image of images) {
    if ((await catalog.findByDigest(image)) === undefined) await blobs.removeImage(image);
  }
  for (let at = 0; at < contents.length; at += LOOKUP * 32) {
    await blobs.removeContents(await unused(catalog, contents.subarray(at, at + LOOKUP * 32)));
  }
  await catalog.closeChange(change);
}

/** Removes every image and content that has no row. */
export async function sweepAll({ catalog, blobs }: Stores): Promise<{
  images: number;
  contents: number;
}> {
  const removed = { images: 0, contents: 0 };
  for (const image of await blobs.listImages()) {
    if ((await catalog.findByDigest(image)) !== undefined) continue;
    await blobs.removeImage(image);
    removed.images++;
  }
  const flush = async (batch: string[]) => {
    const gone = await unused(catalog, Buffer.from(batch.join(''), 'hex'));
    await blobs.removeContents(gone);
    removed.contents += gone.length;
  };
  let batch: string[] = [];
  for await (const hex of blobs.listContents()) {
    batch.push(hex);
    if (batch.length < LOOKUP) continue;
    await flush(batch);
    batch = [];
  }
  await flush(batch);
  await catalog.clearChanges();
  return removed;
}
