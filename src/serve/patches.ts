// Which bundles with patches are computed before anybody asks for them: those that make an image from
// the ones that were added before it under the same name. What does not live here: computing and
// keeping them, and what a request gets (bundle-cache.ts).
import PQueue from 'p-queue';
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

/**
 * Of each named image those of the same platform that were added before it under another tag of one of its names, the
 * newest first.
 */
function predecessors(rows: readonly NamedImage[]): Map<string, NamedImage[]> {
  const groups = new Map<string, NamedImage[]>();
  for (const row of rows) {
    if (row.name === undefined) continue;
    const repository = row.name.slice(0, row.name.lastIndexOf(':'));
    const key = `${row.platform} ${repository}`;
    const group = groups.get(key);
    if (group === undefined) groups.set(key, [row]);
    else group.push(row);
  }
  const found = new Map<string, Map<string, NamedImage>>();
  for (const group of groups.values()) {
    group.sort((a, b) => b.addedAt - a.addedAt || (a.digest < b.digest ? -1 : 1));
    for (const [at, { digest }] of group.entries()) {
      const before = found.get(digest) ?? new Map<string, NamedImage>();
      found.set(digest, before);
      for (let i = at + 1; i < group.length && before.size < BEFORE_MAX; i++) {
        if (group[i]!.digest !== digest) before.set(group[i]!.digest, group[i]!);
      }
    }
  }
  return new Map([...found].map(([digest, before]) => [digest, [...before.values()]]));
}

/** The background's list of what is to be patched. */
export class Patches {
  readonly #o: Parts;
  /** Computations that wait or run: how many of each image. */
  readonly #pending = new Map<string, number>();
  /** Looking at a pair takes memory for the lists of both: of thousands it is done one after the other. */
  readonly #queue = new PQueue({ concurrency: 1 });
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
    for (const [image, before] of predecessors(await this.#o.catalog.listImages())) {
      if (this.#ending.signal.aborted) return;
      for (const { digest } of before) this.#follow(this.#compute(image, digest));
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

  async #before(image: string): Promise<NamedImage[]> {
    return predecessors(await this.#o.catalog.listImages()).get(image) ?? [];
  }

  async #compute(image: string, base: string): Promise<void> {
    this.#pending.set(image, (this.#pending.get(image) ?? 0) + 1);
    try {
      await this.#queue.add(() => {
        this.#ending.signal.throwIfAborted();
        return this.#o.bundles.patched(image, base, true);
      });
    } finally {
      const left = this.#pending.get(image)! - 1;
      if (left > 0) this.#pending.set(image, left);
      else this.#pending.delete(image);
    }
  }

  /** Pairs that have not been looked at yet. */
  get waiting(): number {
    return this.#queue.size;
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
    for (const [image, before] of predecessors(await catalog.listImages())) {
      for (const { digest } of before) {
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
