// Speaks to one delta server (delta/protocol.ts, docs/PROTOCOL.md): bundles, ranges of them, and
// which image a name means. What does not live here: retries, and what the bytes mean.
import type { Readable } from 'node:stream';
import type { Dispatcher } from 'undici';
import { API, type ChainImage, IMAGE_DIGEST_HEADER } from '../delta/protocol.ts';
import { FirstlightError } from '../errors/errors.ts';
import { isDigest } from '../store/layout.ts';
import { BodyReader } from './body-reader.ts';
import { Connections, DEFAULT_TIMEOUTS, type Lane, type Timeouts } from './connections.ts';
import {
  CHAINS_BYTES_MAX,
  type DeltaRequest,
  deltaHeaders,
  deltaPath,
  ERROR_BODY_BYTES,
  errorOf,
  header,
  networkError,
  type PieceHead,
  parseChains,
  readSome,
} from './delta-answers.ts';
import { ReaderRequests } from './reader-requests.ts';
import { SILENT_MS } from './silence.ts';
import { StreamLanes } from './stream-lanes.ts';
import { StripedBody } from './striped.ts';
import type { WorkerToken } from './worker-token.ts';

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

/** A lane as the stream sees it that has it. */
export interface StreamLane {
  /** As DeltaClient's `range`; `apart`: over a connection that brings nothing else. */
  range(
    bundlePath: string,
    etag: string,
    from: number,
    to: number,
    signal: AbortSignal,
    apart: boolean,
  ): Promise<BodyReader | 'gone'>;
  /** As Timeouts has it. */
  readonly silentMs: number;
  release(): void;
}

/** One server; connections are kept and shared by all transfers from it. */
export class DeltaClient {
  readonly #timeouts: Timeouts;
  readonly #connections: Connections;
  readonly #readers = new ReaderRequests();

  /**
   * @param connections  that a bundle comes over at once
   * @param token  what is shown to the server; asked for with each request
   * @throws FirstlightError 'usage' where `server` is no http(s) URL
   */
  constructor(
    server: string,
    timeouts: Timeouts = DEFAULT_TIMEOUTS,
    connections = 1,
    token?: () => WorkerToken | undefined,
  ) {
    this.#timeouts = timeouts;
    this.#connections = new Connections(server, timeouts, connections, token);
  }

  get server(): string {
    return this.#connections.server;
  }

  /** As Timeouts has it. */
  get silentMs(): number {
    return this.#timeouts.silentMs ?? SILENT_MS;
  }

  /** Shortest time from a request to its answer's head so far, in ms: close to one round trip. */
  get roundTripMs(): number | undefined {
    return this.#connections.roundTripMs;
  }

  /**
   * Opens the connections that bundles come over and keeps them open: the next bundle begins a round trip
   * earlier, and on connections that have grown fast before. Never throws; a server that is not there now may be later.
   * @param budgetMs  how long after the last bundle, from now on; 0: not at all. Left out: as before.
   */
  keepOpen(budgetMs?: number): void {
    this.#connections.keep(budgetMs);
  }

  /** Asks for a bundle. @throws FirstlightError of the kind that the server or the network gave */
  async delta(request: DeltaRequest, signal?: AbortSignal): Promise<DeltaAnswer> {
    this.#connections.keep();
    if (this.#connections.lanes.length > 1) return this.#stripedDelta(request, signal);
    const { deltaMs } = this.#timeouts;
    const headers = deltaHeaders(request);
    const answer = await this.#connections.request(
      'GET',
      deltaPath(request),
      headers,
      deltaMs,
      signal,
    );
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
    this.#connections.tryIdle();
    let known: Omit<DeltaAnswer, 'body'> | undefined;
    // Behind a stream of another image the header would wait for megabytes of that.
    const free = this.#connections.lanes.filter(({ taken }) => !taken);
    const lanes = free.length > 0 ? free : this.#connections.lanes;
    const body = new StripedBody(0, undefined, {
      connections: lanes.length,
      // A stream that is not read for a while keeps what stands behind it waiting.
      silentMs: free.length > 0 ? this.silentMs : this.#timeouts.idleMs,
      ask: (connection, from, to, abort) =>
        this.#askPiece(
          connection === undefined ? undefined : lanes[connection],
          known,
          request,
          { from, to },
          abort,
        ),
      check: (head) => {
        const { statusCode } = head;
        // Refused meanwhile: over another connection it would be, too.
        if (statusCode === 401 || statusCode === 403) {
          throw this.#connections.explain(errorOf(statusCode, '', this.server));
        }
        // The bundle of a name may become another between two requests.
        if (statusCode === 206 && header(head, 'etag') === known?.etag) return;
        throw new FirstlightError('unreachable', `${this.server} sends another bundle meanwhile`);
      },
      named: (head) => {
        known = this.#named(head);
      },
    });
    const stop = () => body.destroy(networkError(signal?.reason, this.server));
    signal?.addEventListener('abort', stop, { once: true });
    const stopListening = () => signal?.removeEventListener('abort', stop);
    body.once('close', stopListening);
    if (signal?.aborted === true) stop();
    const head = await body.head;
    if (head.statusCode === 206 && known !== undefined) {
      const reader = new BodyReader(body, (error) => networkError(error, this.server));
      return { body: reader, ...known, pieces: this.#piecesOf(body, lanes) };
    }
    // A server or a proxy that knows no ranges of it sends the whole, or an error: it ends with that answer.
    head.body.once('close', stopListening);
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
    return await this.#connections.request(
      'GET',
      known?.bundlePath ?? deltaPath(request),
      {
        range: `bytes=${from}-${to - 1}`,
        ...(known === undefined ? deltaHeaders(request) : { 'if-range': known.etag }),
      },
      this.#timeouts.deltaMs,
      signal,
      lane?.client ?? this.#connections.spare,
    );
  }

  /** Manifest digest that the server has for a reference now; gives up after `timeoutMs`. */
  async digestOf(request: DeltaRequest, timeoutMs: number, signal?: AbortSignal): Promise<string> {
    const bound = AbortSignal.timeout(timeoutMs);
    const both = signal === undefined ? bound : AbortSignal.any([bound, signal]);
    const headers = deltaHeaders(request);
    const answer = await this.#connections.request(
      'HEAD',
      deltaPath(request),
      headers,
      timeoutMs,
      both,
    );
    await this.#expect(answer, [200]);
    await answer.body.dump();
    return header(answer, IMAGE_DIGEST_HEADER);
  }

  /** Images that have a layer of this chain id; gives up after `timeoutMs`. */
  async chains(chainId: string, timeoutMs: number, signal?: AbortSignal): Promise<ChainImage[]> {
    const bound = AbortSignal.timeout(timeoutMs);
    const both = signal === undefined ? bound : AbortSignal.any([bound, signal]);
    const answer = await this.#connections.request(
      'GET',
      `${API.chains}/${chainId}`,
      {},
      timeoutMs,
      both,
    );
    await this.#expect(answer, [200]);
    return parseChains(await readSome(answer.body as Readable, CHAINS_BYTES_MAX), this.server);
  }

  /** Says a word to the server, so that its connection stays open; gives up after `timeoutMs`. */
  async ping(timeoutMs: number): Promise<void> {
    const bound = AbortSignal.timeout(timeoutMs);
    const answer = await this.#connections.request('GET', API.health, {}, timeoutMs, bound);
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
    const connection = this.#connections.free();
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
        const living = lanes.findIndex(({ taken }, at) => !taken && body.lives(at));
        const index = living >= 0 ? living : lanes.findIndex(({ taken }) => !taken);
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
    return this.#streamLane(this.#connections.untaken(except));
  }

  /** @param mayShare  false as long as the other connections have something else to bring first */
  #streamLane(own: Lane, mayShare: () => boolean = () => true): StreamLane {
    const { silentMs } = this;
    const readersWait = () => this.#readers.wait;
    const lanes = new StreamLanes(own, this.#connections.lanes, mayShare, readersWait, silentMs);
    return {
      silentMs,
      range: async (bundlePath, etag, from, to, signal, apart) => {
        if (apart) {
          const free = this.#connections.free();
          return await this.#range(free, bundlePath, etag, { from, to }, signal);
        }
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
    const answer = await this.#connections.request(
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

  /** Turns an answer of another status into the error it carries. */
  async #expect(answer: Dispatcher.ResponseData, statuses: number[]): Promise<void> {
    const { statusCode } = answer;
    if (statuses.includes(statusCode)) return;
    const text = await readSome(answer.body as Readable, ERROR_BODY_BYTES);
    throw this.#connections.explain(errorOf(statusCode, text, this.server));
  }

  /** Closes every connection, those at work too. */
  close(): Promise<void> {
    return this.#connections.close();
  }
}
