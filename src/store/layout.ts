// Where everything stands below a store's root (the picture is in DESIGN's and the README's terms:
// content, incoming, images, snapshots, traces, meta.db). Only names live here.
import { join } from 'node:path';

/** 64 lower-case hex digits: the name of a content, and of an image's directory. */
export const HEX64 = /^[0-9a-f]{64}$/;
/** A large content that is still arriving: 32 hex digits of its image's digest, content index. */
export const PARTIAL = /^([0-9a-f]{32})\.(0|[1-9][0-9]*)$/;
const DIGEST = /^sha256:([0-9a-f]{64})$/;

/** Paths of one store. */
export class Layout {
  readonly root: string;
  /** Verified and durable contents, `<2 hex>/<62 hex>`. */
  readonly content: string;
  /** What is being written, and verified contents that are not durable yet. */
  readonly incoming: string;
  readonly images: string;
  readonly snapshots: string;
  readonly traces: string;
  /** Contents that `verify` found damaged, kept for a look. */
  readonly quarantine: string;
  readonly database: string;
  /** Process id of the owner, for the message that another process gets. */
  readonly owner: string;

  constructor(root: string) {
    this.root = root;
    this.content = join(root, 'content');
    this.incoming = join(root, 'incoming');
    this.images = join(root, 'images');
    this.snapshots = join(root, 'snapshots');
    this.traces = join(root, 'traces');
    this.quarantine = join(root, 'quarantine');
    this.database = join(root, 'meta.db');
    this.owner = join(root, 'owner');
  }

  /** Path of a durable content. */
  contentFile(hex: string): string {
    return join(this.content, hex.slice(0, 2), hex.slice(2));
  }

  /** Path of a verified content that is not durable yet. */
  incomingFile(hex: string): string {
    return join(this.incoming, hex);
  }

  /** Directory of an image. */
  imageDirectory(digest: string): string {
    return join(this.images, hexOf(digest));
  }

  /** Path of a large content of an image while its parts arrive. */
  partialFile(digest: string, content: number): string {
    return join(this.incoming, `${partialPrefix(digest)}.${content}`);
  }
}

/** The hex digits of `sha256:<64 hex>`; empty where it is no digest. */
export function hexOf(digest: string): string {
  return DIGEST.exec(digest)?.[1] ?? '';
}

/** True for `sha256:<64 hex>`. */
export function isDigest(text: string): boolean {
  return DIGEST.test(text);
}

/** First half of the names of an image's partial files. */
export function partialPrefix(digest: string): string {
  return hexOf(digest).slice(0, 32);
}
