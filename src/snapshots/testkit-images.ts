// Images of a few layers for tests, what a pull of them says of each layer, and a real delta server that has
// them. What does not live here: images with programs in them (test/lib).
import { createHash } from 'node:crypto';
import { gzipSync } from 'node:zlib';
import { chainIdsOf } from '../image/chain.ts';
import { ask, makeTar } from '../serve/testkit.ts';
import { layoutTar, type SmallImage } from '../serve/testkit-images.ts';
import type { Labels } from './types.ts';

export interface LayeredImage extends SmallImage {
  /** Lowest first. */
  chainIds: string[];
  layerDigests: string[];
}

const digestOf = (data: Buffer) => `sha256:${createHash('sha256').update(data).digest('hex')}`;

/** An image with a layer for each set of files; the same files give the same layer. */
export async function layeredImage(...layers: Record<string, string>[]): Promise<LayeredImage> {
  const tars = await Promise.all(layers.map(makeTar));
  const blobs = tars.map((tar) => gzipSync(tar));
  const diffIds = tars.map(digestOf);
  const rootfs = { type: 'layers', diff_ids: diffIds };
  const config = Buffer.from(JSON.stringify({ architecture: 'amd64', os: 'linux', rootfs }));
  const vendor = 'application/vnd.oci.image';
  const described = (mediaType: string, data: Buffer) => ({
    mediaType: `${vendor}.${mediaType}`,
    digest: digestOf(data),
    size: data.length,
  });
  const manifest = Buffer.from(
    JSON.stringify({
      schemaVersion: 2,
      mediaType: `${vendor}.manifest.v1+json`,
      config: described('config.v1+json', config),
      layers: blobs.map((blob) => described('layer.v1.tar+gzip', blob)),
    }),
  );
  return {
    digest: digestOf(manifest),
    manifest,
    config,
    blobs: new Map([config, ...blobs].map((data) => [digestOf(data).slice(7), data])),
    tar: Buffer.concat(tars),
    chainIds: chainIdsOf(diffIds),
    layerDigests: blobs.map(digestOf),
  };
}

/** Has a delta server take an image in. */
export async function addImage(url: string, image: SmallImage, name: string): Promise<void> {
  const answer = await ask(`${url}/v1/images?kind=oci&platform=linux/amd64&source=${name}`, {
    method: 'POST',
    body: await layoutTar(image, name),
  });
  if (!answer.body.includes('"event":"done"')) throw new Error(`${answer.status} ${answer.body}`);
}

/** The labels that the kubelet's pull of `ref` sends with a layer. */
export function pullLabels(image: LayeredImage, index: number, ref: string): Labels {
  const cri = 'containerd.io/snapshot/cri';
  return {
    'containerd.io/snapshot.ref': image.chainIds[index]!,
    [`${cri}.image-ref`]: ref,
    [`${cri}.manifest-digest`]: image.digest,
    [`${cri}.layer-digest`]: image.layerDigests[index]!,
    [`${cri}.image-layers`]: image.layerDigests.slice(index).join(','),
  };
}
