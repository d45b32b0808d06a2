// An image as the tree's thread reads it: its TOC, and its contents as files to copy from. Read from
// the store's own files, since nothing of the main thread's heap is shared. What does not live here:
// which contents have arrived (native knows, and the requests' waits tell).
//
// Everything here is synchronous, file system calls too: it runs on the tree's worker thread only
// (tree-service.ts), inside a request, and never on the daemon's main thread.
import { closeSync, openSync, readFileSync, readSync } from 'node:fs';
import { join } from 'node:path';
import { Toc } from '../delta/toc.ts';
import type { TemplateOptions } from '../native/index.ts';

const DIGEST_BYTES = 32;

/** One image, shared by its mounts; the last one's `release` closes it. */
export class TreeImage {
  readonly toc: Toc;
  readonly #places: TemplateOptions;
  readonly #digests: number;
  #users = 1;

  /** @throws errors of the files */
  constructor(places: TemplateOptions) {
    this.#places = places;
    this.toc = new Toc(readFileSync(places.tocPath));
    this.#digests = openSync(places.digestsPath, 'r');
  }

  retain(): this {
    this.#users++;
    return this;
  }

  /** @returns true where this was the last user */
  release(): boolean {
    if (--this.#users > 0) return false;
    closeSync(this.#digests);
    return true;
  }

  /**
   * Descriptor of a content that is whole, read-only, the caller's to close; undefined where there is no
   * such file. Call it only for contents that are known to be whole: the name may stand there before.
   */
  open(content: number): number | undefined {
    const digest = Buffer.alloc(DIGEST_BYTES);
    const bytes = readSync(this.#digests, digest, 0, DIGEST_BYTES, content * DIGEST_BYTES);
    if (bytes < DIGEST_BYTES || digest.every((byte) => byte === 0)) return undefined;
    const hex = digest.toString('hex');
    const durable = join(this.#places.contentDir, hex.slice(0, 2), hex.slice(2));
    // What is in neither place was being renamed from the second into the first.
    return (
      openIfThere(durable) ??
      openIfThere(join(this.#places.incomingDir, hex)) ??
      openIfThere(durable)
    );
  }
}

function openIfThere(path: string): number | undefined {
  try {
    return openSync(path, 'r');
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined;
    throw error;
  }
}
