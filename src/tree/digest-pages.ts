// Digests of an image's contents, read from the file beside its TOC as they are asked for: a trace
// names a few thousand of them, and the file of a large image has megabytes.
import { type FileHandle, open } from 'node:fs/promises';

const DIGEST_BYTES = 32;
const PAGE_BYTES = 64 << 10;
const UNKNOWN = '0'.repeat(2 * DIGEST_BYTES);

export class DigestPages {
  readonly #path: string;
  readonly #pages = new Map<number, Buffer>();
  #file: Promise<FileHandle> | undefined;

  /** @param path  sha256 of each content, 32 bytes a slot */
  constructor(path: string) {
    this.#path = path;
  }

  /** The same as `get`, where it can be said without reading the file. */
  known(content: number): string | undefined {
    const at = content * DIGEST_BYTES;
    return digestAt(this.#pages.get(Math.floor(at / PAGE_BYTES)), at % PAGE_BYTES);
  }

  /**
   * 64 hex digits; undefined where the digest is not known yet.
   * @throws errors of the file
   */
  async get(content: number): Promise<string | undefined> {
    const at = content * DIGEST_BYTES;
    // A page that was read before the content arrived holds zeros there.
    return (
      this.known(content) ??
      digestAt(await this.#read(Math.floor(at / PAGE_BYTES)), at % PAGE_BYTES)
    );
  }

  async #read(number: number): Promise<Buffer> {
    this.#file ??= open(this.#path, 'r');
    const page = Buffer.alloc(PAGE_BYTES);
    const { bytesRead } = await (await this.#file).read(page, 0, PAGE_BYTES, number * PAGE_BYTES);
    const filled = page.subarray(0, bytesRead);
    this.#pages.set(number, filled);
    return filled;
  }

  async close(): Promise<void> {
    // One that could not be opened has nothing to close, and was reported where it was read.
    const file = await this.#file?.catch(() => undefined);
    await file?.close();
  }
}

function digestAt(page: Buffer | undefined, from: number): string | undefined {
  if (page === undefined || page.length < from + DIGEST_BYTES) return undefined;
  const hex = page.toString('hex', from, from + DIGEST_BYTES);
  return hex === UNKNOWN ? undefined : hex;
}
