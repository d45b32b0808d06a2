// One bundle over several connections at once: its bytes are asked for in pieces, which travel beside
// each other and come out in order. Each connection begins with a small window that doubles every round trip
// (slow start); eight of them begin with eight windows, which saves three round trips. What does
// not live here: what the bytes mean (header.ts, transfer.ts), a single request (delta-client.ts), which connection
// gets which piece (piece-routes.ts), how much is asked for at a time (piece-pace.ts).
//
// The first pieces are as small as the windows are, so that what stands first in the bundle, its
// header, comes over all connections together; the later ones grow with the windows. A few are asked
// for ahead on each connection (pipelining), so that none waits for a request to travel. Whoever reads says
// after the header where to stop (`stopAt`): some of the connections carry the rest (frame-stream.ts,
// stream-lanes.ts). They have grown by then, and frames that a reader waits for come over the others.
//
// What a connection owes that breaks is asked for over another at once, and what one owes that has fallen silent after a
// short while. What had come of a piece stays, so that this costs no more than a connection. A server that is slow with
// everything is not taken for one whose connections are dead: the wait doubles each time.
import { Readable } from 'node:stream';
import { FirstlightError } from '../errors/errors.ts';
import { contentRange, type PieceHead } from './delta-answers.ts';
import { MOST_BYTES, PiecePace, STRIPED_BYTES } from './piece-pace.ts';
import { PieceRoutes, type Route } from './piece-routes.ts';
import { SILENT_MS } from './silence.ts';

/** Bytes that may lie here before they are taken. */
const READY_BYTES = 1 << 20;
/** Requests for one piece that may fail before the whole is given up. */
const ATTEMPTS = 3;
/** How often a silence is looked for, in parts of what counts as one. */
const LOOKS = 4;

/**
 * Asks for bytes `from` to `to` (exclusive) on one of the connections, by its index; undefined: on one that
 * has nothing else to bring.
 */
export type AskPiece = (
  connection: number | undefined,
  from: number,
  to: number,
  signal: AbortSignal,
) => Promise<PieceHead>;

interface Piece {
  from: number;
  /** Exclusive; the end of the bundle may come before. */
  to: number;
  received: number;
  /** What has come while pieces before it are missing. */
  chunks: Buffer[];
  /** Requests for it that have failed. */
  failures: number;
  /** A request for it is given up after so long a silence of its connection. */
  silentMs: number;
}

/** One request for a piece. */
interface Attempt {
  readonly piece: Piece;
  readonly route: Route<Attempt>;
  readonly abort: AbortController;
  readonly silentMs: number;
  /** Of its answer. */
  body: Readable | undefined;
}

/** How the striping goes: bytes, and connections. */
export interface StripedOptions {
  connections: number;
  ask: AskPiece;
  /** Checks the head of a later piece against that of the first; throws where it is another bundle. */
  check: (head: PieceHead) => void;
  /** Takes note of the first head, where it is that of a part; throws where it is no bundle's. */
  named: (head: PieceHead) => void;
  /** A connection that brings nothing for so many ms, while others live, is taken for dead. */
  silentMs?: number;
  /** A clock, in ms. */
  now?: () => number;
}

/** True where an error is an answer, and asking again would not change it. */
function isFinal(error: unknown): boolean {
  if (!(error instanceof FirstlightError)) return false;
  return error.kind !== 'unreachable' && error.kind !== 'timeout';
}

/** A bundle's bytes in order, from several connections. */
export class StripedBody extends Readable {
  readonly #options: StripedOptions;
  readonly #routes: PieceRoutes<Attempt>;
  readonly #underWay = new Set<Attempt>();
  readonly #silentMs: number;
  #watch: NodeJS.Timeout | undefined;
  /** Some connection has answered, with whatever. */
  #answered = false;
  /** Pieces whose requests failed before any connection had answered, and over what. */
  readonly #failedEarly: Attempt[] = [];
  /** Pieces that have been asked for and not all been given out, in order. */
  readonly #pieces: Piece[] = [];
  readonly #pace: PiecePace;
  /** Index and offset of the next piece to ask for. */
  #nextIndex = 0;
  #nextFrom: number;
  readonly #start: number;
  /** The end of the bundle, once an answer has named it, or where to stop before that. */
  #end: number;
  readonly #first = Promise.withResolvers<PieceHead>();
  /** Set with the head: of the answer that brought it. */
  #firstAbort: AbortController | undefined;
  #wake: (() => void) | undefined;
  #roomMade: Promise<void> | undefined;
  #finished = false;
  /** Bytes that have been given out. */
  #givenOut = 0;
  #stopped = false;
  /** Somebody else reads the first answer: nothing more is asked for. */
  #abandoned = false;

  constructor(from: number, end: number | undefined, options: StripedOptions) {
    super({ highWaterMark: MOST_BYTES });
    this.#options = options;
    this.#nextFrom = from;
    this.#start = from;
    this.#end = end ?? Number.POSITIVE_INFINITY;
    this.#silentMs = options.silentMs ?? SILENT_MS;
    const { connections, now = () => performance.now() } = options;
    this.#routes = new PieceRoutes(connections, this.#silentMs, now);
    this.#pace = new PiecePace(connections, now);
    // Whoever asks for the head hears of it; the rest hear of the body's end.
    this.#first.promise.catch(() => undefined);
    this.on('error', () => undefined);
    this.#fill();
  }

  /**
   * The head of the answer that brings the first piece.
   * @throws what its request threw
   */
  get head(): Promise<PieceHead> {
    return this.#first.promise;
  }

  /** The first byte that `stopAt` may name; on a slow line sooner than on one that is worth so many connections. */
  get leastEnd(): number {
    return Math.max(this.#nextFrom, this.#start + this.#pace.leastBytes);
  }

  /** After `stopAt`: nothing more will be asked for, unless a connection breaks. */
  get allAsked(): boolean {
    return this.#stopped && this.#nextFrom >= this.#end;
  }

  /** True where a connection has brought something, and does not rest now though something is awaited of it. */
  lives(connection: number): boolean {
    return this.#routes.lives(connection);
  }

  /**
   * Nothing from this byte of the bundle on is asked for: the body ends there.
   * @param left  a connection that is somebody else's from now on. Whatever came behind their bytes
   * would wait until they are read, and they are read after the bytes of this body.
   */
  stopAt(end: number, left?: number): void {
    this.#stopped = true;
    if (left !== undefined) this.#routes.leave(left);
    this.#end = Math.min(this.#end, end);
    this.#giveOut();
    this.#fill();
  }

  override _read(): void {
    this.#wake?.();
    this.#wake = undefined;
    this.#fill();
  }

  /** Resolves when some of what lies here has been taken. */
  async #room(): Promise<void> {
    this.#roomMade ??= new Promise((resolve) => {
      this.#wake = resolve;
    });
    await this.#roomMade;
    this.#roomMade = undefined;
  }

  override _destroy(error: Error | null, callback: (error: Error | null) => void): void {
    clearInterval(this.#watch);
    // After a proper end only answers without content are on their way: aborting them would break
    // connections that are to be kept.
    if (error !== null || !this.#finished) {
      for (const { abort } of this.#underWay) abort.abort();
      this.#firstAbort?.abort();
    }
    this.#wake?.();
    this.#first.reject(error ?? new Error('the body was given up'));
    callback(error);
  }

  /** Asks for more pieces where connections have room. */
  #fill(): void {
    while (!this.destroyed && !this.#abandoned && this.#nextFrom < this.#end) {
      if (this.#nextFrom - this.#start >= this.#mostAsked()) return;
      const route = this.#routes.next();
      if (route === undefined) return;
      const to = this.#nextFrom + this.#pace.bytesOf(this.#nextIndex++);
      this.#askPiece(Math.min(this.#end, to), route);
    }
  }

  /** Bytes that may have been asked for by now. */
  #mostAsked(): number {
    const most = this.#pace.mostAsked;
    // So much may not exist, or nobody has said yet how much of it is to come this way.
    if (!this.#stopped && most > STRIPED_BYTES) {
      if (!Number.isFinite(this.#end)) return STRIPED_BYTES;
      return Math.max(STRIPED_BYTES, this.#givenOut - this.readableLength + READY_BYTES);
    }
    return most;
  }

  #askPiece(to: number, route: Route<Attempt>): void {
    const from = this.#nextFrom;
    const piece = { from, to, received: 0, chunks: [], failures: 0, silentMs: this.#silentMs };
    this.#pieces.push(piece);
    route.askedBytes += to - from;
    this.#nextFrom = to;
    void this.#fetch(piece, route);
  }

  async #fetch(piece: Piece, route: Route<Attempt>): Promise<void> {
    const { silentMs } = piece;
    const attempt = { piece, route, abort: new AbortController(), silentMs, body: undefined };
    this.#routes.begin(route, attempt);
    this.#underWay.add(attempt);
    try {
      await this.#attempt(attempt);
    } catch (error) {
      // Where it was given up, whoever did so knows.
      if (!attempt.abort.signal.aborted) this.#failed(attempt, error as Error);
    } finally {
      this.#underWay.delete(attempt);
      this.#routes.end(route, attempt);
      this.#giveOut();
      this.#fill();
    }
  }

  /** A connection has broken, or could not be made: others bring what it owes. */
  #failed(attempt: Attempt, error: Error): void {
    const { piece, route } = attempt;
    this.#routes.down(route);
    if (this.destroyed || this.#abandoned) return;
    const others = this.#underWay.size - 1;
    if (isFinal(error) || ++piece.failures >= ATTEMPTS || (!this.#answered && others === 0)) {
      this.destroy(error);
    } else if (this.#answered) this.#again(attempt);
    else this.#failedEarly.push(attempt);
  }

  /** In a moment: those that break together with it are known by then. */
  #again({ piece, route }: Attempt): void {
    setImmediate(() => {
      if (this.destroyed || this.#abandoned) return;
      void this.#fetch(piece, this.#elsewhere(route, 'up'));
    });
  }

  /**
   * Where to ask for what a route did not bring. Not on one of the connections after `stopAt`: what
   * follows this body may have been asked for over all of them, is read after it, and would not let it pass.
   */
  #elsewhere(route: Route<Attempt>, least: 'up' | 'live'): Route<Attempt> {
    if (this.#stopped) return this.#routes.apart();
    // The HTTP client makes its connection anew.
    return this.#routes.other(route, least) ?? route;
  }

  /** A connection has answered: the server is there, and has computed what was asked for. */
  #heard(route: Route<Attempt>): void {
    this.#routes.moved(route);
    if (this.#answered) return;
    this.#answered = true;
    this.#routes.startAll();
    // Not in the timer's own turn: after a busy while the bytes that have come meanwhile are read first.
    const look = () => setImmediate(() => this.#look());
    this.#watch = setInterval(look, this.#silentMs / LOOKS).unref();
    for (const attempt of this.#failedEarly.splice(0)) this.#again(attempt);
  }

  /** What silent connections owe is asked for over others. */
  #look(): void {
    if (this.destroyed || this.#abandoned || this.#finished) return;
    const first = [...this.#underWay].find(({ piece }) => piece === this.#pieces[0]);
    for (const route of this.#routes.silent(first)) {
      const owed = [...route.attempts];
      this.#routes.down(route);
      // In the order of the answers: to break off a later one would break those before it, too, while what stands behind
      // them and is somebody else's is sent again by the HTTP client.
      for (const attempt of owed) {
        attempt.abort.abort();
        attempt.body?.destroy();
        this.#routes.end(route, attempt);
      }
      for (const { piece } of owed) {
        piece.silentMs *= 2;
        void this.#fetch(piece, this.#elsewhere(route, 'live'));
      }
    }
  }

  async #attempt(attempt: Attempt): Promise<void> {
    const { piece, route, abort } = attempt;
    const from = piece.from + piece.received;
    if (from >= Math.min(piece.to, this.#end)) return;
    const head = await this.#options.ask(route.connection, from, piece.to, abort.signal);
    attempt.body = head.body;
    this.#heard(route);
    if (piece.from === this.#start && this.#firstAbort === undefined) {
      return await this.#takeFirst(attempt, head, from);
    }
    head.body.on('error', () => undefined);
    await this.#routes.hold(route, this.#first.promise);
    if (this.#abandoned || head.statusCode === 416) {
      // The end of the bundle lies before this piece, or there is no bundle.
      head.body.resume();
      if (!this.#abandoned) this.#endsBefore(piece);
      return;
    }
    try {
      this.#options.check(head);
      await this.#take(attempt, head, from);
    } catch (error) {
      // What nobody reads would hold up everything behind it on this connection.
      head.body.destroy();
      throw error;
    }
  }

  /** The answer that says what the whole is. */
  async #takeFirst(attempt: Attempt, head: PieceHead, from: number): Promise<void> {
    const isPart = head.statusCode === 206;
    if (isPart) this.#options.named(head);
    this.#firstAbort = attempt.abort;
    // Whatever it is but a part: whoever waits for the head deals with it, body included.
    this.#abandoned = !isPart;
    this.#first.resolve(head);
    if (isPart) return await this.#take(attempt, head, from);
    clearInterval(this.#watch);
    // Each of the others would bring the whole, too; errors are short and break no connection.
    if (head.statusCode !== 200) return;
    for (const { abort } of this.#underWay) if (abort !== attempt.abort) abort.abort();
  }

  async #take({ piece, route, abort }: Attempt, head: PieceHead, from: number): Promise<void> {
    const { from: sentFrom, to, total } = contentRange(head);
    if (sentFrom !== from || to > piece.to || (to < piece.to && to !== total)) {
      throw new FirstlightError('corrupt', 'the server gave another range than was asked for');
    }
    this.#end = Math.min(this.#end, total);
    for await (const chunk of head.body) {
      // What was given up has been asked for again.
      abort.signal.throwIfAborted();
      this.#routes.moved(route, (chunk as Buffer).length);
      this.#arrived(piece, chunk as Buffer);
      if (this.readableLength >= READY_BYTES) await this.#routes.hold(route, this.#room());
    }
    if (piece.from + piece.received < to) {
      throw new FirstlightError('unreachable', 'the server ended its answer too early');
    }
  }

  /** The bundle ends somewhere before a piece: that and all after it do not exist. */
  #endsBefore(piece: Piece): void {
    const at = this.#pieces.indexOf(piece);
    if (at >= 0) this.#pieces.length = at;
    this.#end = Math.min(this.#end, piece.from);
  }

  #arrived(piece: Piece, chunk: Buffer): void {
    this.#pace.received(chunk.length);
    piece.received += chunk.length;
    piece.chunks.push(chunk);
    if (this.#pieces[0] === piece) this.#giveOut();
    this.#fill();
  }

  /** Gives out what has come of the first piece, and of those after it once it is whole. */
  #giveOut(): void {
    if (this.destroyed) return;
    for (;;) {
      const piece = this.#pieces[0];
      if (piece === undefined) break;
      for (const chunk of piece.chunks.splice(0)) {
        this.#givenOut += chunk.length;
        this.push(chunk);
      }
      if (piece.from + piece.received < Math.min(piece.to, this.#end)) return;
      this.#pieces.shift();
    }
    if (this.#nextFrom < this.#end || this.#finished) return;
    this.#finished = true;
    clearInterval(this.#watch);
    this.push(null);
  }
}
