// A root filesystem tar (plain, gzip or zstd) as an image of one layer. The manifest and config are
// made here, and only from the tar and the platform: the same tar always gives the same digest.
import { createHash } from 'node:crypto';
import { open } from 'node:fs/promises';
import { basename } from 'node:path';
import { pipeline } from 'node:stream';
import { FirstlightError, toFirstlightError } from '../errors/errors.ts';
import { type Compression, decompress } from './compression.ts';
import { DigestCheck, sha256Digest } from './digest.ts';
import { MEDIA } from './manifest.ts';
import { formatPlatform, type Platform, parsePlatform } from './platform.ts';
import type { ImageSource, LayerBlob } from './source.ts';

const LAYER_TYPES: Record<Compression, string> = {
  none: MEDIA.ociLayer,
  gzip: `${MEDIA.ociLayer}+gzip`,
  zstd: `${MEDIA.ociLayer}+zstd`,
};

/** What two passes over a blob have in common. */
export interface Measured {
  digest: string;
  diffId: string;
  bytes: number;
  mediaType: string;
}

/** Reads a blob once for its digests. */
export async function measure(blob: AsyncIterable<Buffer>, what: string): Promise<Measured> {
  const stored = createHash('sha256');
  const plain = createHash('sha256');
  let bytes = 0;
  async function* counted(): AsyncGenerator<Buffer> {
    for await (const chunk of blob) {
      bytes += chunk.length;
      stored.update(chunk);
      yield chunk;
    }
  }
  const { bytes: content, compression } = await decompress(counted(), what);
  if (compression === 'none') {
    for await (const _ of content);
    const digest = `sha256:${stored.digest('hex')}`;
    return { digest, diffId: digest, bytes, mediaType: LAYER_TYPES.none };
  }
  for await (const chunk of content) plain.update(chunk);
  return {
    digest: `sha256:${stored.digest('hex')}`,
    diffId: `sha256:${plain.digest('hex')}`,
    bytes,
    mediaType: LAYER_TYPES[compression],
  };
}

/** A manifest for a config and measured layers; byte for byte the same for the same input. */
export function makeManifest(config: Buffer, layers: Measured[], configType: string): Buffer {
  return Buffer.from(
    JSON.stringify({
      schemaVersion: 2,
      mediaType: MEDIA.ociManifest,
      config: { mediaType: configType, digest: sha256Digest(config), size: config.length },
      layers: layers.map(({ mediaType, digest, bytes }) => ({ mediaType, digest, size: bytes })),
    }),
  );
}

function makeConfig(platform: Platform, diffId: string): Buffer {
  return Buffer.from(
    JSON.stringify({
      architecture: platform.architecture,
      ...(platform.variant === undefined ? {} : { variant: platform.variant }),
      os: platform.os,
      config: {},
      rootfs: { type: 'layers', diff_ids: [diffId] },
    }),
  );
}

const CHUNK = 256 << 10;

/**
 * Opens a root filesystem tar. Reads it once now for its digests, and again when the layer is read;
 * a file that changes in between is noticed then.
 * @throws FirstlightError `not-found`, `usage` (no regular file), `corrupt`
 */
export async function openRootfs(
  file: string,
  options: { platform: string },
): Promise<ImageSource> {
  const platform = parsePlatform(options.platform);
  const stream = async () => {
    try {
      const handle = await open(file, 'r');
      const stat = await handle.stat();
      if (!stat.isFile()) {
        await handle.close();
        throw new FirstlightError('usage', `${file} is not a regular file`, {
          hint: 'write the tar to a file first',
        });
      }
      return handle.createReadStream({ highWaterMark: CHUNK });
    } catch (error) {
      throw toFirstlightError(error);
    }
  };
  const measured = await measure(await stream(), file);
  const config = makeConfig(platform, measured.diffId);
  const manifest = makeManifest(config, [measured], MEDIA.ociConfig);
  const layer: LayerBlob = {
    digest: measured.digest,
    diffId: measured.diffId,
    mediaType: measured.mediaType,
    bytes: measured.bytes,
    async open() {
      const check = new DigestCheck(measured.digest, measured.bytes, file);
      // Errors of the file come out of the check, where the reader sees them.
      pipeline(await stream(), check, () => undefined);
      return check;
    },
  };
  return {
    manifest,
    config,
    digest: sha256Digest(manifest),
    platform: formatPlatform(platform),
    name: basename(file).replace(/\.(tar|tgz|tar\.gz|tar\.zst)$/, ''),
    layers: [layer],
    async close() {},
  };
}
