// What is said of contents that were found damaged while patches against them were looked for. What does not live here:
// finding them (delta/patch-sources.ts).
import { LRUCache } from 'lru-cache';
import type { DamagedOld } from '../delta/patch-sources.ts';
import type { Logger } from '../log/log.ts';

/** Digests that are remembered as told: beyond them, some are told again. */
const TOLD_MOST = 10_000;

/** Each content is told once, however many bundles could stand on it; and of each bundle and image no more than a line. */
export class DamagedContents {
  readonly #log: Logger;
  readonly #told = new LRUCache<string, true>({ max: TOLD_MOST });

  constructor(log: Logger) {
    this.#log = log;
  }

  /** @param olds  those that one bundle could have stood on */
  tell(olds: readonly DamagedOld[]): void {
    const fresh = new Map<string, string[]>();
    for (const { base, content } of olds) {
      if (this.#told.has(content)) continue;
      this.#told.set(content, true);
      const contents = fresh.get(base);
      if (contents === undefined) fresh.set(base, [content]);
      else contents.push(content);
    }
    for (const [image, contents] of fresh) {
      this.#log.error(
        { content: contents[0], contents: contents.length, image },
        'contents are damaged; nothing is patched against them (remove the image with "firstlight image rm" and add it again)',
      );
    }
  }
}
