// Which images stand on a chain of layers, for clients that know a layer by nothing but its chain id
// (containerd, where a pull says no more). An index in memory, made from the images' own documents as
// they are asked for: chain ids follow from the config, so nothing of it needs to be kept.
import type { ChainImage } from '../delta/protocol.ts';
import { type ImageLayers, layersOf } from '../image/chain.ts';
import type { Logger } from '../log/log.ts';
import type { BlobStore } from './blobs.ts';
import type { Catalog } from './catalog.ts';
import type { Gate } from './gate.ts';

/** An answer names at most so many images: a base layer may be below thousands. */
const ANSWER_MAX = 32;

export class Chains {
  readonly #catalog: Catalog;
  readonly #blobs: BlobStore;
  readonly #gate: Gate;
  readonly #log: Logger;
  readonly #layers = new Map<string, ImageLayers>();

  constructor(catalog: Catalog, blobs: BlobStore, gate: Gate, log: Logger) {
    this.#catalog = catalog;
    this.#blobs = blobs;
    this.#gate = gate;
    this.#log = log;
  }

  /** Images with a layer of this chain id: those that end with it first, then the newest. */
  async find(chainId: string): Promise<ChainImage[]> {
    return this.#gate.use(async () => {
      const images = await this.#catalog.listImages();
      const there = new Set(images.map(({ digest }) => digest));
      for (const digest of this.#layers.keys()) if (!there.has(digest)) this.#layers.delete(digest);
      const found: (ChainImage & { addedAt: number })[] = [];
      for (const { digest, name, platform, addedAt } of images) {
        const layers = await this.#layersOf(digest);
        const index = layers?.chainIds.indexOf(chainId) ?? -1;
        if (layers === undefined || index < 0) continue;
        const shown = name === undefined ? {} : { name };
        found.push({ digest, ...shown, platform, index, layers: layers.digests, addedAt });
      }
      const above = (image: ChainImage) => Math.min(1, image.layers.length - 1 - image.index);
      found.sort((a, b) => above(a) - above(b) || b.addedAt - a.addedAt);
      return found.slice(0, ANSWER_MAX).map(({ addedAt: _, ...image }) => image);
    });
  }

  async #layersOf(digest: string): Promise<ImageLayers | undefined> {
    const known = this.#layers.get(digest);
    if (known !== undefined) return known;
    try {
      const [manifest, config] = await Promise.all([
        this.#blobs.readDocument(digest, 'manifest.json'),
        this.#blobs.readDocument(digest, 'config.json'),
      ]);
      const layers = layersOf(manifest, config);
      this.#layers.set(digest, layers);
      return layers;
    } catch (error) {
      // One image that cannot be read must not hide the others.
      this.#log.warn({ err: error, image: digest }, 'the layers of an image are not known');
      return undefined;
    }
  }
}
