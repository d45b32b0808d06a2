// Collection: removes images nobody can name or uses, and contents no image uses. Transfers go on
// meanwhile: what they use from its begin on is remembered and left (ContentStore.beginCollection),
// and changes that had begun before are waited for.
import { readdir } from 'node:fs/promises';
import { join } from 'node:path';
import { DigestSet } from './digest-set.ts';
import type { LayerStore } from './layer-store.ts';
import { PARTIAL, partialPrefix } from './layout.ts';

/** What a collection removed. */
export interface GcReport {
  images: string[];
  contents: number;
  bytes: number;
}

/** Runs a collection. Call it through `LayerStore.gc`, which allows one at a time. */
export async function collect(store: LayerStore): Promise<GcReport> {
  const images: string[] = [];
  for (const image of store.images()) {
    if (image.names.length > 0 || image.pinned || image.users > 0) continue;
    await store.dropImage(image.digest);
    images.push(image.digest);
  }
  store.contents.beginCollection();
  try {
    await store.guardedSettled();
    const used = await usedContents(store);
    const unused: string[] = [];
    for (const hex of store.contents.names()) {
      if (!used.has(Buffer.from(hex, 'hex'))) unused.push(hex);
    }
    const { contents, bytes } = await store.contents.removeUnused(unused);
    await removeOrphanedPartials(store);
    return { images, contents, bytes };
  } finally {
    store.contents.endCollection();
  }
}

/** Digests that any image of the store names, whether it is complete or not. */
async function usedContents(store: LayerStore): Promise<DigestSet> {
  const used = new DigestSet(store.contents.count);
  for (const { digest } of store.images()) {
    const image = store.findImage(digest);
    if (image === undefined) continue;
    const digests = await image.read('contents');
    for (let at = 0; at + 32 <= digests.length; at += 32) used.add(digests, at);
  }
  return used;
}

async function removeOrphanedPartials(store: LayerStore): Promise<void> {
  const arriving = new Set(
    store
      .images()
      .filter((image) => !image.complete)
      .map((image) => partialPrefix(image.digest)),
  );
  for (const name of await readdir(store.layout.incoming)) {
    const partial = PARTIAL.exec(name);
    if (partial === null || arriving.has(partial[1]!)) continue;
    await store.io.remove(join(store.layout.incoming, name));
  }
}
