// What an image source gives to the rest: its raw manifest and config, and its layers' blobs.
// Registry, OCI layout, docker-archive and rootfs tar each make one. Also the sink that contents go to.
import type { Readable } from 'node:stream';

/** One layer as the source stores it. */
export interface LayerBlob {
  /** Digest of the blob as stored, `sha256:...`. */
  digest: string;
  /** Digest of the uncompressed tar, from the config. */
  diffId: string;
  mediaType: string;
  /** Bytes of the blob as stored. */
  bytes: number;
  /**
   * The raw blob. The stream checks length and digest while it is read, and ends in a
   * FirstlightError `corrupt` where they differ; can be opened again.
   */
  open(): Promise<Readable>;
}

/** An opened image of one platform. */
export interface ImageSource {
  /** Raw bytes of the image manifest. */
  manifest: Buffer;
  /** Raw bytes of the image config. */
  config: Buffer;
  /** Manifest digest, `sha256:...`. */
  digest: string;
  /** Platform as `os/architecture[/variant]`. */
  platform: string;
  /** Name that the source itself gives the image, where it does. */
  name?: string;
  /** Lowest layer first. */
  layers: LayerBlob[];
  /** Frees connections and temporary files; streams that are still open break. */
  close(): Promise<void>;
}

/** Where file contents go. */
export interface ContentSink {
  /**
   * Stores one file content.
   * @param content  its bytes, to be read to the end; errors of the source come out of it
   * @param bytes    how many there are, never 0
   * @returns sha256 of the content, 64 lower-case hex digits
   */
  put(content: Readable, bytes: number): Promise<string>;
}
