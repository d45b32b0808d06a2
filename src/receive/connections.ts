// The connections to one delta server: how many, which of them has nothing to do, and one request over one of them.
// What does not live here: which are kept open and how (kept-lines.ts), which of them carry a stream
// (stream-lanes.ts), and what is asked (delta-client.ts).
import { Agent, Client, type Dispatcher } from 'undici';
import { API } from '../delta/protocol.ts';
import { FirstlightError } from '../errors/errors.ts';
import { networkError } from './delta-answers.ts';
import { KeptLines, LINE_TIMES, type Line, type LineTimes } from './kept-lines.ts';
import { PIPELINED } from './piece-routes.ts';
import { connectTo } from './secure-connect.ts';
import { refusedToken, type WorkerToken } from './worker-token.ts';

/** Bounds in ms; each is a wait for the next thing to happen, not for the whole. */
export interface Timeouts {
  connectMs: number;
  /** From the request to the answer's head; a bundle may have to be computed first. */
  deltaMs: number;
  /** The same for what needs no computation. */
  headMs: number;
  /** Between two pieces of a body. */
  idleMs: number;
  /** What one connection brings nothing of for so long is asked for over another; SILENT_MS where absent. */
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

/** A connection whose requests stand in line: what is asked for next follows without a pause. */
export interface Lane {
  readonly client: Client;
  usedAt: number;
  /** A stream has it for itself. */
  taken: boolean;
}

const IDLE_CLOSE_MS = { keepAliveTimeout: 60_000, keepAliveMaxTimeout: 600_000 };

/** See the head of this file. */
export class Connections {
  readonly server: string;
  readonly #origin: string;
  readonly #prefix: string;
  /** For what the lanes have no room for. */
  readonly spare: Agent;
  /** Those that bundles come over, side by side; made with the first bundle, or by `keepOpen`. */
  readonly lanes: Lane[];
  /** Further ones, for streams that found none of those free. */
  readonly #moreLanes: Lane[] = [];
  readonly #makeLane: () => Lane;
  readonly #timeouts: Timeouts;
  readonly #token: () => WorkerToken | undefined;
  readonly #kept: KeptLines;
  /** Shortest time from a request to its answer's head so far, in ms: close to one round trip. */
  roundTripMs: number | undefined;

  /**
   * @param connections  that a bundle comes over at once
   * @param token  what is shown to the server from now on
   * @throws FirstlightError 'usage' where `server` is no http(s) URL
   */
  constructor(
    server: string,
    timeouts: Timeouts = DEFAULT_TIMEOUTS,
    connections = 1,
    token: () => WorkerToken | undefined = () => undefined,
  ) {
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
    this.#token = token;
    const options = {
      connect: connectTo(url, timeouts.connectMs),
      // Idle connections stay: one that has moved bytes needs no slow start the next time.
      ...IDLE_CLOSE_MS,
      bodyTimeout: timeouts.idleMs,
      headersTimeout: timeouts.headMs,
    };
    // For what the lanes have no room for: one of its idle connections is closed rather than tried.
    const { suspectMs } = timeouts.lines ?? LINE_TIMES;
    const agentIdle = { keepAliveTimeout: suspectMs, keepAliveMaxTimeout: suspectMs };
    this.spare = new Agent({ ...options, ...agentIdle, pipelining: 1 });
    this.#makeLane = () => ({
      client: new Client(url.origin, { ...options, pipelining: PIPELINED }),
      usedAt: 0,
      taken: false,
    });
    this.lanes = Array.from({ length: Math.max(1, connections) }, this.#makeLane);
    const lines = this.lanes.map((lane) => this.#line(lane));
    this.#kept = new KeptLines(lines, () => this.roundTripMs, timeouts.lines);
  }

  /** As DeltaClient's `keepOpen`. */
  keep(budgetMs?: number): void {
    this.#kept.keep(budgetMs);
  }

  /** Those that have been idle for long are tried, without waiting for it. */
  tryIdle(): void {
    this.#kept.tryIdle();
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

  /**
   * One request; it resolves with the head of the answer, of whatever status. Where the server refuses the token, it is
   * sent once more if another one stands in its file by now.
   * @param connection  where it goes; one that has nothing to do where absent
   * @throws FirstlightError of the network; 'unauthorized' where there should be a token and is none
   */
  async request(
    method: 'GET' | 'HEAD',
    path: string,
    headers: Record<string, string>,
    headersTimeout: number,
    signal: AbortSignal | undefined,
    connection: Dispatcher = this.free(),
  ): Promise<Dispatcher.ResponseData> {
    const send = (more?: { authorization: string }) =>
      this.#send(method, path, { ...headers, ...more }, headersTimeout, signal, connection);
    const token = this.#token();
    if (token === undefined) return await send();
    const shown = token.header ?? (await token.read());
    const answer = await send({ authorization: shown });
    // 403: it is for something else, which another one may be for.
    if (answer.statusCode !== 401 && answer.statusCode !== 403) return answer;
    // One that cannot be read now is no better: the server's answer says what is wrong.
    const renewed = await token.renewed(shown).catch(() => undefined);
    if (renewed === undefined) return answer;
    await answer.body.dump();
    return await send({ authorization: renewed });
  }

  async #send(
    method: 'GET' | 'HEAD',
    path: string,
    headers: Record<string, string>,
    headersTimeout: number,
    signal: AbortSignal | undefined,
    connection: Dispatcher,
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

  /** An error of the server, which says what to do about the token that was shown. */
  explain(error: FirstlightError): FirstlightError {
    const token = this.#token();
    return token === undefined ? error : refusedToken(error, this.server, token.path);
  }

  /** One that is open and has nothing to do, where there is one: it saves a round trip, and often more. */
  free(): Dispatcher {
    // Of several, those that are not open are opened by the next bundle.
    const isOpen = ({ client }: Lane) => client.stats.connected || this.lanes.length === 1;
    const free = this.lanes.find(
      (lane) => !lane.taken && lane.client.stats.size === 0 && isOpen(lane),
    );
    this.#kept.tryIdle();
    if (free === undefined) return this.spare;
    free.usedAt = performance.now();
    return free.client;
  }

  #tripped(ms: number): void {
    if (this.roundTripMs === undefined || ms < this.roundTripMs) this.roundTripMs = ms;
  }

  /** One that no stream has, for one stream alone; an open one where there is one. It is not taken yet. */
  untaken(except: Lane[]): Lane {
    const free = [...this.lanes, ...this.#moreLanes].filter(
      (lane) => !lane.taken && !except.includes(lane),
    );
    let lane = free.find(({ client }) => client.stats.connected) ?? free[0];
    if (lane === undefined) {
      lane = this.#makeLane();
      this.#moreLanes.push(lane);
    }
    return lane;
  }

  /** Closes every connection, those at work too. */
  async close(): Promise<void> {
    this.#kept.stop();
    await Promise.all([
      this.spare.destroy(),
      ...[...this.lanes, ...this.#moreLanes].map(({ client }) => client.destroy()),
    ]);
  }
}
