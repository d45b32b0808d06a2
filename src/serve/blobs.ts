// Where the server keeps bytes, as an interface: DirectoryBlobStore implements it
// (blobs-directory.ts), an object store can, behind the same tests (blobs.test.ts). What exists and
// what may go is decided by the catalog and its callers; nothing here knows names or references.
import type { Readable } from 'node:stream';

/** The documents of an image that are kept beside its contents. */
export const IMAGE_DOCUMENTS = ['manifest.json', 'config.json', 'toc', 'contents'] as const;
export type ImageDocument = (typeof IMAGE_DOCUMENTS)[number];

/** Contents on their way in. None of them is visible before `commit`, and after `abort` none is left. */
export interface BlobBatch {
  /** Takes one content of `bytes` bytes and gives its sha256 (hex). Contents that are there already cost nothing. */
  put(content: Readable, bytes: number): Promise<string>;
  /** Makes the contents and the image's documents durable and visible, in this order. */
  commit(imageDigest: string, documents: Record<ImageDocument, Buffer>): Promise<void>;
  /** Drops what has not been committed; harmless after `commit`. */
  abort(): Promise<void>;
}

/** A bundle open for reading. It can be read to its end even if it is removed meanwhile. */
export interface BundleReader {
  readonly bytes: number;
  /** Bytes from `position` on: `bytes` of them, fewer only at the end. */
  read(position: number, bytes: number): Promise<Buffer>;
  close(): Promise<void>;
}

export interface BlobStore {
  /** Directory that holds contents as `<2 hex>/<62 hex>`: what the encoder reads from. */
  readonly contentDir: string;
  openBatch(): Promise<BlobBatch>;
  /** An empty local directory for work in progress; gone with the next start, or with `dropScratch`. */
  makeScratch(): Promise<string>;
  dropScratch(path: string): Promise<void>;

  readDocument(imageDigest: string, document: ImageDocument): Promise<Buffer>;
  removeImage(imageDigest: string): Promise<void>;
  /** Removes contents by their sha256 (hex); those that are not there are none. */
  removeContents(hex: string[]): Promise<void>;

  /** Takes over a finished bundle file (in a scratch directory) as bundle `id`. */
  adoptBundle(id: string, path: string): Promise<void>;
  /** Undefined where there is none. */
  openBundle(id: string): Promise<BundleReader | undefined>;
  removeBundle(id: string): Promise<void>;

  /** Everything that is stored, for the sweep after a crash: sha256 (hex) of contents, image digests, bundle ids. */
  listContents(): AsyncIterable<string>;
  listImages(): Promise<string[]>;
  listBundles(): Promise<string[]>;

  /** Resolves when bytes can be written. */
  check(): Promise<void>;
}
