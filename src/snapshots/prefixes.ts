// The tree of the lower layers of an image that comes lazily. Such an image is sent as one merged tree, so
// that its lower layers have no tree of their own; nobody needs one until an image that the delta server
// does not know is pulled and shares them. Then it is made here: from an image of the server that ends with
// that layer, or by merging the layers' blobs from the registry. What does not live here: when (snapshotter.ts).
import { createHash, randomBytes } from 'node:crypto';
import { createWriteStream } from 'node:fs';
import { chmod } from 'node:fs/promises';
import { join } from 'node:path';
import type { Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { buildTocInSteps } from '../delta/toc-build.ts';
import { checkToc } from '../delta/toc-check.ts';
import { FirstlightError } from '../errors/errors.ts';
import { chainIdsOf } from '../image/chain.ts';
import { sha256Digest } from '../image/digest.ts';
import { mergeImage } from '../image/merge.ts';
import { formatReference, type Reference } from '../image/reference.ts';
import { openRegistry } from '../image/registry.ts';
import type { ContentSink, ImageSource } from '../image/source.ts';
import type { Logger } from '../log/log.ts';
import type { LayerStore } from '../store/layer-store.ts';

/** Contents up to this size pass through memory. */
const SMALL_BYTES = 1 << 20;

/** Puts what comes out of layers into the worker's store. */
class StoreSink implements ContentSink {
  readonly #store: LayerStore;

  constructor(store: LayerStore) {
    this.#store = store;
  }

  async put(content: Readable, bytes: number): Promise<string> {
    return bytes <= SMALL_BYTES ? this.#small(content) : this.#large(content, bytes);
  }

  async #small(content: Readable): Promise<string> {
    const chunks: Buffer[] = [];
    for await (const chunk of content) chunks.push(chunk as Buffer);
    const data = Buffer.concat(chunks);
    const hex = createHash('sha256').update(data).digest('hex');
    await this.#store.contents.put([{ hex, data }]);
    return hex;
  }

  async #large(content: Readable, bytes: number): Promise<string> {
    const { layout, io, contents } = this.#store;
    // Of no form that the start-up knows: a crash leaves it to be removed.
    const path = join(layout.incoming, `layer.${randomBytes(8).toString('hex')}`);
    const hash = createHash('sha256');
    try {
      await pipeline(
        content,
        async function* (source: AsyncIterable<Buffer>) {
          for await (const chunk of source) {
            hash.update(chunk);
            yield chunk;
          }
        },
        createWriteStream(path, { flags: 'wx' }),
      );
      await chmod(path, 0o444);
      const hex = hash.digest('hex');
      await contents.adoptFile(path, hex, bytes);
      return hex;
    } catch (error) {
      await io.remove(path);
      throw error;
    }
  }
}

/** Manifest and config of the lowest layers of an image: they name the tree, nothing else. */
function documentsOf(source: ImageSource, depth: number): { manifest: Buffer; config: Buffer } {
  const manifest = JSON.parse(source.manifest.toString('utf8')) as Record<string, unknown>;
  const config = JSON.parse(source.config.toString('utf8')) as Record<string, unknown>;
  const layers = source.layers.slice(0, depth);
  const rootfs = { type: 'layers', diff_ids: layers.map(({ diffId }) => diffId) };
  const { os, architecture, variant } = config;
  const configBytes = Buffer.from(JSON.stringify({ architecture, os, variant, rootfs }));
  const shortened = {
    schemaVersion: 2,
    mediaType: manifest.mediaType,
    config: {
      ...(manifest.config as object),
      digest: sha256Digest(configBytes),
      size: configBytes.length,
    },
    layers: (manifest.layers as unknown[]).slice(0, depth),
  };
  return { manifest: Buffer.from(JSON.stringify(shortened)), config: configBytes };
}

export interface PrefixOptions {
  store: LayerStore;
  /** os/arch[/variant]. */
  platform: string;
  /** Where registries' mirrors and certificates are looked for (hosts.toml). */
  hostsDirs: readonly string[];
  /** Gives it up. */
  signal: AbortSignal;
  log: Logger;
}

/** Which layers are to be merged. */
export interface PrefixRequest {
  /** Where the registry has an image with them. */
  reference: Reference;
  /** Chain id of the uppermost: what comes must be these layers and no others. */
  chainId: string;
  /** How many. */
  depth: number;
}

/**
 * Makes the tree of the lowest layers of an image from the registry, complete in the store.
 * @returns digest under which the store has it; the caller holds on to it before the next collection
 * @throws FirstlightError of the registry, naming what to do; the signal's reason
 */
export async function makePrefix(
  options: PrefixOptions,
  { reference, chainId, depth }: PrefixRequest,
): Promise<string> {
  const { store, platform, hostsDirs, signal, log } = options;
  const ref = formatReference(reference);
  const source = await openRegistry(reference, {
    ...{ platform, hostsDirs, signal },
    onFallback: (host, error) => {
      log.info({ ref, host, kind: error.kind }, 'registry: another host is asked');
    },
  });
  try {
    if (chainIdsOf(source.layers.map(({ diffId }) => diffId))[depth - 1] !== chainId) {
      throw new FirstlightError('corrupt', `${ref} of the registry has other layers`, {
        hint: 'remove the images that have the layer, and pull them again',
      });
    }
    const documents = documentsOf(source, depth);
    const digest = sha256Digest(documents.manifest);
    if (store.findImage(digest)?.complete === true) return digest;
    const startedAt = Date.now();
    await store.guard(async () => {
      const lower = { ...source, layers: source.layers.slice(0, depth) };
      const { root } = await mergeImage(lower, new StoreSink(store));
      const built = await buildTocInSteps(root);
      const toc = checkToc(built.bytes);
      await store.contents.makeDurable();
      const state = {
        version: 1,
        name: '',
        platform,
        server: '',
        bundlePath: '',
        etag: '',
      } as const;
      await store.registerImage({
        ...documents,
        digest,
        toc: built.bytes,
        contents: toc.contents,
        parts: toc.parts,
        digests: built.digests,
        frames: Buffer.alloc(0),
        state: { ...state, complete: true },
      });
      // From here on it is a snapshot's; a collection before that is noted must leave it.
      store.setPinned(digest, true);
    });
    log.info({ ref, depth, digest, ms: Date.now() - startedAt }, 'lower layers merged');
    return digest;
  } finally {
    await source.close();
  }
}
