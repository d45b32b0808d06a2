// What patch frames of a bundle stand on, read from the worker's own images. What does not live
// here: decoding (delta/), and what becomes of a frame whose base cannot be read (transfer.ts).
import { open } from 'node:fs/promises';
import { type BundleHeader, FRAME_KIND, type FrameInfo } from '../delta/bundle.ts';
import { type BaseRange, measureRanges, readBaseBytes } from '../delta/patch-table.ts';
import { Toc } from '../delta/toc.ts';
import { FirstlightError } from '../errors/errors.ts';
import type { LayerStore } from '../store/layer-store.ts';

/** An image of the store as a source of bytes. */
interface LoadedBase {
  toc: Toc;
  /** sha256 of each content, 32 bytes each. */
  digests: Buffer;
}

/** True where some frames of a bundle are patches. */
export function hasPatches(header: BundleHeader): boolean {
  return header.frames.some(({ kind }) => kind === FRAME_KIND.patch);
}

/** The bases of one bundle. They are held from a collection until `release`. */
export class PatchBases {
  readonly #store: LayerStore;
  readonly #header: BundleHeader;
  /** By index in the header's bases; read when the first patch asks. */
  readonly #loaded = new Map<number, Promise<LoadedBase>>();
  #releases: (() => void)[];

  constructor(store: LayerStore, header: BundleHeader) {
    this.#store = store;
    this.#header = header;
    const used = new Set(header.frames.flatMap(({ ranges }) => ranges.map(({ base }) => base)));
    this.#releases = [...used].map((base) => store.use(header.bases[base]!.digest));
  }

  /** Lets the images go, and their tables: a mount may last for months. No frame is decoded any more. Idempotent. */
  release(): void {
    for (const release of this.#releases) release();
    this.#releases = [];
    this.#loaded.clear();
  }

  /**
   * Bytes that a patch frame is coded against: at most PATCH_BASE_MAX_BYTES and the pad.
   * @throws FirstlightError 'corrupt' where the store's images are not what the frame table says;
   * errno of a read
   */
  async read(frame: FrameInfo): Promise<Buffer> {
    const field = `bundle: frame ${frame.index}`;
    const needed = [...new Set(frame.ranges.map(({ base }) => base))];
    const bases = new Map(
      await Promise.all(needed.map(async (base) => [base, await this.#base(base)] as const)),
    );
    const sizeOf = ({ base, content }: BaseRange) => {
      const { toc } = bases.get(base)!;
      return content < toc.contents ? toc.contentSize(content) : undefined;
    };
    const lengths = measureRanges(frame.ranges, sizeOf, field);
    return readBaseBytes(frame.ranges, lengths, async ({ base, content, offset }, into) => {
      const { digests } = bases.get(base)!;
      await this.#readContent(
        digests.toString('hex', content * 32, content * 32 + 32),
        offset,
        into,
      );
    });
  }

  #base(index: number): Promise<LoadedBase> {
    let loaded = this.#loaded.get(index);
    if (loaded === undefined) {
      loaded = this.#load(this.#header.bases[index]!.digest);
      // Whoever reads a frame hears of it.
      loaded.catch(() => undefined);
      this.#loaded.set(index, loaded);
    }
    return loaded;
  }

  async #load(digest: string): Promise<LoadedBase> {
    const image = this.#store.findImage(digest);
    if (image === undefined) {
      throw new FirstlightError('not-found', `image ${digest} has been removed meanwhile`);
    }
    const [toc, digests] = await Promise.all([image.read('toc'), image.read('contents')]);
    return { toc: new Toc(toc), digests };
  }

  async #readContent(hex: string, offset: number, into: Uint8Array): Promise<void> {
    const file = await this.#open(hex);
    try {
      for (let at = 0; at < into.length; ) {
        const { bytesRead } = await file.read(into, at, into.length - at, offset + at);
        if (bytesRead === 0) {
          throw new FirstlightError('corrupt', `content sha256:${hex} is shorter than it was`);
        }
        at += bytesRead;
      }
    } finally {
      await file.close();
    }
  }

  async #open(hex: string) {
    for (let before: string | undefined; ; ) {
      const path = this.#store.contents.path(hex);
      if (path === undefined) {
        throw new FirstlightError('not-found', `the store has no content sha256:${hex}`);
      }
      try {
        return await open(path, 'r');
      } catch (error) {
        // It may have been made durable, and so renamed, between the two lines; a second look settles it.
        if ((error as NodeJS.ErrnoException).code !== 'ENOENT' || path === before) throw error;
        before = path;
      }
    }
  }
}
