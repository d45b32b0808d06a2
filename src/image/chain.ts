// Chain ids: how containerd names an unpacked layer together with everything below it (the OCI image
// specification's ChainID), and what an image's own documents say about its layers.
import { createHash } from 'node:crypto';
import * as v from 'valibot';
import { FirstlightError } from '../errors/errors.ts';

const Config = v.object({
  rootfs: v.object({ diff_ids: v.optional(v.nullable(v.array(v.string())), []) }),
});
const Manifest = v.object({
  layers: v.array(v.object({ digest: v.string(), size: v.pipe(v.number(), v.minValue(0)) })),
});

/** Layers of an image, the lowest first. */
export interface ImageLayers {
  chainIds: string[];
  /** Digests of the blobs in the registry. */
  digests: string[];
  /** Bytes of all blobs: what an ordinary pull downloads. */
  bytes: number;
}

/** Chain ids of layers with these uncompressed digests. */
export function chainIdsOf(diffIds: readonly string[]): string[] {
  const chain: string[] = [];
  for (const diffId of diffIds) {
    const below = chain.at(-1);
    if (below === undefined) chain.push(diffId);
    else chain.push(`sha256:${createHash('sha256').update(`${below} ${diffId}`).digest('hex')}`);
  }
  return chain;
}

/** The layers that an image's manifest and config name. @throws FirstlightError `corrupt` */
export function layersOf(manifest: Buffer, config: Buffer): ImageLayers {
  try {
    const { layers } = v.parse(Manifest, JSON.parse(manifest.toString('utf8')));
    const { rootfs } = v.parse(Config, JSON.parse(config.toString('utf8')));
    return {
      chainIds: chainIdsOf(rootfs.diff_ids ?? []),
      digests: layers.map(({ digest }) => digest),
      bytes: layers.reduce((sum, { size }) => sum + size, 0),
    };
  } catch (cause) {
    throw new FirstlightError('corrupt', "an image's manifest or config cannot be read", { cause });
  }
}
