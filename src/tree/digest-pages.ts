// Digests of an image's contents, read from the file beside its TOC as they are asked for: a trace
// names a few thousand of them, and the file of a large image has megabytes.
import { type FileHandle, open } from 'node:fs/promises';

const DIGEST_BYTES = 32;
const PAGE_BYTES = 64 << 10;

export class DigestPages {
  readonly #path: string;
  readonly #pages = new Map<number, Buffer>();
  #file: Promise<FileHandle> | undefined;

  /** @param path  sha256 of each content, 32 bytes a slot */
  constructor(path: string) {
    this.#path = path;
  }

  /**
   * 64 hex digits; undefined where the digest is not known yet.
   * @throws errors of the file
   */
  async get(content: number): Promise<string | undefined> {
    const at = content * DIGEST_BYTES;
    const number = Math.floor(at / PAGE_BYTES);
    const from = at % PAGE_BYTES;
    const known = digestAt(this.#pages.get(number), from);
    // A page that was read before the content arrived holds zeros there.
    return known ?? digestAt(await this.#read(number), from);
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
  const bytes = page?.subarray(from, from + DIGEST_BYTES);
  if (bytes === undefined || bytes.length < DIGEST_BYTES || bytes.every((byte) => byte === 0)) {
    return undefined;
  }
  return bytes.toString('hex');
}
