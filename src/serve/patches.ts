// Which bundles with patches are computed before anybody asks for them: those that make an image from
// the ones that were added before it under the same name. What does not live here: computing and
// keeping them, and what a request gets (bundle-cache.ts).
import type { ImagePatches } from '../delta/protocol.ts';
import { toFirstlightError } from '../errors/errors.ts';
import type { Logger } from '../log/log.ts';
import type { BundleCache } from './bundle-cache.ts';
import type { Catalog, NamedImage } from './catalog.ts';

/** Images that an image's patches are computed against: the newest of those before it. */
const BEFORE_MAX = 3;

interface Parts {
  catalog: Catalog;
  bundles: BundleCache;
  log: Logger;
}

/** A name without its tag. */
function repositoryOf(name: string): string {
  return name.slice(0, name.lastIndexOf(':'));
}

/** The background's list of what is to be patched. */
export class Patches {
  readonly #o: Parts;
  /** Computations that wait or run: how many of each image. */
  readonly #pending = new Map<string, number>();
  readonly #running = new Set<Promise<void>>();
  readonly #ending = new AbortController();
  /** Nothing is computed for a command that has the store for a moment. */
  #started = false;

  constructor(parts: Parts) {
    this.#o = parts;
  }

  /** Computes what is missing of all images, and from now on what new images and orders make missing. */
  start(): void {
    this.#started = true;
    this.#follow(this.#all());
  }

  async #all(): Promise<void> {
    for (const digest of new Set((await this.#o.catalog.listImages()).map((i) => i.digest))) {
      if (this.#ending.signal.aborted) return;
      await this.note(digest);
    }
  }

  /**
   * Has what is missing of an image computed: it is new, or its order is. Resolves when that stands in the queue.
   * @param also  manifest digest of an image that it has taken a name from
   */
  async note(image: string, also?: string): Promise<void> {
    if (!this.#started || this.#ending.signal.aborted) return;
    const before = (await this.#before(image)).map(({ digest }) => digest);
    const bases = new Set(also === undefined ? before : [also, ...before]);
    for (const base of [...bases].slice(0, BEFORE_MAX)) this.#follow(this.#compute(image, base));
  }

  /** Images of the same platform that were added before it under another tag of one of its names, the newest first. */
  async #before(image: string): Promise<NamedImage[]> {
    const rows = await this.#o.catalog.listImages();
    const own = rows.filter(({ digest }) => digest === image);
    const repositories = new Set(own.flatMap(({ name }) => (name ? [repositoryOf(name)] : [])));
    const found = new Map<string, NamedImage>();
    for (const row of rows) {
      const { digest, name, platform, addedAt } = row;
      if (digest === image || name === undefined || platform !== own[0]?.platform) continue;
      if (addedAt <= own[0].addedAt && repositories.has(repositoryOf(name))) found.set(digest, row);
    }
    return [...found.values()].sort((a, b) => b.addedAt - a.addedAt).slice(0, BEFORE_MAX);
  }

  async #compute(image: string, base: string): Promise<void> {
    this.#pending.set(image, (this.#pending.get(image) ?? 0) + 1);
    try {
      await this.#o.bundles.patched(image, base, true);
    } finally {
      const left = this.#pending.get(image)! - 1;
      if (left > 0) this.#pending.set(image, left);
      else this.#pending.delete(image);
    }
  }

  #follow(work: Promise<void>): void {
    const running = work
      .catch((error: unknown) => {
        if (this.#ending.signal.aborted) return;
        // Workers get the bundle without patches, and the next one who asks has it tried again.
        const { kind, message } = toFirstlightError(error);
        this.#o.log.warn({ kind, error: message }, 'patches cannot be computed');
      })
      .finally(() => this.#running.delete(running));
    this.#running.add(running);
  }

  /** What is there of an image, and what is still to come. */
  async statusOf(image: string): Promise<ImagePatches> {
    const ready: ImagePatches['ready'] = [];
    for (const { digest, name } of await this.#before(image)) {
      const record = await this.#o.bundles.patched(image, digest, false);
      if (record !== undefined)
        ready.push({ from: digest, name: name!, bundleBytes: record.bytes });
    }
    return { ready, pending: this.#pending.get(image) ?? 0 };
  }

  /**
   * Says of what has been computed ahead that it is in use, so that it is still there when a worker comes for it days
   * later.
   */
  async keep(): Promise<void> {
    const { catalog, bundles } = this.#o;
    const now = Date.now();
    for (const image of new Set((await catalog.listImages()).map(({ digest }) => digest))) {
      for (const { digest } of await this.#before(image)) {
        const record = await bundles.patched(image, digest, false);
        if (record !== undefined) await catalog.touchBundle(record.id, now);
      }
    }
  }

  /** To be called when the bundles' own end has begun: it stops what runs. */
  async close(): Promise<void> {
    this.#ending.abort();
    await Promise.all(this.#running);
  }
}
