// One small OCI image in the forms that intake takes: blobs, a layout in a tar, a docker-archive, and
// a registry with a password.
import { createHash } from 'node:crypto';
import { createServer, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { gzipSync } from 'node:zlib';
import type { ExecutionContext } from 'ava';
import { makeTar } from './testkit.ts';

export const sha256 = (data: Buffer | string) => createHash('sha256').update(data).digest('hex');

export interface SmallImage {
  digest: string;
  manifest: Buffer;
  /** Config and layer by hex digest. */
  blobs: Map<string, Buffer>;
  config: Buffer;
  tar: Buffer;
}

export async function smallImage(files: Record<string, string>): Promise<SmallImage> {
  const tar = await makeTar(files);
  const layer = gzipSync(tar);
  const config = Buffer.from(
    JSON.stringify({
      architecture: 'amd64',
      os: 'linux',
      config: { Cmd: ['/bin/sh'] },
      rootfs: { type: 'layers', diff_ids: [`sha256:${sha256(tar)}`] },
    }),
  );
  const descriptor = (mediaType: string, data: Buffer) => ({
    mediaType,
    digest: `sha256:${sha256(data)}`,
    size: data.length,
  });
  const manifest = Buffer.from(
    JSON.stringify({
      schemaVersion: 2,
      mediaType: 'application/vnd.oci.image.manifest.v1+json',
      config: descriptor('application/vnd.oci.image.config.v1+json', config),
      layers: [descriptor('application/vnd.oci.image.layer.v1.tar+gzip', layer)],
    }),
  );
  const blobs = new Map([config, layer].map((data) => [sha256(data), data]));
  return { digest: `sha256:${sha256(manifest)}`, manifest, blobs, config, tar };
}

/** The image as the tar of an OCI layout that calls it `tag`. */
export function layoutTar(image: SmallImage, tag: string): Promise<Buffer> {
  const index = {
    schemaVersion: 2,
    manifests: [
      {
        mediaType: 'application/vnd.oci.image.manifest.v1+json',
        digest: image.digest,
        size: image.manifest.length,
        annotations: { 'org.opencontainers.image.ref.name': tag },
      },
    ],
  };
  const files: Record<string, string | Buffer> = {
    'oci-layout': '{"imageLayoutVersion":"1.0.0"}',
    'index.json': JSON.stringify(index),
    [`blobs/sha256/${image.digest.slice(7)}`]: image.manifest,
  };
  for (const [hex, data] of image.blobs) files[`blobs/sha256/${hex}`] = data;
  return makeTar(files);
}

/** The image as `docker save` writes it. */
export function dockerArchive(image: SmallImage, name: string): Promise<Buffer> {
  return makeTar({
    'config.json': image.config,
    'layer.tar': image.tar,
    'manifest.json': JSON.stringify([
      { Config: 'config.json', RepoTags: [name], Layers: ['layer.tar'] },
    ]),
  });
}

/** A registry on the loopback address that holds the image as `REPOSITORY:TAG`, behind basic auth. */
export async function registry(
  t: ExecutionContext,
  image: SmallImage,
  where: { repository: string; tag: string; login: string },
): Promise<{ host: string; pulls(): number }> {
  let pulls = 0;
  const wanted = `Basic ${Buffer.from(where.login).toString('base64')}`;
  const server: Server = createServer((request, response) => {
    if (request.headers.authorization !== wanted) {
      response.writeHead(401, { 'www-authenticate': 'Basic realm="test"' }).end();
      return;
    }
    const base = `/v2/${where.repository}`;
    const manifests = [where.tag, image.digest].map((ref) => `${base}/manifests/${ref}`);
    if (request.url === '/v2/') response.end('{}');
    else if (manifests.includes(request.url!)) {
      pulls++;
      response
        .writeHead(200, {
          'content-type': 'application/vnd.oci.image.manifest.v1+json',
          'docker-content-digest': image.digest,
          'content-length': image.manifest.length,
        })
        .end(request.method === 'HEAD' ? undefined : image.manifest);
    } else {
      const blob = image.blobs.get(request.url!.replace(`${base}/blobs/sha256:`, ''));
      if (blob === undefined) response.writeHead(404).end();
      else response.writeHead(200, { 'content-length': blob.length }).end(blob);
    }
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  t.teardown(() => new Promise<void>((resolve) => server.close(() => resolve())));
  const { port } = server.address() as AddressInfo;
  return { host: `127.0.0.1:${port}`, pulls: () => pulls };
}
