// Manifests, indexes and configs of the OCI image specification and of docker's schema 2: what they
// hold, and the way from a reference to the image of one platform. Where the bytes come from is a
// BlobStore's matter (registry, directory, archive).
import type { Readable } from 'node:stream';
import * as v from 'valibot';
import { FirstlightError } from '../errors/errors.ts';
import { checkDigest, parseDigest, sha256Digest } from './digest.ts';
import { CONFIG_BYTES_MAX, LAYERS_MAX, MANIFEST_BYTES_MAX } from './limits.ts';
import {
  formatPlatform,
  noSuchPlatform,
  type Platform,
  platformDistance,
  platformOf,
} from './platform.ts';
import type { ImageSource, LayerBlob } from './source.ts';

export const MEDIA = {
  ociIndex: 'application/vnd.oci.image.index.v1+json',
  ociManifest: 'application/vnd.oci.image.manifest.v1+json',
  ociConfig: 'application/vnd.oci.image.config.v1+json',
  ociLayer: 'application/vnd.oci.image.layer.v1.tar',
  dockerIndex: 'application/vnd.docker.distribution.manifest.list.v2+json',
  dockerManifest: 'application/vnd.docker.distribution.manifest.v2+json',
  dockerConfig: 'application/vnd.docker.container.image.v1+json',
} as const;

const Size = v.pipe(v.number(), v.safeInteger(), v.minValue(0));

const DescriptorSchema = v.object({
  mediaType: v.optional(v.string(), ''),
  digest: v.string(),
  size: Size,
  platform: v.optional(
    v.object({
      os: v.optional(v.string()),
      architecture: v.optional(v.string()),
      variant: v.optional(v.string()),
    }),
  ),
  annotations: v.optional(v.nullable(v.record(v.string(), v.string()))),
});

/** A reference to a blob: what it is, its digest and length. */
export type Descriptor = v.InferOutput<typeof DescriptorSchema>;

const IndexSchema = v.object({ manifests: v.array(DescriptorSchema) });
const ManifestSchema = v.object({
  config: DescriptorSchema,
  layers: v.array(DescriptorSchema),
});
const ConfigSchema = v.object({
  os: v.optional(v.string()),
  architecture: v.optional(v.string()),
  variant: v.optional(v.string()),
  rootfs: v.object({ diff_ids: v.optional(v.nullable(v.array(v.string())), []) }),
});

/** A place that holds blobs by digest. */
export interface BlobStore {
  /** A small blob as a whole, its length and digest checked. */
  fetch(descriptor: Descriptor, kind: 'manifest' | 'blob', what: string): Promise<Buffer>;
  /** A blob as a stream that checks itself. */
  open(descriptor: Descriptor, what: string): Promise<Readable>;
  close(): Promise<void>;
}

function parseJson<T>(bytes: Buffer, schema: v.GenericSchema<unknown, T>, what: string): T {
  let json: unknown;
  try {
    json = JSON.parse(bytes.toString('utf8'));
  } catch (error) {
    throw new FirstlightError('corrupt', `${what} is not JSON: ${(error as Error).message}`);
  }
  const result = v.safeParse(schema, json);
  if (result.success) return result.output;
  const issue = result.issues[0];
  const path = v.getDotPath(issue) ?? 'the document';
  throw new FirstlightError('corrupt', `${what}: ${path}: ${issue.message}`);
}

/** Parses an index (`index.json` of a layout, or one in a registry). */
export function parseIndex(bytes: Buffer, what: string): Descriptor[] {
  return parseJson(bytes, IndexSchema, what).manifests;
}

/**
 * What a manifest document is. The document itself decides, and one that could be read both ways is
 * refused: else two tools could see two images under one digest.
 */
function kindOf(bytes: Buffer, what: string): 'index' | 'manifest' {
  const schema = v.looseObject({ schemaVersion: v.optional(v.number()) });
  const json = parseJson(bytes, schema, what) as Record<string, unknown>;
  if (json.schemaVersion === 1) {
    throw new FirstlightError('unsupported', `${what} is of docker's schema 1`, {
      hint: 'push the image again with a tool of this decade, such as skopeo copy',
    });
  }
  const isIndex = json.manifests !== undefined;
  const isManifest = json.layers !== undefined || json.config !== undefined;
  if (isIndex === isManifest) {
    const why = isIndex ? 'is both an index and a manifest' : 'is neither an index nor a manifest';
    throw new FirstlightError('corrupt', `${what} ${why}`);
  }
  return isIndex ? 'index' : 'manifest';
}

interface Candidate {
  descriptor: Descriptor;
  manifest?: Buffer;
  loaded?: Loaded;
  platform: Platform | undefined;
}

/** A manifest with its config, parsed. */
interface Loaded {
  manifest: Buffer;
  parsed: v.InferOutput<typeof ManifestSchema>;
  config: Buffer;
  image: v.InferOutput<typeof ConfigSchema>;
}

const NESTING_MAX = 4;
const INDEX_TYPES: string[] = [MEDIA.ociIndex, MEDIA.dockerIndex];
const MANIFEST_TYPES: string[] = [MEDIA.ociManifest, MEDIA.dockerManifest];

async function collect(
  store: BlobStore,
  descriptors: Descriptor[],
  what: string,
  depth: number,
  found: Candidate[],
): Promise<void> {
  if (depth > NESTING_MAX) {
    throw new FirstlightError('corrupt', `${what}: indexes are nested too deeply`);
  }
  for (const descriptor of descriptors) {
    // Attestations and signatures that travel in the index.
    if (descriptor.annotations?.['vnd.docker.reference.type'] !== undefined) continue;
    const platform = platformOf(descriptor.platform ?? {});
    if (MANIFEST_TYPES.includes(descriptor.mediaType) && platform !== undefined) {
      found.push({ descriptor, platform });
      continue;
    }
    const named = [...INDEX_TYPES, ...MANIFEST_TYPES].includes(descriptor.mediaType);
    if (!named && descriptor.mediaType !== '') continue;
    const bytes = await store.fetch(descriptor, 'manifest', `${what}: ${descriptor.digest}`);
    await document(store, { descriptor, manifest: bytes, platform }, what, depth, found);
  }
}

async function document(
  store: BlobStore,
  candidate: Candidate & { manifest: Buffer },
  what: string,
  depth: number,
  found: Candidate[],
): Promise<void> {
  const { manifest } = candidate;
  if (kindOf(manifest, what) === 'index') {
    await collect(store, parseIndex(manifest, what), what, depth + 1, found);
  } else found.push(candidate);
}

async function load(store: BlobStore, candidate: Candidate, what: string): Promise<Loaded> {
  const { descriptor } = candidate;
  if (candidate.loaded !== undefined) return candidate.loaded;
  const manifest =
    candidate.manifest ?? (await store.fetch(descriptor, 'manifest', `${what}: manifest`));
  if (kindOf(manifest, what) === 'index') {
    throw new FirstlightError(
      'corrupt',
      `${what}: ${descriptor.digest} is an index, not a manifest`,
    );
  }
  const parsed = parseJson(manifest, ManifestSchema, `${what}: manifest`);
  const type = parsed.config.mediaType;
  if (type !== '' && type !== MEDIA.ociConfig && type !== MEDIA.dockerConfig) {
    throw new FirstlightError('unsupported', `${what} is no container image but '${type}'`);
  }
  if (parsed.config.size > CONFIG_BYTES_MAX) {
    throw new FirstlightError('corrupt', `${what}: the config is larger than 8 MiB`);
  }
  const config = await store.fetch(parsed.config, 'blob', `${what}: config`);
  const image = parseJson(config, ConfigSchema, `${what}: config`);
  candidate.loaded = { manifest, parsed, config, image };
  return candidate.loaded;
}

/**
 * Opens the image of one platform.
 * @param top   the manifest or index that a name led to, or the entries of a layout's index.json
 * @param what  names the image in errors
 * @throws FirstlightError `platform`, `corrupt`, `unsupported`, and what the store throws
 */
export async function openImage(
  store: BlobStore,
  top: { bytes: Buffer; descriptor: Descriptor } | Descriptor[],
  wanted: Platform,
  what: string,
): Promise<ImageSource> {
  const found: Candidate[] = [];
  if (Array.isArray(top)) await collect(store, top, what, 0, found);
  else {
    const candidate = { descriptor: top.descriptor, manifest: top.bytes, platform: undefined };
    await document(store, candidate, what, 0, found);
  }
  if (found.length === 0) {
    throw new FirstlightError('not-found', `${what}: no image in its index`);
  }
  const offered: (Platform | undefined)[] = [];
  let best: { candidate: Candidate; distance: number } | undefined;
  for (const candidate of found) {
    // An entry without a platform tells it in the config; a lone one is always asked there.
    candidate.platform ??= platformOf((await load(store, candidate, what)).image);
    offered.push(candidate.platform);
    const distance =
      candidate.platform === undefined
        ? Number.MAX_SAFE_INTEGER
        : platformDistance(wanted, candidate.platform);
    if (distance === undefined || (best !== undefined && best.distance <= distance)) continue;
    best = { candidate, distance };
  }
  if (best === undefined) throw noSuchPlatform(what, wanted, offered);
  const loaded = await load(store, best.candidate, what);
  const platform = best.candidate.platform ?? wanted;
  return makeSource(store, loaded, platform, what);
}

function makeSource(
  store: BlobStore,
  loaded: Loaded,
  platform: Platform,
  what: string,
): ImageSource {
  const { manifest, config, parsed, image } = loaded;
  const diffIds = image.rootfs.diff_ids ?? [];
  if (diffIds.length !== parsed.layers.length) {
    throw new FirstlightError(
      'corrupt',
      `${what}: the manifest has ${parsed.layers.length} layers and the config ${diffIds.length}`,
    );
  }
  if (diffIds.length > LAYERS_MAX) {
    throw new FirstlightError('unsupported', `${what} has ${diffIds.length} layers`);
  }
  const layers = parsed.layers.map((descriptor, index): LayerBlob => {
    const name = `${what}: layer ${index + 1} of ${diffIds.length}`;
    const diffId = diffIds[index]!;
    parseDigest(descriptor.digest, name);
    parseDigest(diffId, name);
    const type = descriptor.mediaType;
    if (!/^application\/vnd\.(oci\.image\.layer|docker\.image\.rootfs)\./.test(type)) {
      throw new FirstlightError('unsupported', `${name} has the media type '${type}'`);
    }
    if (type.endsWith('encrypted')) {
      throw new FirstlightError('unsupported', `${name} is encrypted`, {
        hint: 'decrypt the image first, such as with skopeo copy --decryption-key',
      });
    }
    return {
      digest: descriptor.digest,
      diffId,
      mediaType: type,
      bytes: descriptor.size,
      open: () => store.open(descriptor, name),
    };
  });
  return {
    manifest,
    config,
    digest: sha256Digest(manifest),
    platform: formatPlatform(platform),
    layers,
    close: () => store.close(),
  };
}

/** Checks a whole blob against its descriptor. */
export function checkBlob(bytes: Buffer, descriptor: Descriptor, what: string): Buffer {
  if (bytes.length !== descriptor.size) {
    throw new FirstlightError(
      'corrupt',
      `${what}: ${bytes.length} bytes, not ${descriptor.size} as its descriptor says`,
    );
  }
  checkDigest(bytes, descriptor.digest, what);
  return bytes;
}

/** Refuses a manifest or config that claims to be larger than any real one. */
export function checkSmall(bytes: number, kind: 'manifest' | 'blob', what: string): void {
  const limit = kind === 'manifest' ? MANIFEST_BYTES_MAX : CONFIG_BYTES_MAX;
  if (bytes <= limit) return;
  throw new FirstlightError('corrupt', `${what}: larger than ${limit >> 20} MiB`);
}
