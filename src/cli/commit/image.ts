// The image that a commit makes: the old one's layers and one more, as an OCI layout. What does not
// live here: the layer itself (layer-file.ts), and sending it to a server (upload.ts).
//
// The worker has an image's files, not the blobs of its layers. They are taken, in this order, from the
// layout that is written to, where it has them; from --base; else the files are packed anew as one
// layer: the same tree, another digest.
import { createWriteStream } from 'node:fs';
import { mkdir, open, readFile, rename, rm, stat, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { pipeline } from 'node:stream/promises';
import { FirstlightError } from '../../errors/errors.ts';
import { sha256Digest } from '../../image/digest.ts';
import { MEDIA } from '../../image/manifest.ts';
import type { ImageSource } from '../../image/source.ts';
import { layerItems, wholeItems } from '../../tree/diff-layer.ts';
import type { MountChanges } from './changes.ts';
import { readDigests, type WrittenLayer, writeLayer } from './layer-file.ts';

const REF_NAME = 'org.opencontainers.image.ref.name';

interface Descriptor {
  mediaType: string;
  digest: string;
  size: number;
  annotations?: Record<string, string>;
}

interface Manifest {
  mediaType?: string;
  config: Descriptor;
  layers: Descriptor[];
  annotations?: Record<string, string>;
}

interface Config {
  created?: string;
  rootfs: { type: string; diff_ids: string[] };
  history?: { created?: string; created_by?: string; comment?: string; empty_layer?: boolean }[];
}

/** Where the layers of the old image came from. */
export type BaseFrom = 'layout' | 'source' | 'packed' | 'server';

/** What a commit has made. */
export interface Committed {
  /** Manifest digest of the new image. */
  digest: string;
  layer: WrittenLayer;
  base: BaseFrom;
}

export interface CommitOptions {
  changes: MountChanges;
  /** Layout's directory; made where there is none. */
  directory: string;
  tag: string;
  /** What is written into the image's history. */
  comment: string;
  /** The old image, with its blobs. */
  source: ImageSource | undefined;
  /** The blobs of the old layers are not needed: a server has them. */
  layersElsewhere: boolean;
  signal: AbortSignal;
}

const hexOf = (digest: string) => digest.replace(/^sha256:/, '');

function blobPath(directory: string, digest: string): string {
  return join(directory, 'blobs/sha256', hexOf(digest));
}

async function hasBlob(directory: string, { digest, size }: Descriptor): Promise<boolean> {
  const found = await stat(blobPath(directory, digest)).catch(() => undefined);
  return found?.size === size;
}

/** Writes a blob whose bytes are at hand; its descriptor. */
async function putBlob(directory: string, mediaType: string, bytes: Buffer): Promise<Descriptor> {
  const digest = sha256Digest(bytes);
  const path = blobPath(directory, digest);
  await writeFile(`${path}.new`, bytes);
  await rename(`${path}.new`, path);
  return { mediaType, digest, size: bytes.length };
}

/** Writes a layer as a blob of the layout. */
async function putLayer(
  options: CommitOptions,
  items: Parameters<typeof writeLayer>[1],
  upper: string | undefined,
): Promise<WrittenLayer> {
  const { directory, changes, signal } = options;
  const aside = join(directory, `blobs/sha256/layer-${process.pid}.new`);
  const digests = await readDigests(changes.imageDirectory);
  const file = await open(aside, 'w', 0o644);
  try {
    const from = { upper, layout: changes.layout, digests };
    const layer = await writeLayer(file, items, from, signal);
    await file.close();
    await rename(aside, blobPath(directory, layer.digest));
    return layer;
  } catch (error) {
    // The first error is the one that matters; closing a second time is an error of its own.
    await file.close().catch(() => undefined);
    await rm(aside, { force: true });
    throw error;
  }
}

/** Copies the old layers' blobs, each checked against its digest while it is read. */
async function copyLayers(options: CommitOptions, wanted: Descriptor[]): Promise<void> {
  const { directory, source, signal, changes } = options;
  for (const descriptor of wanted) {
    if (await hasBlob(directory, descriptor)) continue;
    const layer = source?.layers.find(({ digest }) => digest === descriptor.digest);
    if (layer === undefined) {
      throw new FirstlightError('usage', `--base is not the image that ${changes.image} is`, {
        hint: `it lacks the layer ${descriptor.digest}; leave --base out to pack the files anew`,
      });
    }
    const path = blobPath(directory, descriptor.digest);
    try {
      await pipeline(await layer.open(), createWriteStream(`${path}.new`), { signal });
      await rename(`${path}.new`, path);
    } catch (error) {
      await rm(`${path}.new`, { force: true });
      throw error;
    }
  }
}

/** An OCI layer's media type for what may be one of docker's. */
function ociLayerType(mediaType: string): string {
  if (!mediaType.startsWith('application/vnd.docker.')) return mediaType;
  return mediaType.endsWith('.gzip') ? `${MEDIA.ociLayer}+gzip` : MEDIA.ociLayer;
}

interface Base {
  layers: Descriptor[];
  diffIds: string[];
  history: Config['history'];
  from: BaseFrom;
}

/** The old image's layers for the new one, their blobs in place. */
async function takeBase(options: CommitOptions, manifest: Manifest, config: Config): Promise<Base> {
  const { directory, source, layersElsewhere, changes } = options;
  const layers = manifest.layers.map((layer) => ({
    ...layer,
    mediaType: ociLayerType(layer.mediaType),
  }));
  const same = { layers, diffIds: config.rootfs.diff_ids, history: config.history };
  if (layersElsewhere) return { ...same, from: 'server' };
  const there = await Promise.all(manifest.layers.map((layer) => hasBlob(directory, layer)));
  if (there.every(Boolean)) return { ...same, from: 'layout' };
  if (source !== undefined) {
    await copyLayers(options, manifest.layers);
    return { ...same, from: 'source' };
  }
  const packed = await putLayer(options, wholeItems(changes.root), undefined);
  const layer = { mediaType: `${MEDIA.ociLayer}+gzip`, digest: packed.digest, size: packed.bytes };
  const history = [{ created_by: `firstlight commit: the files of ${changes.digest}` }];
  return {
    ...{ layers: [layer], diffIds: [packed.diffId], from: 'packed' },
    history: config.history === undefined ? undefined : history,
  };
}

/** The config with one more layer; everything else as it was, fields that nobody knows included. */
function newConfig(config: Config, base: Base, layer: WrittenLayer, comment: string): Config {
  // The newest change, not the clock: the same changes give the same image.
  const created = new Date(layer.newestSec * 1000).toISOString();
  const step = { created, created_by: 'firstlight commit', comment };
  return {
    ...config,
    created,
    rootfs: { type: 'layers', diff_ids: [...base.diffIds, layer.diffId] },
    ...(base.history === undefined ? {} : { history: [...base.history, step] }),
  };
}

/** Enters the image under its tag; another one of that tag loses it, the others stay. */
async function writeIndex(directory: string, tag: string, manifest: Descriptor): Promise<void> {
  const path = join(directory, 'index.json');
  const text = await readFile(path, 'utf8').catch((error: NodeJS.ErrnoException) => {
    if (error.code === 'ENOENT') return undefined;
    throw error;
  });
  const index = (text === undefined ? {} : JSON.parse(text)) as { manifests?: Descriptor[] };
  const others = (index.manifests ?? []).filter((each) => each.annotations?.[REF_NAME] !== tag);
  const own = { ...manifest, annotations: { [REF_NAME]: tag } };
  const next = { schemaVersion: 2, ...index, manifests: [...others, own] };
  await writeFile(`${path}.new`, JSON.stringify(next));
  await rename(`${path}.new`, path);
}

async function openLayoutDirectory(directory: string): Promise<void> {
  await mkdir(join(directory, 'blobs/sha256'), { recursive: true });
  const path = join(directory, 'oci-layout');
  await writeFile(path, '{"imageLayoutVersion":"1.0.0"}', { flag: 'wx' }).catch(
    (error: NodeJS.ErrnoException) => {
      if (error.code !== 'EEXIST') throw error;
    },
  );
}

/**
 * Writes the new image into a layout. What was there stays; the tag means the new image at the end.
 * @throws FirstlightError `usage` where nothing has changed or --base is another image, `busy` where the image is
 *   still arriving
 */
export async function commitTo(options: CommitOptions): Promise<Committed> {
  const { changes, directory, tag, comment } = options;
  const read = async (name: string) => readFile(join(changes.imageDirectory, name), 'utf8');
  const manifest = JSON.parse(await read('manifest.json')) as Manifest;
  const config = JSON.parse(await read('config.json')) as Config;
  const items = [...layerItems(changes.root, changes.upper)];
  if (items.length === 0) {
    throw new FirstlightError('usage', 'nothing has changed: there is nothing to commit');
  }
  await openLayoutDirectory(directory);
  const base = await takeBase(options, manifest, config);
  const layer = await putLayer(options, items, changes.upperDirectory);
  const configBytes = Buffer.from(JSON.stringify(newConfig(config, base, layer, comment)));
  const newManifest = {
    schemaVersion: 2,
    mediaType: MEDIA.ociManifest,
    config: await putBlob(directory, MEDIA.ociConfig, configBytes),
    layers: [
      ...base.layers,
      { mediaType: `${MEDIA.ociLayer}+gzip`, digest: layer.digest, size: layer.bytes },
    ],
    ...(manifest.annotations === undefined ? {} : { annotations: manifest.annotations }),
  };
  const bytes = Buffer.from(JSON.stringify(newManifest));
  const descriptor = await putBlob(directory, MEDIA.ociManifest, bytes);
  await writeIndex(directory, tag, descriptor);
  return { digest: descriptor.digest, layer, base: base.from };
}
