// Images in an OCI image layout, as a directory or as the same files in a tar (files.ts).

import { pipeline } from 'node:stream';
import { FirstlightError } from '../errors/errors.ts';
import { DigestCheck, parseDigest } from './digest.ts';
import { directoryFiles, type Files } from './files.ts';
import { MANIFEST_BYTES_MAX } from './limits.ts';
import {
  type BlobStore,
  checkBlob,
  checkSmall,
  type Descriptor,
  openImage,
  parseIndex,
} from './manifest.ts';
import { parsePlatform } from './platform.ts';
import { formatReference, parseReference } from './reference.ts';
import type { ImageSource } from './source.ts';

const REF_NAME = 'org.opencontainers.image.ref.name';
const IMAGE_NAME = 'io.containerd.image.name';

/** The blobs of a layout. */
export function layoutStore(files: Files): BlobStore {
  const path = (descriptor: Descriptor, what: string) => {
    const { algorithm, hex } = parseDigest(descriptor.digest, what);
    return `blobs/${algorithm}/${hex}`;
  };
  return {
    async fetch(descriptor, kind, what) {
      checkSmall(descriptor.size, kind, what);
      const bytes = await files.read(path(descriptor, what), descriptor.size, what);
      return checkBlob(bytes, descriptor, what);
    },
    async open(descriptor, what) {
      const blob = await files.open(path(descriptor, what), what);
      const check = new DigestCheck(descriptor.digest, descriptor.size, what);
      // Errors of the file come out of the check, where the reader sees them.
      pipeline(blob, check, () => undefined);
      return check;
    },
    close: () => files.close(),
  };
}

function sameReference(one: string, other: string): boolean {
  try {
    return formatReference(parseReference(one)) === formatReference(parseReference(other));
  } catch {
    // What is no reference names nothing.
    return false;
  }
}

/** Names of an entry of index.json, as a user can give them. */
function namesOf(descriptor: Descriptor): string[] {
  const { annotations } = descriptor;
  return [annotations?.[REF_NAME], annotations?.[IMAGE_NAME]].filter((name) => name !== undefined);
}

/**
 * The entries of index.json that a tag means.
 * @throws FirstlightError `not-found` naming the tags that are there
 */
export function chooseEntries(
  entries: Descriptor[],
  tag: string | undefined,
  what: string,
): Descriptor[] {
  const tags = [...new Set(entries.flatMap((entry) => namesOf(entry).slice(-1)))];
  const has = tags.length === 0 ? 'it names none' : `it has ${tags.slice(0, 20).join(', ')}`;
  if (tag === undefined) {
    if (new Set(entries.map((entry) => namesOf(entry)[0] ?? '')).size <= 1) return entries;
    throw new FirstlightError('usage', `${what} holds several images: ${has}`, {
      hint: 'name one of them after a colon',
    });
  }
  const exact = entries.filter((entry) => namesOf(entry).includes(tag) || entry.digest === tag);
  if (exact.length > 0) return exact;
  const named = entries.filter((entry) => namesOf(entry).some((name) => sameReference(name, tag)));
  if (named.length > 0) return named;
  throw new FirstlightError('not-found', `${what} has no image '${tag}': ${has}`);
}

/** Opens an image of a layout whose files are at hand; closes them where that fails. */
export async function openLayout(
  files: Files,
  tag: string | undefined,
  platform: string,
  what: string,
): Promise<ImageSource> {
  try {
    await files.read('oci-layout', 4096, what);
    const index = await files.read('index.json', MANIFEST_BYTES_MAX, what);
    const entries = chooseEntries(parseIndex(index, `${what}: index.json`), tag, what);
    const name = namesOf(entries[0]!).at(-1) ?? tag;
    const source = await openImage(layoutStore(files), entries, parsePlatform(platform), what);
    return name === undefined ? source : { ...source, name };
  } catch (error) {
    await files.close();
    throw error;
  }
}

/**
 * Opens an image of an OCI layout directory.
 * @param tag  `org.opencontainers.image.ref.name` of an entry, or undefined where there is one image
 * @throws FirstlightError `not-found` (no such directory or tag), `platform`, `corrupt`
 */
export async function openOciLayout(
  directory: string,
  tag: string | undefined,
  options: { platform: string },
): Promise<ImageSource> {
  const files = directoryFiles(directory);
  try {
    await files.read('oci-layout', 4096, directory);
  } catch (error) {
    if (!(error instanceof FirstlightError) || error.kind !== 'not-found') throw error;
    throw new FirstlightError('not-found', `${directory} is not an OCI image layout`, {
      hint: 'name the directory that holds oci-layout and index.json',
      cause: error,
    });
  }
  return openLayout(files, tag, options.platform, directory);
}
