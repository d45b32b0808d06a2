// One image on its way in: merged, its contents stored, its first bundle computed, then entered in
// the catalog in one transaction. What does not live here: opening the source (open-source.ts), the
// queue of intakes (image-store.ts), HTTP.
import type { IntakeEvent } from '../delta/protocol.ts';
import { Toc } from '../delta/toc.ts';
import { buildTocInSteps } from '../delta/toc-build.ts';
import { treeOfToc } from '../delta/toc-tree.ts';
import { FirstlightError } from '../errors/errors.ts';
import { mergeImage } from '../image/merge.ts';
import type { ImageSource } from '../image/source.ts';
import type { TreeNode } from '../image/tree.ts';
import type { Logger } from '../log/log.ts';
import type { BlobBatch, BlobStore } from './blobs.ts';
import type { BundleCache, LoadedImage } from './bundle-cache.ts';
import type { Catalog, NamedImage, RanksRecord } from './catalog.ts';
import type { Gate } from './gate.ts';
import { normalizeName } from './names.ts';

/** Small contents that are hashed and looked up at the same time. */
const PUTS_AT_ONCE = 8;

export interface IntakeOptions {
  /** Opens the source; called when it is this intake's turn. The intake closes it. */
  open(signal: AbortSignal): Promise<ImageSource>;
  /** Name in the catalog; where absent, the source's own. */
  name?: string | undefined;
  /** Manifest digest of an image of the catalog whose layers are the source's first ones: they are not read. */
  base?: string | undefined;
  /** Told of the progress; 'done' and 'error' are the caller's. */
  onEvent?: ((event: IntakeEvent) => void) | undefined;
  signal?: AbortSignal | undefined;
}

interface Parts {
  catalog: Catalog;
  blobs: BlobStore;
  bundles: BundleCache;
  gate: Gate;
  log: Logger;
  /** The order that reported traces give an image which is not in the catalog yet. */
  rank(
    image: LoadedImage,
    name: string,
    platform: string,
    signal: AbortSignal,
  ): Promise<RanksRecord | undefined>;
  /** An image that was there already has another name. */
  onNamed(image: string): Promise<void>;
  /** An image has a name, which it may have taken from another one (manifest digest). */
  onAdded(image: string, before: string | undefined): Promise<void>;
  /** Files of a failed intake may be left: contents (32 bytes each) and documents, noted as `change`. */
  onLeftovers(change: number, contents: Buffer, image: string): void;
}

export class Intake {
  readonly #p: Parts;
  /** The last intake of each manifest digest: equal images come in one after the other. */
  readonly #turns = new Map<string, Promise<unknown>>();

  constructor(parts: Parts) {
    this.#p = parts;
  }

  /** Takes one image in and gives its row. */
  async run(options: IntakeOptions & { signal: AbortSignal }): Promise<NamedImage> {
    options.signal.throwIfAborted();
    const wanted = options.name === undefined ? undefined : normalizeName(options.name);
    const source = await options.open(options.signal);
    try {
      const name = wanted ?? nameOf(source);
      return await this.#inTurn(source.digest, () => this.#take(source, name, options));
    } finally {
      await source.close();
    }
  }

  async #inTurn<T>(digest: string, work: () => Promise<T>): Promise<T> {
    const before = this.#turns.get(digest) ?? Promise.resolve();
    // Whatever became of the one before, its own caller has heard of it.
    const turn = before.catch(() => {}).then(work);
    this.#turns.set(digest, turn);
    try {
      return await turn;
    } finally {
      if (this.#turns.get(digest) === turn) this.#turns.delete(digest);
    }
  }

  async #take(
    source: ImageSource,
    name: string,
    options: IntakeOptions & { signal: AbortSignal },
  ): Promise<NamedImage> {
    const { catalog, log } = this.#p;
    const names = await catalog.findByName(name);
    const before = names.find(
      (i) => i.platform === source.platform && i.digest !== source.digest,
    )?.digest;
    // The digest names every byte of it: a second name needs nothing else.
    const known = await catalog.nameImage(source.digest, name);
    if (known) await this.#p.onNamed(source.digest);
    else await this.#p.gate.use(() => this.#store(source, name, options));
    const image = (await catalog.findByName(name)).find((i) => i.digest === source.digest);
    if (image === undefined) {
      throw new FirstlightError('busy', `${name} was changed while it was being added`, {
        hint: 'see "firstlight image ls", and add it again',
      });
    }
    log.info({ name, digest: source.digest, platform: source.platform, known }, 'image added');
    await this.#p.onAdded(source.digest, before);
    return image;
  }

  async #store(
    source: ImageSource,
    name: string,
    options: IntakeOptions & { signal: AbortSignal },
  ): Promise<void> {
    const { blobs } = this.#p;
    const base = options.base === undefined ? undefined : await this.#base(options.base, source);
    const batch = await blobs.openBatch();
    try {
      const { root } = await mergeImage(source, batch, {
        ...(base === undefined ? {} : { base }),
        signal: options.signal,
        concurrency: PUTS_AT_ONCE,
        onLayer: ({ index, digest }) =>
          options.onEvent?.({
            event: 'layer',
            index,
            layers: source.layers.length,
            digest,
            bytes: source.layers[index]!.bytes,
          }),
        onProgress: ({ bytesDone, bytes }) =>
          options.onEvent?.({ event: 'progress', doneBytes: bytesDone, totalBytes: bytes }),
      });
      const built = await buildTocInSteps(root, options.signal);
      options.signal.throwIfAborted();
      await this.#commit(source, name, batch, built, options);
    } finally {
      await batch.abort();
    }
  }

  /**
   * The tree of an image that has the source's first layers.
   * @throws 'not-found'; 'usage' where the layers are others
   */
  async #base(digest: string, source: ImageSource): Promise<{ root: TreeNode; layers: number }> {
    const { catalog, blobs } = this.#p;
    if ((await catalog.findByDigest(digest)) === undefined) {
      throw new FirstlightError('not-found', `this server has no image ${digest} to build upon`, {
        hint: 'send all layers: leave base= out',
      });
    }
    const [toc, digests, manifest, config] = await Promise.all([
      blobs.readDocument(digest, 'toc'),
      blobs.readDocument(digest, 'contents'),
      blobs.readDocument(digest, 'manifest.json'),
      blobs.readDocument(digest, 'config.json'),
    ]);
    const { layers } = JSON.parse(manifest.toString()) as { layers: { digest: string }[] };
    const { rootfs } = JSON.parse(config.toString()) as { rootfs: { diff_ids: string[] } };
    const same = layers.every(
      (layer, i) =>
        source.layers[i]?.digest === layer.digest &&
        source.layers[i]?.diffId === rootfs.diff_ids[i],
    );
    if (!same) {
      throw new FirstlightError(
        'usage',
        `the first layers of the image are not those of ${digest}`,
        {
          hint: 'send all layers: leave base= out',
        },
      );
    }
    return { root: treeOfToc(new Toc(toc), digests), layers: layers.length };
  }

  async #commit(
    source: ImageSource,
    name: string,
    batch: BlobBatch,
    built: { bytes: Buffer; digests: Buffer },
    options: IntakeOptions & { signal: AbortSignal },
  ): Promise<void> {
    const { catalog, bundles } = this.#p;
    const { digest, platform, manifest, config, layers } = source;
    const change = await catalog.openChange();
    try {
      await batch.commit(digest, {
        'manifest.json': manifest,
        'config.json': config,
        toc: built.bytes,
        contents: built.digests,
      });
      options.onEvent?.({ event: 'encode' });
      const toc = new Toc(built.bytes);
      const loaded = { digest, manifest, config, toc, digests: built.digests };
      const ranks = await this.#p.rank(loaded, name, platform, options.signal);
      const made = await bundles.compute(loaded, [], ranks, options.signal);
      try {
        options.signal.throwIfAborted();
        const record = {
          digest,
          platform,
          entries: toc.rows,
          bytes: toc.totalBytes,
          layers: layers.length,
          addedAt: Date.now(),
        };
        await bundles.shelf.keep(made, () =>
          catalog.addImage(record, built.digests, name, made.record, ranks),
        );
      } finally {
        await made.drop();
      }
    } catch (error) {
      this.#p.onLeftovers(change, built.digests, digest);
      throw error;
    }
    await catalog.closeChange(change).catch((error: unknown) => {
      // The image is in. A note that stays costs the next start one look at all files.
      this.#p.log.warn({ error }, 'the note of a finished intake stays');
    });
  }
}

function nameOf(source: ImageSource): string {
  if (source.name === undefined) {
    throw new FirstlightError('usage', 'the source gives the image no name', {
      hint: 'give one with --name NAME:TAG',
    });
  }
  try {
    return normalizeName(source.name);
  } catch (cause) {
    throw new FirstlightError(
      'usage',
      `the source calls the image '${source.name}', which is no name`,
      {
        hint: 'give one with --name NAME:TAG',
        cause,
      },
    );
  }
}
