// Asking for a bundle of the same image anew, in the middle of its transfer: what it may stand on, and that it
// describes the same tree. What does not live here: what becomes of its frames (transfer.ts).
import { FirstlightError } from '../errors/errors.ts';
import type { StoredImage } from '../store/image.ts';
import type { LayerStore } from '../store/layer-store.ts';
import type { Template } from '../tree/template.ts';
import type { DeltaAnswer, DeltaClient } from './delta-client.ts';
import { readHeader } from './header.ts';
import { hasPatches } from './patch-bases.ts';

/** What is asked for, and of whom. */
interface Asked {
  store: LayerStore;
  image: StoredImage;
  template: Template;
  client: DeltaClient;
}

/** A bundle whose header has been read; the rest of the answer is the caller's. */
export interface NewBundle extends Awaited<ReturnType<typeof readHeader>> {
  answer: DeltaAnswer;
}

/**
 * Asks for a bundle of the image.
 * @param without  what it may not count on: other images of the store, patches
 * @throws FirstlightError of the network or the server; 'corrupt' where it is not what was asked for
 */
export async function askAnew(
  { store, image, template, client }: Asked,
  without: { bases: boolean; patches: boolean },
  signal: AbortSignal,
): Promise<NewBundle> {
  const { digest } = image;
  const bases = without.bases ? [] : completeImages(store).filter((base) => base !== digest);
  const patches = !without.patches;
  const request = { image: digest, platform: image.state.platform, bases, patches };
  const answer = await client.delta(request, signal);
  try {
    const read = await readHeader(answer.body);
    const { header } = read;
    if (!patches && hasPatches(header)) {
      throw new FirstlightError('corrupt', `${client.server} sends patches where none may be`, {
        hint: 'use the same release on server and worker',
      });
    }
    if (header.imageDigest !== digest || !header.toc.bytes.equals(template.toc.bytes)) {
      throw new FirstlightError('corrupt', `${client.server} describes ${digest} differently now`, {
        hint: 'unmount the image, remove it with "firstlight image rm" and mount it again',
      });
    }
    return { ...read, answer };
  } catch (error) {
    answer.body.destroy();
    throw error;
  }
}

/** Most images that are named to the server as bases. */
const BASES_MAX = 64;

/** Digests of the complete images, those used last first. */
export function completeImages(store: LayerStore): string[] {
  return store
    .images()
    .filter((image) => image.complete)
    .sort((a, b) => b.lastUsedAt - a.lastUsedAt)
    .slice(0, BASES_MAX)
    .map((image) => image.digest);
}
