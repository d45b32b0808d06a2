// Images in a registry (the OCI distribution API, version 2 of docker's). Reading only.
import { pipeline, Readable } from 'node:stream';
import { FirstlightError } from '../errors/errors.ts';
import { checkDigest, DigestCheck, parseDigest, sha256Digest } from './digest.ts';
import { type RegistryAuth, readDockerAuth } from './docker-config.ts';
import { MANIFEST_BYTES_MAX } from './limits.ts';
import {
  type BlobStore,
  checkBlob,
  checkSmall,
  type Descriptor,
  MEDIA,
  openImage,
} from './manifest.ts';
import { parsePlatform } from './platform.ts';
import { formatReference, parseReference, type Reference } from './reference.ts';
import { Authorizer } from './registry-auth.ts';
import {
  HttpClient,
  type HttpOptions,
  type HttpResponse,
  isLoopback,
  networkError,
  readBody,
  Transient,
} from './registry-http.ts';
import type { ImageSource } from './source.ts';

export interface RegistryOptions extends HttpOptions {
  platform: string;
  /** A login; null for none. Without it, the one that docker's config.json has. */
  auth?: RegistryAuth | null | undefined;
  /** Speak plain HTTP to a registry that is not on this machine. */
  plainHttp?: boolean | undefined;
}

const ACCEPT = [MEDIA.ociIndex, MEDIA.ociManifest, MEDIA.dockerIndex, MEDIA.dockerManifest].join(
  ', ',
);
const ERROR_BYTES_MAX = 64 << 10;
const RETRY_AFTER_MAX_MS = 60_000;

function one(header: string | string[] | undefined): string | undefined {
  return Array.isArray(header) ? header[0] : header;
}

/** A repository of a registry. */
class Repository implements BlobStore {
  readonly #http: HttpClient;
  readonly #authorizer: Authorizer;
  readonly #base: URL;
  readonly #name: string;

  constructor(reference: Reference, auth: RegistryAuth | undefined, options: RegistryOptions) {
    const { registry, repository } = reference;
    const host = registry === 'docker.io' ? 'registry-1.docker.io' : registry;
    const plain = isLoopback(host) || options.plainHttp === true;
    this.#base = new URL(`${plain ? 'http' : 'https'}://${host}/v2/${repository}/`);
    this.#name = `${registry}/${repository}`;
    this.#http = new HttpClient(options);
    this.#authorizer = new Authorizer(this.#http, registry, repository, auth);
  }

  close(): Promise<void> {
    return this.#http.close();
  }

  /** One GET, with the login where one is asked for. Statuses other than 200 and 206 are errors. */
  async #get(
    path: string,
    headers: Record<string, string>,
    what: string,
    signal?: AbortSignal,
  ): Promise<HttpResponse> {
    const url = new URL(path, this.#base);
    for (let tries = 0; ; tries++) {
      const { header } = this.#authorizer;
      const response = await this.#http.send(url, {
        headers: { ...headers, ...(header === undefined ? {} : { authorization: header }) },
        ...(signal === undefined ? {} : { signal }),
      });
      if (response.status === 200 || response.status === 206) return response;
      if (response.status === 401 && response.url.origin === url.origin && tries === 0) {
        await response.body.dump();
        await this.#authorizer.answer(response.headers['www-authenticate']);
        continue;
      }
      throw await this.#failure(response, what);
    }
  }

  async #failure(response: HttpResponse, what: string): Promise<Error> {
    const { status, url } = response;
    const text = await readBody(response, ERROR_BYTES_MAX, what).then(
      (bytes) => bytes.toString('utf8'),
      // The status says enough.
      () => '',
    );
    if (status === 404) {
      const unknown = text.includes('NAME_UNKNOWN');
      const why = unknown ? 'the registry has no such repository' : 'the registry does not have it';
      return new FirstlightError('not-found', `${what}: ${why}`, {
        hint: 'check the name and the tag, as skopeo inspect docker://NAME:TAG shows them',
      });
    }
    if (status === 401 || status === 403) return this.#authorizer.refused();
    if (status === 408 || status === 429 || status >= 500) {
      const seconds = Number(one(response.headers['retry-after']) ?? '0');
      const asked = Number.isFinite(seconds) ? seconds * 1000 : 0;
      return new Transient(`${url.host} answers ${status} for ${what}`, {
        delayMs: Math.min(asked, RETRY_AFTER_MAX_MS),
      });
    }
    return new FirstlightError('unreachable', `${url.host} answers ${status} for ${what}`, {
      hint: 'check that this is a registry',
    });
  }

  /** The manifest or index that a tag or digest names. */
  async resolve(reference: Reference): Promise<{ bytes: Buffer; descriptor: Descriptor }> {
    const what = formatReference(reference);
    const name = reference.digest ?? reference.tag!;
    const { bytes, type, told } = await this.#manifest(name, what, false);
    const digest = reference.digest ?? sha256Digest(bytes);
    if (reference.digest !== undefined) checkDigest(bytes, digest, what);
    // The registry's own word for it, where it is one we can check.
    else if (told?.startsWith('sha256:')) checkDigest(bytes, told, what);
    return { bytes, descriptor: { mediaType: type, digest, size: bytes.length } };
  }

  #manifest(name: string, what: string, patient: boolean) {
    return this.#http.retry(
      async () => {
        const response = await this.#get(`manifests/${name}`, { accept: ACCEPT }, what);
        const bytes = await readBody(response, MANIFEST_BYTES_MAX, what);
        const type = one(response.headers['content-type'])?.replace(/;.*$/, '').trim() ?? '';
        return { bytes, type, told: one(response.headers['docker-content-digest']) };
      },
      patient,
      undefined,
    );
  }

  async fetch(descriptor: Descriptor, kind: 'manifest' | 'blob', what: string): Promise<Buffer> {
    parseDigest(descriptor.digest, what);
    checkSmall(descriptor.size, kind, what);
    if (kind === 'manifest') {
      const { bytes } = await this.#manifest(descriptor.digest, what, true);
      return checkBlob(bytes, descriptor, what);
    }
    const chunks: Buffer[] = [];
    for await (const chunk of await this.open(descriptor, what)) chunks.push(chunk as Buffer);
    return Buffer.concat(chunks);
  }

  async open(descriptor: Descriptor, what: string): Promise<Readable> {
    const check = new DigestCheck(descriptor.digest, descriptor.size, what);
    // Whoever gives up on the stream also ends the request under it.
    const abort = new AbortController();
    check.once('close', () => abort.abort());
    const source = Readable.from(this.#download(descriptor, what, abort.signal), {
      objectMode: false,
    });
    // Errors of the download come out of the check, where the reader sees them.
    pipeline(source, check, () => undefined);
    return check;
  }

  /** The bytes of a blob; a broken connection is resumed where it stopped. */
  async *#download(
    descriptor: Descriptor,
    what: string,
    signal: AbortSignal,
  ): AsyncGenerator<Buffer> {
    let done = 0;
    let failures = 0;
    while (done < descriptor.size) {
      try {
        for await (const chunk of this.#rest(descriptor, done, what, signal)) {
          done += chunk.length;
          failures = 0;
          yield chunk;
        }
        if (done < descriptor.size) {
          throw new Transient(`${this.#name}: ${what} ended after ${done} bytes`);
        }
      } catch (error) {
        signal.throwIfAborted();
        failures++;
        await this.#http.pause(error, failures, true, signal);
      }
    }
  }

  async *#rest(
    descriptor: Descriptor,
    start: number,
    what: string,
    signal: AbortSignal,
  ): AsyncGenerator<Buffer> {
    const headers: Record<string, string> = start === 0 ? {} : { range: `bytes=${start}-` };
    const path = `blobs/${descriptor.digest}`;
    const response = await this.#get(path, headers, what, signal);
    let skip = start;
    if (response.status === 206) {
      const range = one(response.headers['content-range']) ?? '';
      if (!range.startsWith(`bytes ${start}-`)) {
        await response.body.dump();
        throw new Transient(`${response.url.host} answers the wrong range for ${what}`);
      }
      skip = 0;
    }
    try {
      for await (const data of response.body) {
        const chunk = data as Buffer;
        // A server without ranges begins anew.
        if (skip >= chunk.length) skip -= chunk.length;
        else {
          yield skip === 0 ? chunk : chunk.subarray(skip);
          skip = 0;
        }
      }
    } catch (error) {
      throw networkError(error, response.url);
    }
  }
}

/**
 * Opens an image of a registry. https, but plain http for registries on this machine.
 * @param reference  parsed, or as text
 * @throws FirstlightError `not-found`, `unauthorized`, `platform`, `unreachable`, `corrupt`,
 *   `unsupported`; the signal's reason
 */
export async function openRegistry(
  reference: Reference | string,
  options: RegistryOptions,
): Promise<ImageSource> {
  const parsed = typeof reference === 'string' ? parseReference(reference) : reference;
  const platform = parsePlatform(options.platform);
  const auth =
    options.auth === null ? undefined : (options.auth ?? (await readDockerAuth(parsed.registry)));
  const repository = new Repository(parsed, auth, options);
  try {
    const top = await repository.resolve(parsed);
    const name = formatReference(parsed);
    return { ...(await openImage(repository, top, platform, name)), name };
  } catch (error) {
    await repository.close();
    throw error;
  }
}
