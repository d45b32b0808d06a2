// One host's view of a repository: manifests and blobs by the OCI distribution API, with the login that belongs to
// that host. Which host is asked, and what happens when it fails, is registry.ts.
import { FirstlightError } from '../errors/errors.ts';
import { type RegistryAuth, readDockerAuth } from './docker-config.ts';
import { MANIFEST_BYTES_MAX } from './limits.ts';
import { type Descriptor, MEDIA } from './manifest.ts';
import type { Reference } from './reference.ts';
import { Authorizer } from './registry-auth.ts';
import type { RegistryHost } from './registry-hosts.ts';
import {
  HttpClient,
  type HttpOptions,
  type HttpResponse,
  networkError,
  readBody,
  Transient,
} from './registry-http.ts';

const ACCEPT = [MEDIA.ociIndex, MEDIA.ociManifest, MEDIA.dockerIndex, MEDIA.dockerManifest].join(
  ', ',
);
const ERROR_BYTES_MAX = 64 << 10;
const RETRY_AFTER_MAX_MS = 60_000;
/** A mirror is asked a second time, then the next host is: somebody waits, and has another place to go. */
const MIRROR_ATTEMPTS = 2;

function one(header: string | string[] | undefined): string | undefined {
  return Array.isArray(header) ? header[0] : header;
}

/** A manifest or index as a host gives it. */
export interface GivenManifest {
  bytes: Buffer;
  mediaType: string;
  /** The digest that the host says it has. */
  told: string | undefined;
}

export interface EndpointOptions extends HttpOptions {
  /** A login; null for none. Without it, the one that docker's config.json has for this host. */
  auth: RegistryAuth | null | undefined;
  /** Others can be asked when this one fails. */
  hasNext: boolean;
}

export class Endpoint {
  readonly host: RegistryHost;
  readonly #http: HttpClient;
  readonly #options: EndpointOptions;
  readonly #base: URL;
  readonly #registry: string;
  readonly #repository: string;
  #authorizer: Promise<Authorizer> | undefined;

  constructor(host: RegistryHost, reference: Reference, options: EndpointOptions) {
    const { registry, repository } = reference;
    this.host = host;
    this.#options = options;
    this.#base = new URL(`${host.url.href.replace(/\/$/, '')}/${repository}/`);
    // Errors and logins name a mirror by its own name.
    this.#registry = host.mirror ? host.url.host : registry;
    this.#repository = repository;
    // A pull-through cache serves several registries.
    if (host.mirror) this.#base.searchParams.set('ns', registry);
    const { tls, headers, dialTimeoutMs } = host;
    this.#http = new HttpClient(options, {
      origin: host.url.origin,
      ...{ headers, tls, dialTimeoutMs },
      ...(options.hasNext ? { attempts: MIRROR_ATTEMPTS } : {}),
    });
  }

  /** HOST/NAME. */
  get name(): string {
    return `${this.#registry}/${this.#repository}`;
  }

  close(): Promise<void> {
    return this.#http.close();
  }

  /** The login is looked up when it is first needed: a helper may ask its owner. */
  async #login(): Promise<Authorizer> {
    const given = this.#options.auth;
    const auth = given === undefined ? await readDockerAuth(this.#registry) : (given ?? undefined);
    return new Authorizer(this.#http, this.#registry, this.#repository, auth);
  }

  #authorized(): Promise<Authorizer> {
    this.#authorizer ??= this.#login();
    return this.#authorizer;
  }

  /** One GET, with the login where one is asked for. Statuses other than 200 and 206 are errors. */
  async #get(
    path: string,
    headers: Record<string, string>,
    what: string,
    signal?: AbortSignal,
  ): Promise<HttpResponse> {
    const url = new URL(path, this.#base);
    url.search = this.#base.search;
    const authorizer = await this.#authorized();
    for (let tries = 0; ; tries++) {
      const { header } = authorizer;
      const response = await this.#http.send(url, {
        headers: { ...headers, ...(header === undefined ? {} : { authorization: header }) },
        ...(signal === undefined ? {} : { signal }),
      });
      if (response.status === 200 || response.status === 206) return response;
      if (response.status === 401 && response.url.origin === url.origin && tries === 0) {
        await response.body.dump();
        await authorizer.answer(response.headers['www-authenticate']);
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
    if (status === 401 || status === 403) return (await this.#authorized()).refused();
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

  /**
   * A manifest or index, as it comes.
   * @param name     tag or digest
   * @param patient  wait also where nobody is at the address
   */
  manifest(name: string, what: string, patient: boolean): Promise<GivenManifest> {
    return this.#http.retry(
      async () => {
        const response = await this.#get(`manifests/${name}`, { accept: ACCEPT }, what);
        const bytes = await readBody(response, MANIFEST_BYTES_MAX, what);
        const mediaType = one(response.headers['content-type'])?.replace(/;.*$/, '').trim() ?? '';
        return { bytes, mediaType, told: one(response.headers['docker-content-digest']) };
      },
      patient,
      undefined,
    );
  }

  /** The bytes of a blob from offset `start`; a broken connection is resumed where it stopped. */
  async *download(
    descriptor: Descriptor,
    start: number,
    what: string,
    signal: AbortSignal,
  ): AsyncGenerator<Buffer> {
    let done = start;
    let failures = 0;
    while (done < descriptor.size) {
      try {
        for await (const chunk of this.#rest(descriptor, done, what, signal)) {
          done += chunk.length;
          failures = 0;
          yield chunk;
        }
        if (done < descriptor.size) {
          throw new Transient(`${this.name}: ${what} ended after ${done} bytes`);
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
