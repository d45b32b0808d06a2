// Types of the delta image (bundle) that the encoder, the decoder, serve/ and receive/ share.
// Byte layout: docs/FORMAT.md. What does not live here: reading and writing it (bundle-encode.ts,
// bundle-decode.ts).
import type { BaseRange } from './patch-table.ts';
import type { Toc } from './toc.ts';

export const BUNDLE_MAGIC = 'FLBUNDLE';
export const BUNDLE_VERSION = 1;
/** Bytes of the preamble; everything before the header. */
export const PREAMBLE_BYTES = 96;
/** Byte offsets in the preamble; docs/FORMAT.md has the picture. */
export const PREAMBLE = {
  magic: 0, // 8 bytes
  version: 8, // u16
  flags: 10, // u16, 0: no flag is known yet
  headerBytes: 12, // u32
  headerRawBytes: 16, // u32
  bodyBytes: 24, // u64
  digest: 32, // 32 bytes
  /** Ranges [from, to) that are reserved and zero. */
  zeros: [
    [20, 24],
    [64, 96],
  ],
} as const;
/** A header may not be larger than this, compressed or not. */
export const HEADER_MAX_BYTES = 256 << 20;
/**
 * Raw content bytes of a frame lie between these; it is smaller only where the next part would take
 * it past the maximum, at the end of the ranked parts, and at the end of all.
 */
export const FRAME_MIN_BYTES = 64 << 10;
export const FRAME_MAX_BYTES = 1 << 20;
/** Media type of a bundle. */
export const BUNDLE_MEDIA_TYPE = 'application/vnd.firstlight.bundle.v1';

/** How a frame's payload is written; a patch is sent only to a worker that has said it reads them. */
export const FRAME_KIND = { zstd: 0, patch: 1 } as const;

/** The fixed-size start of a bundle, checked. */
export interface Preamble {
  version: number;
  flags: number;
  /** Bytes of the compressed header that follows the preamble. */
  headerBytes: number;
  /** Bytes of the header when decompressed. */
  headerRawBytes: number;
  /** Bytes of all frames. */
  bodyBytes: number;
  /** sha256 over the preamble (this field as zeros) and the compressed header, hex. */
  digest: string;
}

/** One frame as the header describes it. */
export interface FrameInfo {
  index: number;
  /** Byte offset in the bundle (from its very start), and compressed size: what a Range request asks for. */
  offset: number;
  bytes: number;
  /** Bytes of the decompressed payload, digest table included. */
  rawBytes: number;
  kind: number;
  /** Kind patch: what stands behind it, which the worker has. Empty for the others. */
  ranges: readonly BaseRange[];
  /** Kind patch: bytes of the control stream behind the parts (difference.ts); 0 where the parts are as they are. */
  controlBytes: number;
  /** sha256 of the compressed bytes (32 bytes). */
  digest: Buffer;
  /** Parts in the frame: `order[firstPart .. firstPart + partCount)` of the header. */
  firstPart: number;
  partCount: number;
}

/** An image the worker holds, named by the server as a source of contents. */
export interface BaseImage {
  /** Manifest digest, `sha256:...`. */
  digest: string;
  /** Number of contents in its TOC, as the server has it. */
  contents: number;
}

/** A decoded and checked header. */
export interface BundleHeader {
  preamble: Preamble;
  /** Raw manifest and config bytes; both checked against their digests. */
  manifest: Buffer;
  config: Buffer;
  /** Manifest digest, `sha256:...`: the name of the image. */
  imageDigest: string;
  /** Flat TOC, checked. */
  toc: Toc;
  layers: LayerInfo[];
  bases: BaseImage[];
  /**
   * For each content: -1 where the bundle brings it, else the index of the base that has it in `bases` ...
   */
  haveBase: Int32Array;
  /** ... and the content's index in that base's TOC. */
  haveContent: Uint32Array;
  frames: FrameInfo[];
  /** Part numbers (through all contents of the TOC) in transfer order: every part of every content the bundle brings, once. */
  order: Uint32Array;
}

/** One layer of the image, as the manifest and config name it. */
export interface LayerInfo {
  /** Digest of the layer blob in the registry, `sha256:...`. */
  digest: string;
  /** Digest of the uncompressed tar. */
  diffId: string;
  /** Bytes of the blob. */
  bytes: number;
}

/** One part out of a decoded frame; its bytes are verified against `partDigest`. */
export interface DecodedPart {
  /** Number through all contents, the content it belongs to, its index within the content. */
  part: number;
  content: number;
  index: number;
  data: Buffer;
  /** sha256 of `data`. */
  partDigest: Buffer;
  /** sha256 of the whole content; equal to `partDigest` where the content has one part. */
  contentDigest: Buffer;
}
