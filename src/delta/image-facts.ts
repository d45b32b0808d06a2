// What a bundle needs to know of an image's manifest and config: the image's digest and its layers.
// Works on the raw bytes and trusts none of them; pulling images is image/'s own business.
import { hash } from 'node:crypto';
import { FirstlightError } from '../errors/errors.ts';
import type { LayerInfo } from './bundle.ts';

/** Most layers that an image may have; the TOC's layer column is 16 bits wide. */
const LAYERS_MAX = 0xffff;
const DIGEST = /^sha256:[0-9a-f]{64}$/;

/** Facts of one image, checked. */
export interface ImageFacts {
  /** Manifest digest, `sha256:...`. */
  digest: string;
  layers: LayerInfo[];
}

function fail(what: string): never {
  throw new FirstlightError('corrupt', what);
}

function parse(bytes: Buffer, what: string): Record<string, unknown> {
  try {
    const value: unknown = JSON.parse(bytes.toString('utf8'));
    if (typeof value === 'object' && value !== null) return value as Record<string, unknown>;
  } catch (cause) {
    throw new FirstlightError('corrupt', `${what}: no JSON`, { cause });
  }
  return fail(`${what}: no JSON object`);
}

function list(value: unknown, field: string): unknown[] {
  if (!Array.isArray(value)) fail(`${field}: no list`);
  if (value.length > LAYERS_MAX) fail(`${field}: more than ${LAYERS_MAX} entries`);
  return value;
}

function digestOf(value: unknown, field: string): string {
  if (typeof value !== 'string' || !DIGEST.test(value)) fail(`${field}: no sha256 digest`);
  return value;
}

/** `sha256:` and the hex digest of some bytes. */
export function sha256(bytes: Uint8Array): string {
  return `sha256:${hash('sha256', bytes, 'hex')}`;
}

/**
 * Reads the layers of an image (OCI manifest or Docker schema 2) and checks that the config is the
 * one that the manifest names. Throws 'corrupt' naming the field.
 */
export function readImageFacts(manifest: Buffer, config: Buffer): ImageFacts {
  const parsed = parse(manifest, 'manifest');
  const named = parsed.config as Record<string, unknown> | undefined;
  const configDigest = digestOf(named?.digest, 'manifest: config.digest');
  if (sha256(config) !== configDigest)
    fail(`config: its digest is ${sha256(config)}, but the manifest names ${configDigest}`);
  const layers = list(parsed.layers, 'manifest: layers');
  const rootfs = parse(config, 'config').rootfs as Record<string, unknown> | undefined;
  const diffIds = list(rootfs?.diff_ids, 'config: rootfs.diff_ids');
  if (diffIds.length !== layers.length)
    fail(`config: rootfs.diff_ids: ${diffIds.length} for ${layers.length} layers`);
  return {
    digest: sha256(manifest),
    layers: layers.map((layer, i) => {
      const { digest, size } = (layer ?? {}) as Record<string, unknown>;
      if (typeof size !== 'number' || !Number.isSafeInteger(size) || size < 0)
        fail(`manifest: layers[${i}].size: no size`);
      return {
        digest: digestOf(digest, `manifest: layers[${i}].digest`),
        diffId: digestOf(diffIds[i], `config: rootfs.diff_ids[${i}]`),
        bytes: size,
      };
    }),
  };
}
