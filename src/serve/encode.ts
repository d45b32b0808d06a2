// The call from the server into the encoder (delta/), which runs in a thread of its own.

import type { EncodedBundle } from '../delta/bundle-encode.ts';
import { encodeBundleInWorker } from '../delta/encode-thread.ts';
import { FirstlightError } from '../errors/errors.ts';
import type { LoadedImage } from './bundle-cache.ts';
import { unpackRanks } from './ranks.ts';

/** What a bundle is made of. */
export interface EncodeRequest {
  image: LoadedImage;
  bases: readonly LoadedImage[];
  /** The order, as ranks.ts packs it; that of the tree where absent. */
  ranks?: Uint8Array | undefined;
  /** Contents as `<2 hex>/<62 hex>`. */
  contentDir: string;
  /** With patches against the bases; nobody waits for such a bundle. */
  patches: boolean;
}

/**
 * Writes a bundle to `path`.
 * @throws 'corrupt' where the store lacks a content or has a damaged one, 'no-space', the reason of `signal`
 */
export async function encode(
  { image, bases, ranks, contentDir, patches }: EncodeRequest,
  path: string,
  signal: AbortSignal,
): Promise<EncodedBundle> {
  try {
    return await encodeBundleInWorker(
      {
        manifest: image.manifest,
        config: image.config,
        toc: image.toc.bytes,
        digests: image.digests,
        bases: bases.map(({ digest, toc, digests }) => ({ digest, toc: toc.bytes, digests })),
        ...(ranks === undefined ? {} : { ranks: unpackRanks(ranks) }),
        contentDirectory: contentDir,
        ...(patches ? { patches, background: true, threads: 1 } : {}),
      },
      path,
      { signal },
    );
  } catch (error) {
    if (!(error instanceof FirstlightError)) throw error;
    if (error.kind !== 'not-found' && error.kind !== 'corrupt') throw error;
    // A file that is not there is no "not found" to the client: the image is, and the store is damaged.
    throw new FirstlightError('corrupt', `the server cannot read image ${image.digest}`, {
      hint: 'remove it with "firstlight image rm" and add it again',
      cause: error,
    });
  }
}
