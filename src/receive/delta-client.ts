// Speaks to one delta server (delta/protocol.ts, docs/PROTOCOL.md): bundles, ranges of them, and
// which image a name means. What does not live here: retries, and what the bytes mean.
import type { Readable } from 'node:stream';
import { Agent, type Dispatcher } from 'undici';
import * as v from 'valibot';
import { API, type ChainImage, type ErrorBody, IMAGE_DIGEST_HEADER } from '../delta/protocol.ts';
import { FirstlightError, isErrorKind } from '../errors/errors.ts';
import { isDigest } from '../store/layout.ts';
import { BodyReader } from './body-reader.ts';

/** Bounds in ms; each is a wait for the next thing to happen, not for the whole. */
export interface Timeouts {
  connectMs: number;
  /** From the request to the answer's head; a bundle may have to be computed first. */
  deltaMs: number;
  /** The same for what needs no computation. */
  headMs: number;
  /** Between two pieces of a body. */
  idleMs: number;
}

export const DEFAULT_TIMEOUTS: Timeouts = {
  connectMs: 10_000,
  deltaMs: 300_000,
  headMs: 20_000,
  idleMs: 20_000,
};

/** What is asked for. */
export interface DeltaRequest {
  /** NAME:TAG or `sha256:...`. */
  image: string;
  /** os/arch[/variant]. */
  platform: string;
  /** Digests of images that the worker holds. */
  bases: string[];
}

/** A bundle that begins to arrive. */
export interface DeltaAnswer {
  body: BodyReader;
  /** Manifest digest, `sha256:...`. */
  digest: string;
  /** Where the same bundle can be had again, and its entity tag. */
  bundlePath: string;
  etag: string;
}

/** Most of an error answer that is read. */
const ERROR_BODY_BYTES = 64 << 10;
/** Most of a list of images by chain id that is read. */
const CHAINS_BYTES_MAX = 4 << 20;

/** One server; connections are kept and shared by all transfers from it. */
export class DeltaClient {
  readonly server: string;
  readonly #origin: string;
  readonly #prefix: string;
  readonly #agent: Agent;
  readonly #timeouts: Timeouts;
  /** Shortest time from a request to its answer's head so far, in ms: close to one round trip. */
  roundTripMs: number | undefined;

  /** @throws FirstlightError 'usage' where `server` is no http(s) URL */
  constructor(server: string, timeouts: Timeouts = DEFAULT_TIMEOUTS) {
    const url = URL.canParse(server) ? new URL(server) : undefined;
    if (url === undefined || !/^https?:$/.test(url.protocol)) {
      throw new FirstlightError('usage', `"${server}" is not the URL of a delta server`, {
        hint: 'give one such as http://HOST:7070',
      });
    }
    this.server = server;
    this.#origin = url.origin;
    this.#prefix = url.pathname.replace(/\/+$/, '');
    this.#timeouts = timeouts;
    this.#agent = new Agent({
      connect: { timeout: timeouts.connectMs },
      // Idle connections stay: one that has moved bytes needs no slow start the next time.
      keepAliveTimeout: 60_000,
      keepAliveMaxTimeout: 600_000,
      bodyTimeout: timeouts.idleMs,
      headersTimeout: timeouts.headMs,
      // A bundle is never decoded on the way, and its ranges are counted in its own bytes.
      pipelining: 1,
    });
  }

  /** Asks for a bundle. @throws FirstlightError of the kind that the server or the network gave */
  async delta(request: DeltaRequest, signal?: AbortSignal): Promise<DeltaAnswer> {
    const answer = await this.#request(
      'GET',
      deltaPath(request),
      {},
      this.#timeouts.deltaMs,
      signal,
    );
    await this.#expect(answer, [200]);
    const digest = header(answer, IMAGE_DIGEST_HEADER);
    const location = header(answer, 'content-location');
    const etag = header(answer, 'etag');
    if (!isDigest(digest) || !location.startsWith('/') || !/^"[^"]+"$/.test(etag)) {
      answer.body.destroy();
      throw new FirstlightError('corrupt', `${this.server} does not answer as a delta server`, {
        hint: 'check the URL given as --server',
      });
    }
    return { body: this.#reader(answer), digest, bundlePath: location, etag };
  }

  /** Manifest digest that the server has for a reference now; gives up after `timeoutMs`. */
  async digestOf(request: DeltaRequest, timeoutMs: number, signal?: AbortSignal): Promise<string> {
    const bound = AbortSignal.timeout(timeoutMs);
    const both = signal === undefined ? bound : AbortSignal.any([bound, signal]);
    const answer = await this.#request('HEAD', deltaPath(request), {}, timeoutMs, both);
    await this.#expect(answer, [200]);
    await answer.body.dump();
    return header(answer, IMAGE_DIGEST_HEADER);
  }

  /** Images that have a layer of this chain id; gives up after `timeoutMs`. */
  async chains(chainId: string, timeoutMs: number, signal?: AbortSignal): Promise<ChainImage[]> {
    const bound = AbortSignal.timeout(timeoutMs);
    const both = signal === undefined ? bound : AbortSignal.any([bound, signal]);
    const answer = await this.#request('GET', `${API.chains}/${chainId}`, {}, timeoutMs, both);
    await this.#expect(answer, [200]);
    return parseChains(await readSome(answer.body as Readable, CHAINS_BYTES_MAX), this.server);
  }

  /** Says a word to the server, so that its connection stays open; gives up after `timeoutMs`. */
  async ping(timeoutMs: number): Promise<void> {
    const bound = AbortSignal.timeout(timeoutMs);
    const answer = await this.#request('GET', API.health, {}, timeoutMs, bound);
    await answer.body.dump();
  }

  /**
   * Bytes `from` to `to` (exclusive) of a bundle, or 'gone' where the server no longer has that one.
   */
  async range(
    bundlePath: string,
    etag: string,
    from: number,
    to: number,
    signal?: AbortSignal,
  ): Promise<BodyReader | 'gone'> {
    const headers = { range: `bytes=${from}-${to - 1}`, 'if-range': etag };
    const answer = await this.#request('GET', bundlePath, headers, this.#timeouts.headMs, signal);
    const gone =
      answer.statusCode === 404 ||
      answer.statusCode === 410 ||
      // The whole of something else: the entity tag did not match.
      answer.statusCode === 200 ||
      answer.statusCode === 416;
    if (gone) {
      answer.body.on('error', () => undefined);
      answer.body.destroy();
      return 'gone';
    }
    await this.#expect(answer, [206]);
    const expected = new RegExp(`^bytes ${from}-${to - 1}/`);
    if (!expected.test(header(answer, 'content-range')) || header(answer, 'etag') !== etag) {
      answer.body.on('error', () => undefined);
      answer.body.destroy();
      throw new FirstlightError('corrupt', `${this.server} gave another range than was asked for`);
    }
    return this.#reader(answer);
  }

  #reader(answer: Dispatcher.ResponseData): BodyReader {
    return new BodyReader(answer.body as Readable, (error) => networkError(error, this.server));
  }

  async #request(
    method: 'GET' | 'HEAD',
    path: string,
    headers: Record<string, string>,
    headersTimeout: number,
    signal: AbortSignal | undefined,
  ): Promise<Dispatcher.ResponseData> {
    const startedAt = performance.now();
    try {
      const answer = await this.#agent.request({
        origin: this.#origin,
        path: this.#prefix + path,
        method,
        headers,
        headersTimeout,
        signal: signal ?? null,
      });
      // A new bundle is computed first: that says nothing of the way.
      if (headersTimeout !== this.#timeouts.deltaMs) this.#tripped(performance.now() - startedAt);
      return answer;
    } catch (error) {
      throw networkError(error, this.server);
    }
  }

  #tripped(ms: number): void {
    if (this.roundTripMs === undefined || ms < this.roundTripMs) this.roundTripMs = ms;
  }

  /** Turns an answer of another status into the error it carries. */
  async #expect(answer: Dispatcher.ResponseData, statuses: number[]): Promise<void> {
    const { statusCode } = answer;
    if (statuses.includes(statusCode)) return;
    const text = await readSome(answer.body as Readable, ERROR_BODY_BYTES);
    throw errorOf(statusCode, text, this.server);
  }

  /** Closes every connection, those at work too. */
  close(): Promise<void> {
    return this.#agent.destroy();
  }
}

function deltaPath({ image, platform, bases }: DeltaRequest): string {
  const query = new URLSearchParams({ image, platform });
  for (const base of bases) query.append('base', base);
  return `${API.delta}?${query}`;
}

function header(answer: Dispatcher.ResponseData, name: string): string {
  const value = answer.headers[name];
  return typeof value === 'string' ? value : '';
}

const CHAINS = v.array(
  v.object({
    digest: v.string(),
    name: v.exactOptional(v.string()),
    platform: v.string(),
    index: v.pipe(v.number(), v.integer(), v.minValue(0)),
    layers: v.array(v.string()),
  }),
);

function parseChains(text: string, server: string): ChainImage[] {
  try {
    return v.parse(CHAINS, JSON.parse(text));
  } catch (cause) {
    throw new FirstlightError('corrupt', `${server} does not answer as a delta server`, {
      hint: 'check the URL given as --server',
      cause,
    });
  }
}

async function readSome(body: Readable, most: number): Promise<string> {
  let text = '';
  try {
    for await (const chunk of body) {
      text += (chunk as Buffer).toString('utf8');
      if (text.length > most) break;
    }
  } catch {
    // The status alone must do: the connection ended inside the explanation.
  }
  return text;
}

/** The error of an answer that is not what was asked for. */
function errorOf(statusCode: number, text: string, server: string): FirstlightError {
  try {
    const { error } = JSON.parse(text) as ErrorBody;
    if (isErrorKind(error.kind) && typeof error.message === 'string') {
      const hint = typeof error.hint === 'string' ? { hint: error.hint } : {};
      return new FirstlightError(error.kind, error.message, hint);
    }
  } catch {
    // No JSON, or not ours: a proxy in between. The status is all there is.
  }
  const kind =
    statusCode >= 500 ? 'unreachable' : statusCode === 401 ? 'unauthorized' : 'unsupported';
  return new FirstlightError(kind, `${server} answered with HTTP status ${statusCode}`, {
    hint: 'check the URL given as --server',
  });
}

/** An error of the connection in the project's terms. */
export function networkError(error: unknown, server: string): FirstlightError {
  if (error instanceof FirstlightError) return error;
  const { code, name, message } = error as NodeJS.ErrnoException;
  const hint = 'check that the server runs and that --server names it';
  if (
    code === 'UND_ERR_HEADERS_TIMEOUT' ||
    code === 'UND_ERR_BODY_TIMEOUT' ||
    name === 'TimeoutError'
  ) {
    return new FirstlightError('timeout', `${server} did not answer in time`, {
      hint,
      cause: error,
    });
  }
  const why =
    code === undefined ? message : `${code}${message.includes(code) ? '' : `: ${message}`}`;
  return new FirstlightError('unreachable', `${server} cannot be reached (${why})`, {
    hint,
    cause: error,
  });
}
