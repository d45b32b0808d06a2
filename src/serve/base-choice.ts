// Which of the images that a worker holds are worth counting on for an image. What does not live
// here: bundles (bundle-cache.ts), and which image a request means.
import { LRUCache } from 'lru-cache';
import { Toc } from '../delta/toc.ts';
import type { BlobStore } from './blobs.ts';
import type { Catalog } from './catalog.ts';

/** Chooses bases; to be called inside the gate. */
export class BaseChoice {
  readonly #catalog: Catalog;
  readonly #blobs: BlobStore;
  /** By image and candidates: reading 64 lists of contents for each request is too much. */
  readonly #choices = new LRUCache<string, string[]>({ max: 10_000 });

  constructor(catalog: Catalog, blobs: BlobStore) {
    this.#catalog = catalog;
    this.#blobs = blobs;
  }

  /** Of the images a worker holds, those that give the bundle something: most bytes first, then only what adds to it. */
  async choose(image: string, candidates: readonly string[]): Promise<string[]> {
    const asked = [...new Set(candidates)].sort();
    const rows = await Promise.all(asked.map((digest) => this.#catalog.findByDigest(digest)));
    const known = asked.filter((_, i) => rows[i] !== undefined);
    if (known.length === 0) return [];
    const choice = [image, ...known].join(' ');
    const before = this.#choices.get(choice);
    if (before !== undefined) return before;
    const chosen = await this.#compute(image, known);
    this.#choices.set(choice, chosen);
    return chosen;
  }

  async #compute(image: string, known: readonly string[]): Promise<string[]> {
    const blobs = this.#blobs;
    const toc = new Toc(await blobs.readDocument(image, 'toc'));
    const digests = await blobs.readDocument(image, 'contents');
    const wanted = new Map<string, number>();
    for (let c = 0; c < toc.contents; c++) {
      wanted.set(digests.toString('latin1', c * 32, c * 32 + 32), toc.contentSize(c));
    }
    const offers: { digest: string; shared: string[]; bytes: number }[] = [];
    for (const digest of known) {
      const has = await blobs.readDocument(digest, 'contents');
      const offer = { digest, shared: [] as string[], bytes: 0 };
      for (let at = 0; at < has.length; at += 32) {
        const content = has.toString('latin1', at, at + 32);
        const size = wanted.get(content);
        if (size === undefined) continue;
        offer.shared.push(content);
        offer.bytes += size;
      }
      offers.push(offer);
    }
    // Equal offers keep the order of their digests: the choice depends on nothing but its inputs.
    offers.sort((a, b) => b.bytes - a.bytes);
    const chosen: string[] = [];
    for (const offer of offers) {
      let adds = false;
      for (const content of offer.shared) adds = wanted.delete(content) || adds;
      if (adds) chosen.push(offer.digest);
    }
    return chosen.sort();
  }
}
