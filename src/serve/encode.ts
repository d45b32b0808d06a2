// The call from the server into the encoder: contents come from the store's directory.
import { open } from 'node:fs/promises';
import { join } from 'node:path';
import { type EncodedBundle, encodeBundle } from '../delta/bundle-encode.ts';
import type { LoadedImage } from './bundle-cache.ts';

/** What a bundle is made of. */
export interface EncodeRequest {
  image: LoadedImage;
  bases: LoadedImage[];
  /** Contents as `<2 hex>/<62 hex>`. */
  contentDir: string;
}

export type Encode = (
  request: EncodeRequest,
  path: string,
  signal: AbortSignal,
) => Promise<EncodedBundle>;

export const encodeInThread: Encode = (request, path, signal) => {
  const { image, bases, contentDir } = request;
  return encodeBundle(
    {
      manifest: image.manifest,
      config: image.config,
      toc: image.toc,
      digests: image.digests,
      bases,
      signal,
      async readContent(hex, offset, bytes) {
        const handle = await open(join(contentDir, hex.slice(0, 2), hex.slice(2)), 'r');
        try {
          const data = Buffer.allocUnsafe(bytes);
          const { bytesRead } = await handle.read(data, 0, bytes, offset);
          return data.subarray(0, bytesRead);
        } finally {
          await handle.close();
        }
      },
    },
    path,
  );
};
