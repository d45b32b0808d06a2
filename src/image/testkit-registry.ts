// A small registry in this process that tests can tell to misbehave.
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { gzipSync } from 'node:zlib';
import { FirstlightError } from '../errors/errors.ts';
import { sha256Digest } from './digest.ts';
import { MEDIA } from './manifest.ts';

export type Handler = (
  request: IncomingMessage,
  response: ServerResponse,
  url: URL,
) => boolean | undefined;

/** A registry with one repository, `team/app`; `first` sees each request before it does. */
export class FakeRegistry {
  readonly blobs = new Map<string, { bytes: Buffer; type: string }>();
  readonly requests: string[] = [];
  first: Handler = () => false;
  url = '';
  #server = createServer((request, response) => {
    const url = new URL(request.url!, this.url);
    this.requests.push(`${request.method} ${url.pathname}`);
    if (this.first(request, response, url) === true) return;
    const match = /^\/v2\/team\/app\/(manifests|blobs)\/(.+)$/.exec(url.pathname);
    const blob = match === null ? undefined : this.blobs.get(match[2]!);
    if (blob === undefined) {
      response.writeHead(404).end('{"errors":[{"code":"MANIFEST_UNKNOWN"}]}');
      return;
    }
    const range = /^bytes=(\d+)-$/.exec(request.headers.range ?? '');
    const start = range === null ? 0 : Number(range[1]);
    const total = blob.bytes.length;
    response.writeHead(range === null ? 200 : 206, {
      'content-type': blob.type,
      'content-length': total - start,
      ...(range === null ? {} : { 'content-range': `bytes ${start}-${total - 1}/${total}` }),
    });
    response.end(blob.bytes.subarray(start));
  });

  async start(): Promise<this> {
    await new Promise<void>((resolve) => this.#server.listen(0, '127.0.0.1', resolve));
    this.url = `http://127.0.0.1:${(this.#server.address() as AddressInfo).port}`;
    return this;
  }

  get reference(): string {
    return `${this.url.slice(7)}/team/app`;
  }

  put(bytes: Buffer, type = 'application/octet-stream') {
    const digest = sha256Digest(bytes);
    this.blobs.set(digest, { bytes, type });
    return { mediaType: type, digest, size: bytes.length };
  }

  /** Puts an image and gives the descriptor of its manifest. */
  image(architecture: string, layers: Buffer[], blobs = layers.map((tar) => gzipSync(tar))) {
    const config = {
      os: 'linux',
      architecture,
      rootfs: { type: 'layers', diff_ids: layers.map(sha256Digest) },
    };
    const manifest = {
      schemaVersion: 2,
      mediaType: MEDIA.ociManifest,
      config: this.put(Buffer.from(JSON.stringify(config)), MEDIA.ociConfig),
      layers: blobs.map((blob) => this.put(blob, `${MEDIA.ociLayer}+gzip`)),
    };
    return this.put(Buffer.from(JSON.stringify(manifest)), MEDIA.ociManifest);
  }

  tag(tag: string, descriptor: { digest: string }): void {
    this.blobs.set(tag, this.blobs.get(descriptor.digest)!);
  }

  close(): void {
    this.#server.close();
    this.#server.closeAllConnections();
  }
}

export async function withRegistry(body: (registry: FakeRegistry) => Promise<void>): Promise<void> {
  const registry = await new FakeRegistry().start();
  try {
    await body(registry);
  } finally {
    registry.close();
  }
}

/** The error that a promise must end in. */
export async function failure(promise: Promise<unknown>): Promise<FirstlightError> {
  try {
    await promise;
  } catch (error) {
    if (error instanceof FirstlightError) return error;
    throw error;
  }
  throw new Error('did not fail');
}
