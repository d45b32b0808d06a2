// HTTP as registries use it: redirects that drop the login at another host, timeouts, errors in the
// project's terms, and the wait between attempts. Registries' own rules are registry.ts.
import { setTimeout as sleep } from 'node:timers/promises';
import type { SecureContext } from 'node:tls';
import { Agent, type Dispatcher, EnvHttpProxyAgent, request } from 'undici';
import { FirstlightError } from '../errors/errors.ts';

/** Options of a client; times in ms. */
export interface HttpOptions {
  signal?: AbortSignal | undefined;
  /** Wait before the first repetition; doubles each time up to 20 times it. 250 unless told otherwise. */
  retryDelayMs?: number | undefined;
  /** How long a peer may stay silent; 30,000 unless told otherwise. */
  silenceMs?: number | undefined;
}

/** How one host is spoken to. */
export interface HttpHost {
  /** Where its headers go, and nowhere else. */
  origin?: string;
  headers?: readonly [name: string, value: string][];
  /** Used for whatever this host leads to as well: storage and the token server, as containerd does. */
  tls?: { context: SecureContext; verify: boolean } | undefined;
  dialTimeoutMs?: number | undefined;
  /** How often something is asked for in all; {@link ATTEMPTS_MAX} unless told otherwise. */
  attempts?: number;
}

export interface HttpRequest {
  method?: 'GET' | 'POST';
  headers?: Record<string, string>;
  body?: string;
  signal?: AbortSignal;
}

export interface HttpResponse {
  status: number;
  headers: Record<string, string | string[] | undefined>;
  body: Dispatcher.ResponseData['body'];
  /** Where the answer came from, after redirects. */
  url: URL;
}

const REDIRECTS_MAX = 10;
const CONNECT_MS = 10_000;
export const ATTEMPTS_MAX = 6;

/** A failure that another attempt may mend. */
export class Transient extends Error {
  /** True where there is nobody at the address: for a first request, not worth waiting. */
  readonly absent: boolean;
  /** Wait that the peer asked for. */
  readonly delayMs: number;
  constructor(
    message: string,
    options: { absent?: boolean; delayMs?: number; cause?: unknown } = {},
  ) {
    super(message, { cause: options.cause });
    this.absent = options.absent ?? false;
    this.delayMs = options.delayMs ?? 0;
  }
}

const TLS = /^(ERR_TLS|CERT_|ERR_SSL|DEPTH_ZERO|SELF_SIGNED|UNABLE_TO_|EPROTO)/;

const WORDS: Record<string, string> = {
  ECONNREFUSED: 'the connection was refused',
  ECONNRESET: 'the connection was cut',
  ENOTFOUND: 'there is no such host',
  EAI_AGAIN: 'the name cannot be resolved now',
  UND_ERR_SOCKET: 'the connection was cut',
  UND_ERR_CONNECT_TIMEOUT: 'it does not answer',
  UND_ERR_HEADERS_TIMEOUT: 'it does not answer',
  UND_ERR_BODY_TIMEOUT: 'it stopped sending',
  // Node.js' own words advise a flag that changes nothing here.
  DEPTH_ZERO_SELF_SIGNED_CERT: 'its certificate is signed by itself alone',
  SELF_SIGNED_CERT_IN_CHAIN: 'nobody here trusts the authority of its certificate',
  UNABLE_TO_GET_ISSUER_CERT_LOCALLY: 'nobody here trusts the authority of its certificate',
  UNABLE_TO_VERIFY_LEAF_SIGNATURE: 'nobody here trusts the authority of its certificate',
};

/** A failure below HTTP: transient, unless it is one of trust. */
export function networkError(error: unknown, url: URL): Error {
  if (error instanceof FirstlightError || error instanceof Transient) return error;
  const cause = error as NodeJS.ErrnoException;
  const code = cause.code ?? '';
  const why = WORDS[code] ?? (cause.message === '' ? code : cause.message);
  if (TLS.test(code)) {
    return new FirstlightError('unreachable', `no trusted connection to ${url.host}: ${why}`, {
      hint: `put the certificate of its authority into /etc/containerd/certs.d/${url.host}/ca.crt (--hosts-dir)`,
      cause,
    });
  }
  const absent = ['ECONNREFUSED', 'ENOTFOUND', 'EHOSTUNREACH', 'ENETUNREACH'].includes(code);
  return new Transient(`cannot reach ${url.host}: ${why}`, { absent, cause });
}

/** True for hosts of this machine, with or without a port: they are spoken to in plain HTTP. */
export function isLoopback(host: string): boolean {
  const name = host.replace(/:\d+$/, '').toLowerCase();
  return name === 'localhost' || /^127\.\d+\.\d+\.\d+$/.test(name) || name === '[::1]';
}

function hasProxy(): boolean {
  const { env } = process;
  const names = ['http_proxy', 'HTTP_PROXY', 'https_proxy', 'HTTPS_PROXY'];
  return names.some((name) => env[name] !== undefined && env[name] !== '');
}

/** An HTTP client for one registry and what it redirects to. */
export class HttpClient {
  readonly #direct: Agent;
  readonly #proxied: Dispatcher;
  readonly #options: HttpOptions;
  readonly #host: HttpHost;

  constructor(options: HttpOptions, host: HttpHost = {}) {
    const silence = options.silenceMs ?? 30_000;
    const { tls, dialTimeoutMs } = host;
    const trust =
      tls === undefined ? {} : { secureContext: tls.context, rejectUnauthorized: tls.verify };
    const settings = {
      connect: { timeout: dialTimeoutMs ?? CONNECT_MS, ...trust },
      headersTimeout: silence,
      bodyTimeout: silence,
    };
    this.#options = options;
    this.#host = host;
    this.#direct = new Agent(settings);
    this.#proxied = hasProxy()
      ? new EnvHttpProxyAgent({ ...settings, requestTls: trust })
      : this.#direct;
  }

  /** The headers of this client's host, where a request goes to it. */
  #own(url: URL): Record<string, string[]> {
    const found: Record<string, string[]> = {};
    if (url.origin !== this.#host.origin) return found;
    for (const [name, value] of this.#host.headers ?? []) {
      found[name] = [...(found[name] ?? []), value];
    }
    return found;
  }

  /**
   * Sends a request and follows redirects. The body of the answer must be read or dumped.
   * @throws Transient, FirstlightError `unreachable`, the signal's reason
   */
  async send(start: URL, options: HttpRequest): Promise<HttpResponse> {
    let url = start;
    let headers = { ...options.headers };
    const signals = [this.#options.signal, options.signal].filter((s) => s !== undefined);
    const signal = AbortSignal.any(signals);
    for (let hops = 0; hops <= REDIRECTS_MAX; hops++) {
      signal.throwIfAborted();
      let answer: Dispatcher.ResponseData;
      try {
        answer = await request(url, {
          method: options.method ?? 'GET',
          headers: { ...this.#own(url), ...headers },
          signal,
          dispatcher: isLoopback(url.host) ? this.#direct : this.#proxied,
          ...(options.body === undefined ? {} : { body: options.body }),
        });
      } catch (error) {
        signal.throwIfAborted();
        throw networkError(error, url);
      }
      const { statusCode: status, body } = answer;
      const location = answer.headers.location;
      if (![301, 302, 303, 307, 308].includes(status) || typeof location !== 'string') {
        return { status, headers: answer.headers, body, url };
      }
      await body.dump();
      const next = redirect(url, location);
      // The login is for the registry alone; signed storage URLs even refuse requests with one.
      if (next.origin !== url.origin) {
        headers = { ...headers };
        delete headers.authorization;
      }
      url = next;
    }
    throw new FirstlightError('unreachable', `${start.host} redirects without end`);
  }

  /**
   * Runs `attempt` until it succeeds, fails for good, or has failed too often.
   * @param patient  wait also where nobody is at the address
   */
  async retry<T>(
    attempt: () => Promise<T>,
    patient: boolean,
    signal: AbortSignal | undefined,
  ): Promise<T> {
    for (let failures = 1; ; failures++) {
      try {
        return await attempt();
      } catch (error) {
        await this.pause(error, failures, patient, signal);
      }
    }
  }

  /** Waits before attempt number `failures` + 1, or throws `error` in the project's terms. */
  async pause(
    error: unknown,
    failures: number,
    patient: boolean,
    signal: AbortSignal | undefined,
  ): Promise<void> {
    if (!(error instanceof Transient)) throw error;
    if (failures >= (this.#host.attempts ?? ATTEMPTS_MAX) || (error.absent && !patient)) {
      throw new FirstlightError('unreachable', error.message, {
        hint: 'check the name of the registry and the network, and try again',
        cause: error.cause ?? error,
      });
    }
    const base = this.#options.retryDelayMs ?? 250;
    const backoff = Math.min(base * 2 ** (failures - 1), base * 20);
    // Spread by a quarter, so that many clients do not come back at once.
    const delay = Math.max(error.delayMs, backoff * (1 + Math.random() / 4));
    const signals = [this.#options.signal, signal].filter((s) => s !== undefined);
    try {
      await sleep(delay, undefined, { signal: AbortSignal.any(signals) });
    } catch {
      // Only an abort ends the sleep: give its reason.
      for (const each of signals) each.throwIfAborted();
    }
  }

  async close(): Promise<void> {
    await this.#direct.destroy();
    if (this.#proxied !== this.#direct) await this.#proxied.destroy();
  }
}

function redirect(from: URL, location: string): URL {
  let next: URL;
  try {
    next = new URL(location, from);
  } catch {
    throw new FirstlightError('unreachable', `${from.host} redirects to nowhere`);
  }
  const secure = next.protocol === 'https:';
  if (!secure && (next.protocol !== 'http:' || from.protocol === 'https:')) {
    throw new FirstlightError('unreachable', `${from.host} redirects to ${next.protocol}, refused`);
  }
  return next;
}

/** Reads a body as a whole; `corrupt` where it is larger than `limit` bytes. */
export async function readBody(
  response: HttpResponse,
  limit: number,
  what: string,
): Promise<Buffer> {
  const chunks: Buffer[] = [];
  let bytes = 0;
  try {
    for await (const chunk of response.body) {
      bytes += (chunk as Buffer).length;
      if (bytes > limit) {
        throw new FirstlightError('corrupt', `${what}: larger than ${limit} bytes`);
      }
      chunks.push(chunk as Buffer);
    }
  } catch (error) {
    throw networkError(error, response.url);
  }
  return Buffer.concat(chunks);
}
