// Images in a registry (the OCI distribution API, version 2 of docker's). Reading only. Here it is decided which of
// a registry's hosts is asked: mirrors in their order, then the registry itself. What one host is asked is
// registry-endpoint.ts; which hosts there are, registry-hosts.ts.
import { pipeline, Readable } from 'node:stream';
import { FirstlightError, toFirstlightError } from '../errors/errors.ts';
import { checkDigest, DigestCheck, parseDigest, sha256Digest } from './digest.ts';
import type { RegistryAuth } from './docker-config.ts';
import { type BlobStore, checkBlob, checkSmall, type Descriptor, openImage } from './manifest.ts';
import { parsePlatform } from './platform.ts';
import { formatReference, parseReference, type Reference } from './reference.ts';
import { Endpoint } from './registry-endpoint.ts';
import { type RegistryHost, registryHosts } from './registry-hosts.ts';
import type { HttpOptions } from './registry-http.ts';
import type { ImageSource } from './source.ts';

export interface RegistryOptions extends HttpOptions {
  platform: string;
  /** A login for the registry; null for none. Without it, the one that docker's config.json has. */
  auth?: RegistryAuth | null | undefined;
  /** Speak plain HTTP to a registry that is not on this machine. */
  plainHttp?: boolean | undefined;
  /** Directories of hosts.toml and certificates; none where absent. */
  hostsDirs?: readonly string[] | undefined;
  /**
   * What this machine is known by may be used: docker's logins for mirrors, and the client certificates and headers
   * of the hosts' files. Unless told otherwise, where `auth` leaves it to docker's config.json as well.
   */
  ownCredentials?: boolean | undefined;
  /** Hears that a host failed and another one is asked; no secrets are in it. */
  onFallback?: ((host: string, error: FirstlightError) => void) | undefined;
}

/** A repository of a registry, on all hosts that have it. */
class Repository implements BlobStore {
  readonly #endpoints: Endpoint[];
  readonly #name: string;
  readonly #signal: AbortSignal | undefined;
  readonly #onFallback: RegistryOptions['onFallback'];
  /** Hosts that could not be reached, or not be logged in to: they are asked after the others. */
  readonly #failing = new Set<Endpoint>();

  constructor(hosts: RegistryHost[], reference: Reference, options: RegistryOptions) {
    const own = options.ownCredentials ?? options.auth === undefined;
    this.#name = `${reference.registry}/${reference.repository}`;
    this.#signal = options.signal;
    this.#onFallback = options.onFallback;
    this.#endpoints = hosts.map((host, index) => {
      const mirrorAuth = own ? undefined : null;
      const auth = host.mirror ? mirrorAuth : options.auth;
      return new Endpoint(host, reference, { ...options, auth, hasNext: index + 1 < hosts.length });
    });
  }

  async close(): Promise<void> {
    await Promise.all(this.#endpoints.map((endpoint) => endpoint.close()));
  }

  /** Those who may do something, in the order in which they are asked. */
  #able(what: 'resolve' | 'pull'): Endpoint[] {
    const able = this.#endpoints.filter(({ host }) => host[what]);
    if (able.length === 0) {
      throw new FirstlightError('usage', `no host of ${this.#name} has the capability '${what}'`, {
        hint: "see its hosts.toml; a host without 'capabilities' has all",
      });
    }
    const failing = able.filter((endpoint) => this.#failing.has(endpoint));
    return [...able.filter((endpoint) => !this.#failing.has(endpoint)), ...failing];
  }

  /** What one host could not do, to be told with what the last one said. */
  #failed(endpoint: Endpoint, thrown: unknown, failures: FirstlightError[], last: boolean): void {
    this.#signal?.throwIfAborted();
    const error = toFirstlightError(thrown);
    if (error.kind !== 'not-found') this.#failing.add(endpoint);
    failures.push(error);
    if (!last) {
      this.#onFallback?.(endpoint.host.url.host, error);
      return;
    }
    if (failures.length === 1) throw thrown;
    const before = failures.slice(0, -1).map(({ message }) => message);
    throw new FirstlightError(error.kind, `${error.message} (before: ${before.join('; ')})`, {
      ...(error.hint === undefined ? {} : { hint: error.hint }),
      cause: error,
    });
  }

  /** Asks one host after the other until one can answer. */
  async #first<T>(what: 'resolve' | 'pull', ask: (endpoint: Endpoint) => Promise<T>): Promise<T> {
    const failures: FirstlightError[] = [];
    const able = this.#able(what);
    for (const endpoint of able) {
      try {
        return await ask(endpoint);
      } catch (error) {
        this.#failed(endpoint, error, failures, endpoint === able.at(-1));
      }
    }
    throw new Error('the last failure was not thrown');
  }

  /** The manifest or index that a tag or digest names. */
  async resolve(reference: Reference) {
    const what = formatReference(reference);
    const { digest: wanted } = reference;
    // Bytes that must have a digest may come from whoever has them.
    const may = wanted === undefined ? 'resolve' : 'pull';
    return this.#first(may, async (endpoint) => {
      const given = await endpoint.manifest(wanted ?? reference.tag!, what, false);
      const digest = wanted ?? sha256Digest(given.bytes);
      if (wanted !== undefined) checkDigest(given.bytes, wanted, what);
      // The registry's own word for it, where it is one we can check.
      else if (given.told?.startsWith('sha256:')) checkDigest(given.bytes, given.told, what);
      const { bytes, mediaType } = given;
      return { bytes, descriptor: { mediaType, digest, size: bytes.length } };
    });
  }

  async fetch(descriptor: Descriptor, kind: 'manifest' | 'blob', what: string): Promise<Buffer> {
    parseDigest(descriptor.digest, what);
    checkSmall(descriptor.size, kind, what);
    if (kind === 'manifest') {
      return this.#first('pull', async (endpoint) => {
        const { bytes } = await endpoint.manifest(descriptor.digest, what, true);
        return checkBlob(bytes, descriptor, what);
      });
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

  /** The bytes of a blob; where one host stops for good, the next goes on. */
  async *#download(
    descriptor: Descriptor,
    what: string,
    signal: AbortSignal,
  ): AsyncGenerator<Buffer> {
    const failures: FirstlightError[] = [];
    const able = this.#able('pull');
    let done = 0;
    for (const endpoint of able) {
      try {
        for await (const chunk of endpoint.download(descriptor, done, what, signal)) {
          done += chunk.length;
          yield chunk;
        }
        return;
      } catch (error) {
        signal.throwIfAborted();
        this.#failed(endpoint, error, failures, endpoint === able.at(-1));
      }
    }
  }
}

/**
 * Opens an image of a registry. https, but plain http for registries on this machine.
 * @param reference  parsed, or as text
 * @throws FirstlightError `not-found`, `unauthorized`, `platform`, `unreachable`, `corrupt`,
 *   `unsupported`, `usage`; the signal's reason
 */
export async function openRegistry(
  reference: Reference | string,
  options: RegistryOptions,
): Promise<ImageSource> {
  const parsed = typeof reference === 'string' ? parseReference(reference) : reference;
  const platform = parsePlatform(options.platform);
  const hosts = await registryHosts(parsed.registry, {
    dirs: options.hostsDirs ?? [],
    plainHttp: options.plainHttp === true,
    credentials: options.ownCredentials ?? options.auth === undefined,
  });
  const repository = new Repository(hosts, parsed, options);
  try {
    const top = await repository.resolve(parsed);
    const name = formatReference(parsed);
    return { ...(await openImage(repository, top, platform, name)), name };
  } catch (error) {
    await repository.close();
    throw error;
  }
}
