// Archives of `docker save`: manifest.json with layers as tars, and since docker 25 an OCI layout in
// the same tar. The layout is preferred: it has the image's own manifest, and so its own digest.
// For the older form a manifest is made, from the config and the layers alone.
import { createWriteStream } from 'node:fs';
import { type FileHandle, mkdtemp, open, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { pipeline as pipe } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import * as v from 'valibot';
import { FirstlightError, toFirstlightError } from '../errors/errors.ts';
import { decompress, SNIFF_BYTES, sniff } from './compression.ts';
import { DigestCheck, sha256Digest } from './digest.ts';
import { type Files, tarFiles } from './files.ts';
import { CONFIG_BYTES_MAX, MANIFEST_BYTES_MAX } from './limits.ts';
import { type BlobStore, type Descriptor, MEDIA, openImage, parseIndex } from './manifest.ts';
import { chooseEntries, layoutStore } from './oci-layout.ts';
import { parsePlatform } from './platform.ts';
import { formatReference, parseReference } from './reference.ts';
import { type Measured, makeManifest, measure } from './rootfs.ts';
import type { ImageSource } from './source.ts';

const ManifestJson = v.array(
  v.object({
    Config: v.string(),
    RepoTags: v.optional(v.nullable(v.array(v.string()))),
    Layers: v.optional(v.nullable(v.array(v.string()))),
  }),
);
type Saved = v.InferOutput<typeof ManifestJson>[number];

/** Opens the tar; a compressed one is unpacked to a temporary file first, as it must be seekable. */
async function openArchive(file: string): Promise<Files> {
  let handle: FileHandle;
  try {
    handle = await open(file, 'r');
  } catch (error) {
    throw toFirstlightError(error);
  }
  try {
    if (!(await handle.stat()).isFile()) {
      throw new FirstlightError('usage', `${file} is not a regular file`);
    }
    const head = Buffer.alloc(SNIFF_BYTES);
    const { bytesRead } = await handle.read(head, 0, SNIFF_BYTES, 0);
    if (sniff(head.subarray(0, bytesRead), file) !== 'none') {
      const plain = await unpackArchive(handle, file);
      await handle.close();
      handle = plain;
    }
    const opened = handle;
    return await tarFiles(opened, () => opened.close());
  } catch (error) {
    await handle.close();
    throw error;
  }
}

async function unpackArchive(handle: FileHandle, file: string): Promise<FileHandle> {
  const directory = await mkdtemp(join(tmpdir(), 'firstlight-archive-'));
  try {
    const path = join(directory, 'archive.tar');
    const blob = handle.createReadStream({ start: 0, autoClose: false });
    const { bytes } = await decompress(blob, file);
    await pipeline(bytes, createWriteStream(path));
    return await open(path, 'r');
  } catch (error) {
    throw toFirstlightError(error);
  } finally {
    // The open descriptor keeps the bytes; nothing is left behind however the process ends.
    await rm(directory, { recursive: true, force: true });
  }
}

function sameName(one: string, other: string): boolean {
  try {
    return formatReference(parseReference(one)) === formatReference(parseReference(other));
  } catch {
    // What is no reference names nothing.
    return false;
  }
}

/** The image that a tag (or `@N`, counting from 0) means. */
function choose(images: Saved[], tag: string | undefined, what: string): Saved {
  const tags = images.flatMap((image) => image.RepoTags ?? []);
  const has = tags.length === 0 ? 'it names none' : `it has ${tags.slice(0, 20).join(', ')}`;
  if (images.length === 0) throw new FirstlightError('not-found', `${what} holds no image`);
  if (tag === undefined) {
    if (images.length === 1) return images[0]!;
    throw new FirstlightError('usage', `${what} holds several images: ${has}`, {
      hint: 'name one of them after a colon, or by its number as :@0',
    });
  }
  const number = /^@(\d+)$/.exec(tag);
  const image =
    number !== null
      ? images[Number(number[1])]
      : images.find((saved) => saved.RepoTags?.some((name) => name === tag || sameName(name, tag)));
  if (image !== undefined) return image;
  throw new FirstlightError('not-found', `${what} has no image '${tag}': ${has}`);
}

/** Blobs of an old archive: known by digest only after each layer was measured. */
async function measuredStore(
  files: Files,
  saved: Saved,
  what: string,
): Promise<{ store: BlobStore; manifest: Buffer }> {
  const config = await files.read(saved.Config, CONFIG_BYTES_MAX, `${what}: config`);
  const layers: Measured[] = [];
  const paths = new Map<string, string>();
  for (const path of saved.Layers ?? []) {
    const measured = await measure(await files.open(path, what), `${what}: ${path}`);
    layers.push(measured);
    paths.set(measured.digest, path);
  }
  const store: BlobStore = {
    async fetch() {
      return config;
    },
    async open(descriptor, name) {
      const blob = await files.open(paths.get(descriptor.digest)!, name);
      const check = new DigestCheck(descriptor.digest, descriptor.size, name);
      // Errors of the file come out of the check, where the reader sees them.
      pipe(blob, check, () => undefined);
      return check;
    },
    close: () => files.close(),
  };
  return { store, manifest: makeManifest(config, layers, MEDIA.dockerConfig) };
}

async function openSaved(
  files: Files,
  tag: string | undefined,
  platform: string,
  what: string,
): Promise<ImageSource> {
  const bytes = await files.read('manifest.json', MANIFEST_BYTES_MAX, what);
  let json: unknown;
  try {
    json = JSON.parse(bytes.toString('utf8'));
  } catch (error) {
    throw new FirstlightError('corrupt', `${what}: manifest.json is not JSON`, { cause: error });
  }
  const parsed = v.safeParse(ManifestJson, json);
  if (!parsed.success) {
    const why = parsed.issues[0].message;
    throw new FirstlightError('corrupt', `${what}: manifest.json: ${why}`);
  }
  const saved = choose(parsed.output, tag, what);
  const { store, manifest } = await measuredStore(files, saved, what);
  const descriptor: Descriptor = {
    mediaType: MEDIA.ociManifest,
    digest: sha256Digest(manifest),
    size: manifest.length,
  };
  const top = { bytes: manifest, descriptor };
  const source = await openImage(store, top, parsePlatform(platform), what);
  const name = saved.RepoTags?.[0];
  return name === undefined ? source : { ...source, name };
}

/** The layout in the tar, where it has one and the tag can be found there. */
async function openNewer(
  files: Files,
  tag: string | undefined,
  platform: string,
  what: string,
): Promise<ImageSource> {
  const index = await files.read('index.json', MANIFEST_BYTES_MAX, what);
  const all = parseIndex(index, `${what}: index.json`);
  const number = /^@(\d+)$/.exec(tag ?? '');
  const entries = number === null ? chooseEntries(all, tag, what) : [all[Number(number[1])]];
  const [first] = entries;
  if (first === undefined) throw new FirstlightError('not-found', `${what} has no image '${tag}'`);
  const chosen = entries as Descriptor[];
  const source = await openImage(layoutStore(files), chosen, parsePlatform(platform), what);
  const name =
    first.annotations?.['io.containerd.image.name'] ??
    first.annotations?.['org.opencontainers.image.ref.name'];
  return name === undefined ? source : { ...source, name };
}

/**
 * Opens an image of a docker-archive.
 * @param tag  name of the image, or `@N`; undefined where the archive holds one image
 * @throws FirstlightError `not-found`, `usage` (several images), `platform`, `corrupt`
 */
export async function openDockerArchive(
  file: string,
  tag: string | undefined,
  options: { platform: string },
): Promise<ImageSource> {
  const files = await openArchive(file);
  try {
    const layout = (await files.size('index.json')) !== undefined;
    const older = (await files.size('manifest.json')) !== undefined;
    if (!layout && !older) {
      throw new FirstlightError('corrupt', `${file} is no docker-archive: no manifest.json`, {
        hint: 'for the tar of a root filesystem write rootfs:FILE',
      });
    }
    return layout
      ? await openNewer(files, tag, options.platform, file)
      : await openSaved(files, tag, options.platform, file);
  } catch (error) {
    await files.close();
    throw error;
  }
}
