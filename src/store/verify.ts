// Verification: every content is hashed again. A damaged one is put into quarantine/, the images
// that use it count as incomplete from then on, and their next receiver fetches it again.
import { createHash } from 'node:crypto';
import { eachOf, hashFile } from './contents.ts';
import type { LayerStore } from './layer-store.ts';

/** How to verify. */
export interface VerifyOptions {
  /** Called now and then with contents done and in all. */
  onProgress?: (done: number, all: number) => void;
  signal?: AbortSignal;
}

/** What a verification found. */
export interface VerifyReport {
  /** Contents hashed. */
  contents: number;
  /** Digests (hex) whose bytes were wrong; they stand in quarantine/ now. */
  damaged: string[];
  /** Digests (hex) that a complete image uses and the store has not. */
  missing: string[];
  /** Images that count as incomplete because of the two. */
  images: string[];
  /** Images whose manifest does not match their digest. */
  damagedImages: string[];
}

/** Runs a verification. Call it through `LayerStore.verify`. */
export async function verifyStore(
  store: LayerStore,
  { onProgress, signal }: VerifyOptions,
): Promise<VerifyReport> {
  const all = [...store.contents.names()];
  const damaged: string[] = [];
  let done = 0;
  await eachOf(all, 2, async (hex) => {
    signal?.throwIfAborted();
    if (!(await isSound(store, hex))) {
      store.log.error({ content: hex }, 'a content is damaged and is put into quarantine');
      await store.contents.quarantine(hex);
      damaged.push(hex);
    }
    if (++done % 256 === 0) onProgress?.(done, all.length);
  });
  onProgress?.(done, all.length);
  const { missing, images } = await findIncomplete(store, new Set(damaged));
  if (damaged.length + missing.length > 0) await store.reportDamage([...damaged, ...missing]);
  const damagedImages = await findDamagedImages(store);
  return { contents: all.length, damaged, missing, images, damagedImages };
}

/** False where the bytes differ from the name or cannot be read. */
async function isSound(store: LayerStore, hex: string): Promise<boolean> {
  for (let attempt = 0; ; attempt++) {
    const path = store.contents.path(hex);
    // Collected meanwhile: nothing to say about it.
    if (path === undefined) return true;
    try {
      return (await hashFile(path)) === hex;
    } catch (error) {
      const { code } = error as NodeJS.ErrnoException;
      // It may just have been renamed from incoming/ to content/.
      if (code === 'ENOENT' && attempt === 0) continue;
      if (code === 'ENOENT' || code === 'EIO') return false;
      throw error;
    }
  }
}

/** Complete images that lack a content; they are marked incomplete. `known` is not named again. */
async function findIncomplete(
  store: LayerStore,
  known: Set<string>,
): Promise<{ missing: string[]; images: string[] }> {
  const missing = new Set<string>();
  const images: string[] = [];
  for (const { digest, complete } of store.images()) {
    const image = store.findImage(digest);
    if (image === undefined || !complete) continue;
    const digests = await image.read('contents');
    let lacks = false;
    for (let at = 0; at + 32 <= digests.length; at += 32) {
      if (store.contents.has(digests, at)) continue;
      lacks = true;
      const hex = digests.toString('hex', at, at + 32);
      if (!known.has(hex)) missing.add(hex);
    }
    if (!lacks) continue;
    await image.setState({ complete: false });
    images.push(digest);
  }
  return { missing: [...missing], images };
}

async function findDamagedImages(store: LayerStore): Promise<string[]> {
  const damaged: string[] = [];
  for (const { digest } of store.images()) {
    const image = store.findImage(digest);
    if (image === undefined) continue;
    const hash = createHash('sha256').update(await image.read('manifest.json'));
    if (`sha256:${hash.digest('hex')}` !== digest) damaged.push(digest);
  }
  return damaged;
}
