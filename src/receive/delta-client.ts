// Speaks to one delta server (delta/protocol.ts, docs/PROTOCOL.md): bundles, ranges of them, and
// which image a name means. What does not live here: retries, and what the bytes mean.
import type { Readable } from 'node:stream';
import { Agent, Client, type Dispatcher } from 'undici';
import * as v from 'valibot';
import {
  API,
  type ChainImage,
  type ErrorBody,
  FRAMES_HEADER,
  IMAGE_DIGEST_HEADER,
  PATCH_FRAMES,
} from '../delta/protocol.ts';
import { FirstlightError, isErrorKind } from '../errors/errors.ts';
import { isDigest } from '../store/layout.ts';
import { BodyReader } from './body-reader.ts';
import { SILENT_MS } from './frame-stream.ts';
import { KeptLines, LINE_TIMES, type Line, type LineTimes } from './kept-lines.ts';
import { ReaderRequests } from './reader-requests.ts';
import { StreamLanes } from './stream-lanes.ts';
import { PIPELINED, type PieceHead, StripedBody } from './striped.ts';

/** Bounds in ms; each is a wait for the next thing to happen, not for the whole. */
export interface Timeouts {
  connectMs: number;
  /** From the request to the answer's head; a bundle may have to be computed first. */
  deltaMs: number;
  /** The same for what needs no computation. */
  headMs: number;
  /** Between two pieces of a body. */
  idleMs: number;
  /** A stream goes on over another connection where one brings nothing for so long; SILENT_MS where absent. */
  silentMs?: number;
  /** How connections are kept between requests. */
  lines?: LineTimes;
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
  /** Whether frames may be patches against these. */
  patches: boolean;
}

/** A bundle that begins to arrive. */
export interface DeltaAnswer {
  body: BodyReader;
  /** Manifest digest, `sha256:...`. */
  digest: string;
  /** Where the same bundle can be had again, and its entity tag. */
  bundlePath: string;
  etag: string;
  /** Set where it comes in pieces, and can be told to end before the bundle does. */
  pieces?: {
    /** The first byte of the bundle that it may end at. */
    readonly leastEnd: number;
    /** Has it end there, and gives one of its connections for what follows. */
    stopAt(end: number): StreamLane;
  };
}

/** A connection whose requests stand in line: what is asked for next follows without a pause. */
interface Lane {
  readonly client: Client;
  usedAt: number;
  /** A stream has it for itself. */
  taken: boolean;
}

/** A lane as the stream sees it that has it. */
export interface StreamLane {
  /** As DeltaClient's `range`. */
  range(
    bundlePath: string,
    etag: string,
    from: number,
    to: number,
    signal: AbortSignal,
  ): Promise<BodyReader | 'gone'>;
  /** As Timeouts has it. */
  readonly silentMs: number;
  release(): void;
}

const IDLE_CLOSE_MS = { keepAliveTimeout: 60_000, keepAliveMaxTimeout: 600_000 };

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
  /** Those that bundles come over, side by side; made with the first bundle, or by `keepOpen`. */
  readonly #lanes: Lane[];
  /** Further ones, for streams that found none of those free. */
  readonly #moreLanes: Lane[] = [];
  readonly #makeLane: () => Lane;
  readonly #timeouts: Timeouts;
  readonly #kept: KeptLines;
  readonly #readers = new ReaderRequests();
  /** Shortest time from a request to its answer's head so far, in ms: close to one round trip. */
  roundTripMs: number | undefined;

  /**
   * @param connections  that a bundle comes over at once
   * @throws FirstlightError 'usage' where `server` is no http(s) URL
   */
  constructor(server: string, timeouts: Timeouts = DEFAULT_TIMEOUTS, connections = 1) {
    const url = URL.canParse(server) ? new URL(server) : undefined;
    if (url === undefined || !/^https?:$/.test(url.protocol)) {
      throw new FirstlightError('usage', `"${server}" is not the URL of a delta server`, {
        hint: 'give one such as http://HOST:7070',
      });
    }
    if (url.username !== '' || url.password !== '') {
      throw new FirstlightError(
        'usage',
        'the URL of a delta server has no name and password in it',
        {
          hint: 'give one such as http://HOST:7070',
        },
      );
    }
    this.server = server;
    this.#origin = url.origin;
    this.#prefix = url.pathname.replace(/\/+$/, '');
    this.#timeouts = timeouts;
    const options = {
      connect: { timeout: timeouts.connectMs },
      // Idle connections stay: one that has moved bytes needs no slow start the next time.
      ...IDLE_CLOSE_MS,
      bodyTimeout: timeouts.idleMs,
      headersTimeout: timeouts.headMs,
    };
    // For what the lanes have no room for: one of its idle connections is closed rather than tried.
    const { suspectMs } = timeouts.lines ?? LINE_TIMES;
    const agentIdle = { keepAliveTimeout: suspectMs, keepAliveMaxTimeout: suspectMs };
    this.#agent = new Agent({ ...options, ...agentIdle, pipelining: 1 });
    this.#makeLane = () => ({
      client: new Client(url.origin, { ...options, pipelining: PIPELINED }),
      usedAt: 0,
      taken: false,
    });
    this.#lanes = Array.from({ length: Math.max(1, connections) }, this.#makeLane);
    const lines = this.#lanes.map((lane) => this.#line(lane));
    this.#kept = new KeptLines(lines, () => this.roundTripMs, timeouts.lines);
  }

  /**
   * Opens the connections that bundles come over and keeps them open: the next bundle begins a round trip
   * earlier, and on connections that have grown fast before. Never throws; a server that is not there now may be later.
   * @param budgetMs  how long after the last bundle, from now on; 0: not at all. Left out: as before.
   */
  keepOpen(budgetMs?: number): void {
    this.#kept.keep(budgetMs);
  }

  /** A lane as it is kept. */
  #line(lane: Lane): Line {
    const { client } = lane;
    return {
      stats: () => client.stats,
      get usedAt() {
        return lane.usedAt;
      },
      set usedAt(at: number) {
        lane.usedAt = at;
      },
      say: async (boundMs) => {
        const startedAt = performance.now();
        const fresh = !client.stats.connected;
        const answer = await client.request({
          path: this.#prefix + API.health,
          method: 'GET',
          headersTimeout: boundMs,
          bodyTimeout: boundMs,
          // What stands behind it does not wait for its answer.
          blocking: false,
        });
        await answer.body.dump();
        if (!fresh) this.#tripped(performance.now() - startedAt);
      },
    };
  }

  /** Asks for a bundle. @throws FirstlightError of the kind that the server or the network gave */
  async delta(request: DeltaRequest, signal?: AbortSignal): Promise<DeltaAnswer> {
    this.#kept.keep();
    if (this.#lanes.length > 1) return this.#stripedDelta(request, signal);
    const { deltaMs } = this.#timeouts;
    const headers = deltaHeaders(request);
    const answer = await this.#request('GET', deltaPath(request), headers, deltaMs, signal);
    await this.#expect(answer, [200]);
    return { body: this.#reader(answer), ...this.#named(answer) };
  }

  /** What an answer's head says of its bundle; the connection ends where it says nothing. */
  #named(answer: PieceHead): Omit<DeltaAnswer, 'body'> {
    const digest = header(answer, IMAGE_DIGEST_HEADER);
    const location = header(answer, 'content-location');
    const etag = header(answer, 'etag');
    if (isDigest(digest) && location.startsWith('/') && /^"[^"]+"$/.test(etag)) {
      return { digest, bundlePath: location, etag };
    }
    answer.body.on('error', () => undefined);
    answer.body.destroy();
    throw new FirstlightError('corrupt', `${this.server} does not answer as a delta server`, {
      hint: 'check the URL given as --server',
    });
  }

  /** The same over all connections that are kept for it. */
  async #stripedDelta(request: DeltaRequest, signal?: AbortSignal): Promise<DeltaAnswer> {
    this.#kept.tryIdle();
    let known: Omit<DeltaAnswer, 'body'> | undefined;
    // Behind a stream of another image the header would wait for megabytes of that.
    const free = this.#lanes.filter(({ taken }) => !taken);
    const lanes = free.length > 0 ? free : this.#lanes;
    const body = new StripedBody(0, undefined, {
      connections: lanes.length,
      ask: (connection, from, to, abort) =>
        this.#askPiece(
          connection === undefined ? undefined : lanes[connection],
          known,
          request,
          { from, to },
          abort,
        ),
      check: (head) => {
        // The bundle of a name may become another between two requests.
        if (head.statusCode === 206 && header(head, 'etag') === known?.etag) return;
        throw new FirstlightError('unreachable', `${this.server} sends another bundle meanwhile`);
      },
      named: (head) => {
        known = this.#named(head);
      },
    });
    const stop = () => body.destroy(networkError(signal?.reason, this.server));
    signal?.addEventListener('abort', stop, { once: true });
    body.once('close', () => signal?.removeEventListener('abort', stop));
    if (signal?.aborted === true) stop();
    const head = await body.head;
    if (head.statusCode === 206 && known !== undefined) {
      const reader = new BodyReader(body, (error) => networkError(error, this.server));
      return { body: reader, ...known, pieces: this.#piecesOf(body, lanes) };
    }
    // A server or a proxy that knows no ranges of it sends the whole, or an error.
    const answer = head as Dispatcher.ResponseData;
    await this.#expect(answer, [200]);
    return { body: this.#reader(answer), ...this.#named(answer) };
  }

  async #askPiece(
    lane: Lane | undefined,
    known: Omit<DeltaAnswer, 'body'> | undefined,
    request: DeltaRequest,
    { from, to }: { from: number; to: number },
    signal: AbortSignal,
  ): Promise<PieceHead> {
    if (lane !== undefined) lane.usedAt = performance.now();
    const connection: Dispatcher = lane?.client ?? this.#agent;
    try {
      return await connection.request({
        origin: this.#origin,
        path: this.#prefix + (known?.bundlePath ?? deltaPath(request)),
        method: 'GET',
        headers: {
          range: `bytes=${from}-${to - 1}`,
          ...(known === undefined ? deltaHeaders(request) : { 'if-range': known.etag }),
        },
        headersTimeout: this.#timeouts.deltaMs,
        // Else the next request on the connection would wait for the head of this one's answer.
        blocking: false,
        signal,
      });
    } catch (error) {
      throw networkError(error, this.server);
    }
  }

  /** Manifest digest that the server has for a reference now; gives up after `timeoutMs`. */
  async digestOf(request: DeltaRequest, timeoutMs: number, signal?: AbortSignal): Promise<string> {
    const bound = AbortSignal.timeout(timeoutMs);
    const both = signal === undefined ? bound : AbortSignal.any([bound, signal]);
    const headers = deltaHeaders(request);
    const answer = await this.#request('HEAD', deltaPath(request), headers, timeoutMs, both);
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
   * Bytes `from` to `to` (exclusive) of a bundle, which a reader waits for, or 'gone' where the server no longer has
   * that one.
   */
  async range(
    bundlePath: string,
    etag: string,
    from: number,
    to: number,
    signal?: AbortSignal,
  ): Promise<BodyReader | 'gone'> {
    const over = this.#readers.begin();
    const follow = (body: Readable) => void body.once('close', over);
    const connection = this.#freeConnection();
    try {
      return await this.#range(connection, bundlePath, etag, { from, to }, signal, follow);
    } catch (error) {
      over();
      throw error;
    }
  }

  #piecesOf(body: StripedBody, lanes: Lane[]): NonNullable<DeltaAnswer['pieces']> {
    return {
      get leastEnd() {
        return body.leastEnd;
      },
      stopAt: (end) => {
        // The last one of all is the body's own.
        const index = lanes.findIndex(({ taken }) => !taken);
        if (index < 0 || lanes.length < 2) {
          body.stopAt(end);
          return this.takeLane(lanes);
        }
        body.stopAt(end, index);
        return this.#streamLane(lanes[index]!, () => body.allAsked);
      },
    };
  }

  /** A connection for one stream alone; an open one where there is one. */
  takeLane(except: Lane[] = []): StreamLane {
    const free = [...this.#lanes, ...this.#moreLanes].filter(
      (lane) => !lane.taken && !except.includes(lane),
    );
    let lane = free.find(({ client }) => client.stats.connected) ?? free[0];
    if (lane === undefined) {
      lane = this.#makeLane();
      this.#moreLanes.push(lane);
    }
    return this.#streamLane(lane);
  }

  /** @param mayShare  false as long as the other connections have something else to bring first */
  #streamLane(own: Lane, mayShare: () => boolean = () => true): StreamLane {
    const { silentMs = SILENT_MS } = this.#timeouts;
    const readersWait = () => this.#readers.wait;
    const lanes = new StreamLanes(own, this.#lanes, mayShare, readersWait, silentMs);
    return {
      silentMs,
      range: async (bundlePath, etag, from, to, signal) => {
        const { lane, follow, over } = lanes.next(to - from);
        lane.usedAt = performance.now();
        try {
          return await this.#range(lane.client, bundlePath, etag, { from, to }, signal, follow);
        } catch (error) {
          over();
          throw error;
        }
      },
      release: () => lanes.release(),
    };
  }

  async #range(
    connection: Dispatcher,
    bundlePath: string,
    etag: string,
    { from, to }: { from: number; to: number },
    signal: AbortSignal | undefined,
    follow?: (body: Readable) => void,
  ): Promise<BodyReader | 'gone'> {
    const headers = { range: `bytes=${from}-${to - 1}`, 'if-range': etag };
    const answer = await this.#request(
      'GET',
      bundlePath,
      headers,
      this.#timeouts.headMs,
      signal,
      connection,
    );
    follow?.(answer.body);
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
    connection: Dispatcher = this.#freeConnection(),
  ): Promise<Dispatcher.ResponseData> {
    const startedAt = performance.now();
    try {
      const answer = await connection.request({
        origin: this.#origin,
        path: this.#prefix + path,
        method,
        headers,
        headersTimeout,
        // undici would close the connection after a HEAD, for servers that send a body to it.
        reset: false,
        // Else the next request on the connection would wait for the head of this one's answer.
        blocking: false,
        signal: signal ?? null,
      });
      // A new bundle is computed first: that says nothing of the way.
      if (headersTimeout !== this.#timeouts.deltaMs) this.#tripped(performance.now() - startedAt);
      return answer;
    } catch (error) {
      throw networkError(error, this.server);
    }
  }

  /** One that is open and has nothing to do, where there is one: it saves a round trip, and often more. */
  #freeConnection(): Dispatcher {
    // Of several, those that are not open are opened by the next bundle.
    const isOpen = ({ client }: Lane) => client.stats.connected || this.#lanes.length === 1;
    const free = this.#lanes.find(
      (lane) => !lane.taken && lane.client.stats.size === 0 && isOpen(lane),
    );
    this.#kept.tryIdle();
    if (free === undefined) return this.#agent;
    free.usedAt = performance.now();
    return free.client;
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
  async close(): Promise<void> {
    this.#kept.stop();
    await Promise.all([
      this.#agent.destroy(),
      ...[...this.#lanes, ...this.#moreLanes].map(({ client }) => client.destroy()),
    ]);
  }
}

function deltaPath({ image, platform, bases }: DeltaRequest): string {
  const query = new URLSearchParams({ image, platform });
  for (const base of bases) query.append('base', base);
  return `${API.delta}?${query}`;
}

function deltaHeaders({ patches }: DeltaRequest): Record<string, string> {
  return patches ? { [FRAMES_HEADER]: PATCH_FRAMES } : {};
}

function header(answer: Pick<PieceHead, 'headers'>, name: string): string {
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
