// Finds the bytes of a template's contents on disk, as native does (native/template.cc): complete ones
// by digest in content/ or, not durable yet, in incoming/; arriving ones in their partial file. What
// does not live here: which parts may be read (tree/content-states.ts).

import { constants } from 'node:fs';
import { type FileHandle, open } from 'node:fs/promises';
import { constants as osConstants } from 'node:os';
import { join } from 'node:path';
import type { TemplateOptions } from '../../native/index.ts';
import { ContentError } from '../../tree/content-states.ts';

const DIGEST_BYTES = 32;
const FLAGS = constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK;

/** ENOENT would tell the program that its file does not exist; the truth is that the store is damaged. */
function damaged(): ContentError {
  return new ContentError(osConstants.errno.EIO);
}

/** Opens a file; undefined where there is none. */
async function openIfThere(path: string): Promise<FileHandle | undefined> {
  return open(path, FLAGS).catch((error: NodeJS.ErrnoException) => {
    if (error.code === 'ENOENT') return undefined;
    throw error;
  });
}

/** The content files of one template. */
export class ContentFiles {
  readonly #places: TemplateOptions;
  #digests: Promise<FileHandle> | undefined;

  constructor(places: TemplateOptions) {
    this.#places = places;
  }

  /**
   * Opens a complete content.
   * @throws ContentError EIO where its file is not there or not of its size; the file system's errors
   */
  async openWhole(content: number, bytes: number): Promise<FileHandle> {
    const { contentDir, incomingDir, digestsPath } = this.#places;
    this.#digests ??= open(digestsPath, 'r');
    const slot = Buffer.alloc(DIGEST_BYTES);
    const at = content * DIGEST_BYTES;
    const { bytesRead } = await (await this.#digests).read(slot, 0, DIGEST_BYTES, at);
    if (bytesRead < DIGEST_BYTES) throw damaged();
    const hex = slot.toString('hex');
    const durable = join(contentDir, hex.slice(0, 2), hex.slice(2));
    // It is renamed from the one to the other at some moment: whoever finds neither looks once more.
    const file =
      (await openIfThere(durable)) ??
      (await openIfThere(join(incomingDir, hex))) ??
      (await openIfThere(durable));
    if (file === undefined) throw damaged();
    const found = await file.stat();
    if (found.isFile() && found.size === bytes) return file;
    await file.close();
    throw damaged();
  }

  /** Opens a content of several parts that is arriving, or has become whole meanwhile. */
  async openArriving(content: number, bytes: number): Promise<FileHandle> {
    const { incomingDir, partialPrefix } = this.#places;
    const partial = await openIfThere(join(incomingDir, `${partialPrefix}.${content}`));
    return partial ?? this.openWhole(content, bytes);
  }

  async close(): Promise<void> {
    // One that could not be opened has nothing to close, and was reported where it was read.
    const file = await this.#digests?.catch(() => undefined);
    await file?.close();
  }
}
