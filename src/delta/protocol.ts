// The HTTP interface between worker and delta server: paths, headers and JSON shapes that serve/ and
// receive/ share. Documented for other clients in docs/PROTOCOL.md.

/** Paths. */
export const API = {
  /** GET ?image=NAME:TAG|sha256:...&platform=os/arch[/variant][&base=sha256:...]... -> a bundle. */
  delta: '/v1/delta',
  /** GET /v1/bundles/ID with Range and If-Range -> the same bundle, immutable. */
  bundles: '/v1/bundles',
  /** GET -> ImageSummary[]; POST -> intake (NDJSON of IntakeEvent). GET/DELETE /v1/images/REF -> one. */
  images: '/v1/images',
  /** GET /v1/chains/sha256:... -> ChainImage[]: the images with a layer of that chain id. */
  chains: '/v1/chains',
  /** GET -> TraceSummary[]; POST a trace file -> TraceReceipt. GET/DELETE /v1/traces/ID -> one. */
  traces: '/v1/traces',
  health: '/healthz',
  metrics: '/metrics',
} as const;

/**
 * Request header of GET /v1/delta: kinds of frames that the worker can take beyond the plain ones, with commas between
 * them. Servers that do not know it send plain frames, and so do all to a worker that does not send it.
 */
export const FRAMES_HEADER = 'firstlight-frames';
/** In {@link FRAMES_HEADER}: patches against contents of the images that the request names. */
export const PATCH_FRAMES = 'patch';

/** Response header with the manifest digest of the image a bundle makes. */
export const IMAGE_DIGEST_HEADER = 'docker-content-digest';

/** Body of every error answer. */
export interface ErrorBody {
  error: { kind: string; message: string; hint?: string };
}

/** One image of the server's catalog. */
export interface ImageSummary {
  /** NAME:TAG. */
  name: string;
  /** Manifest digest. */
  digest: string;
  /** os/arch[/variant]. */
  platform: string;
  /** Names (rows) in the tree, and bytes of its unique contents. */
  entries: number;
  bytes: number;
  layers: number;
  /** When it was added: ISO 8601. */
  added: string;
}

/** More of one image. */
export interface ImageDetail extends ImageSummary {
  /** Parsed OCI manifest and config. */
  manifest: unknown;
  config: unknown;
  /** Bytes of the bundle that a worker with no image gets, where it has been computed. */
  bundleBytes?: number;
  headerBytes?: number;
  order: ImageOrder;
  patches: ImagePatches;
}

/** Patches of an image against those that were added before it under the same name. */
export interface ImagePatches {
  /** Bundles with patches that are there in the order of now: for a worker with the image `from` alone. */
  ready: { from: string; name: string; bundleBytes: number }[];
  /** How many are being computed, or wait for it. */
  pending: number;
}

/** An image that has a layer of some chain id (the OCI image specification's ChainID). */
export interface ChainImage {
  /** Manifest digest. */
  digest: string;
  /** NAME:TAG, where it has one. */
  name?: string;
  platform: string;
  /** Which of its layers it is, 0 for the lowest. */
  index: number;
  /** Digests of all its layers' blobs, the lowest first. */
  layers: string[];
}

/** What orders the bundles of an image. */
export interface ImageOrder {
  /** Runs in the reported traces that it comes from; 0: the order is that of the tree. */
  runs: number;
  /** Files, and parts of large files, that have a place in it; the others come after them. */
  ranked: number;
  /**
   * False while traces that are stored already may change it, or the bundle for a worker without images is still that of
   * the order before.
   */
  settled: boolean;
}

/** A reported trace: one run of one image. */
export interface TraceSummary {
  /** sha256 of its text, 64 hex digits. */
  id: string;
  group: string;
  /** The image as the recorder named it. */
  image: string;
  /** Manifest digest, where the recorder gave it or the server knew the name. */
  digest?: string;
  platform?: string;
  /** When the run began: ISO 8601. */
  start: string;
  durationMs: number;
  /** Files seen. */
  files: number;
  /** When the server got it: ISO 8601. */
  received: string;
}

/** Answer to a report. */
export interface TraceReceipt {
  trace: TraceSummary;
  /** False where an equal one had been reported before. */
  added: boolean;
  /** Manifest digests of the images whose order it can change. */
  images: string[];
}

/** One line of an intake's progress. */
export type IntakeEvent =
  | { event: 'layer'; index: number; layers: number; digest: string; bytes: number }
  | { event: 'progress'; doneBytes: number; totalBytes: number }
  | { event: 'encode' }
  | { event: 'done'; image: ImageSummary }
  | { event: 'error'; error: ErrorBody['error'] };

/** Query of POST /v1/images. The body is the source itself (`rootfs`, `docker-archive`, `oci` as a tar of the layout) or empty (`docker`). */
export interface IntakeQuery {
  kind: 'docker' | 'oci' | 'docker-archive' | 'rootfs';
  /** `docker`: HOST/NAME:TAG to pull. `oci`: the tag in the layout. `docker-archive`: the tag in it, where it has several. */
  source?: string;
  /** Name that the catalog gives it; where absent, the source's own. */
  name?: string;
  platform?: string;
  /** `oci`: manifest digest of an image of the catalog whose layers are the first ones of this: their blobs need not be sent. */
  base?: string;
}

/** Header of POST /v1/images for `docker`: base64 of RegistryAuth as JSON, the client's own login (as docker's X-Registry-Auth). */
export const REGISTRY_AUTH_HEADER = 'x-registry-auth';

/** Login of a registry. */
export interface RegistryAuth {
  username?: string;
  password?: string;
  identitytoken?: string;
  registrytoken?: string;
}
