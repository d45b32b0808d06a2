// One bundle over several connections at once: its bytes are asked for in pieces, which travel beside
// each other and come out in order. Each connection begins with a small window that doubles every round trip
// (slow start); eight of them begin with eight windows, which saves three round trips. What does
// not live here: what the bytes mean (header.ts, transfer.ts), a single request (delta-client.ts).
//
// The first pieces are as small as the windows are, so that what stands first in the bundle, its
// header, comes over all connections together; the later ones grow with the windows. A few are asked
// for ahead on each connection (pipelining), so that none waits for a request to travel. Whoever reads says
// after the header where to stop (`stopAt`): some of the connections carry the rest (frame-stream.ts,
// stream-lanes.ts). They have grown by then, and frames that a reader waits for come over the others.
import { Readable } from 'node:stream';
import { FirstlightError } from '../errors/errors.ts';

/** Bytes of the first pieces: with the answer's head an initial window of ten segments. */
const FIRST_BYTES = 13 << 10;
/** Most bytes of a piece: a connection that breaks loses no more than its pieces. */
const MOST_BYTES = 512 << 10;
/** Requests that are under way on each connection. */
export const PIPELINED = 4;
/** Bytes that come in pieces, but no more than the line brings in this time. */
const STRIPED_BYTES = 4 << 20;
const STRIPED_MS = 4000;
/**
 * Beyond the first pieces so many bytes are asked for, for each that has come: slow start doubles what is under
 * way with each round trip, which takes 2, and one more for answers that come late.
 */
const ASK_FACTOR = 3;
/**
 * Or what the line would bring in this time at the rate seen so far, if that is more: then a processor that
 * decodes the header meanwhile keeps no round trip waiting. On a slow line it is not, and the
 * header does not share the line with much else.
 */
const ASK_MS = 500;
/** A few packets that come at once say nothing of a rate. */
const BURST_MS = 20;

/** Bytes that may lie here before they are taken. */
const READY_BYTES = 1 << 20;
/** Requests for one piece before the whole is given up. */
const ATTEMPTS = 3;

/** The head of an answer. */
export interface PieceHead {
  statusCode: number;
  headers: Record<string, string | string[] | undefined>;
  body: Readable;
}

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
  attempts: number;
}

/** How the striping goes: bytes, and connections. */
export interface StripedOptions {
  connections: number;
  ask: AskPiece;
  /** Checks the head of a later piece against that of the first; throws where it is another bundle. */
  check: (head: PieceHead) => void;
  /** Takes note of the first head, where it is that of a part; throws where it is no bundle's. */
  named: (head: PieceHead) => void;
  /** A clock, in ms. */
  now?: () => number;
}

/** True where an error is an answer, and asking again would not change it. */
function isFinal(error: unknown): boolean {
  return error instanceof FirstlightError && error.kind !== 'unreachable';
}

/** A bundle's bytes in order, from several connections. */
export class StripedBody extends Readable {
  readonly #options: StripedOptions;
  /** Of the first request, and of all others. */
  readonly #firstAbort = new AbortController();
  readonly #abort = new AbortController();
  /** Pieces that have been asked for and not all been given out, in order. */
  readonly #pieces: Piece[] = [];
  readonly #underWay: number[];
  /** Bytes that each connection has been asked for so far. */
  readonly #askedOf: number[];
  readonly #now: () => number;
  /** Index and offset of the next piece to ask for. */
  #nextIndex = 0;
  #nextFrom: number;
  readonly #start: number;
  /** The end of the bundle, once an answer has named it, or where to stop before that. */
  #end: number;
  readonly #first = Promise.withResolvers<PieceHead>();
  #headKnown = false;
  #wake: (() => void) | undefined;
  #roomMade: Promise<void> | undefined;
  #finished = false;
  /** Bytes that have come, and that have been given out. */
  #received = 0;
  #givenOut = 0;
  #firstByteAt = 0;
  #stopped = false;
  /** Somebody else reads the first answer: nothing more is asked for. */
  #abandoned = false;

  constructor(from: number, end: number | undefined, options: StripedOptions) {
    super({ highWaterMark: MOST_BYTES });
    this.#options = options;
    this.#nextFrom = from;
    this.#start = from;
    this.#now = options.now ?? (() => performance.now());
    this.#end = end ?? Number.POSITIVE_INFINITY;
    this.#underWay = Array.from({ length: options.connections }, () => 0);
    this.#askedOf = Array.from({ length: options.connections }, () => 0);
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
    const bytes = Math.min(STRIPED_BYTES, this.#bytesPerMs() * STRIPED_MS);
    return Math.max(this.#nextFrom, this.#start + Math.ceil(bytes));
  }

  /** After `stopAt`: nothing more will be asked for, unless a connection breaks. */
  get allAsked(): boolean {
    return this.#stopped && this.#nextFrom >= this.#end;
  }

  /**
   * Nothing from this byte of the bundle on is asked for: the body ends there.
   * @param left  a connection that is somebody else's from now on. Whatever came behind their bytes
   * would wait until they are read, and they are read after the bytes of this body.
   */
  stopAt(end: number, left?: number): void {
    this.#stopped = true;
    if (left !== undefined) this.#underWay[left] = Number.POSITIVE_INFINITY;
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
    // After a proper end only answers without content are on their way: aborting them would break
    // connections that are to be kept.
    if (error !== null || !this.#finished) {
      this.#abort.abort();
      this.#firstAbort.abort();
    }
    this.#wake?.();
    this.#first.reject(error ?? new Error('the body was given up'));
    callback(error);
  }

  /** Asks for more pieces where connections have room. */
  #fill(): void {
    while (!this.destroyed && !this.#abandoned && this.#nextFrom < this.#end) {
      if (this.#nextFrom - this.#start >= this.#mostAsked()) return;
      const connection = this.#nextConnection();
      if (connection === undefined) return;
      const round = Math.floor(this.#nextIndex / this.#options.connections);
      const bytes = Math.min(MOST_BYTES, FIRST_BYTES * 2 ** Math.min(round, 16));
      this.#askPiece(Math.min(this.#end, this.#nextFrom + bytes), connection);
    }
  }

  /**
   * The one that has been asked for least so far, of those with room: windows grow with what they have
   * carried, and a piece too many on one of them holds up all that follows by a round trip.
   */
  #nextConnection(): number | undefined {
    let found: number | undefined;
    for (const [connection, underWay] of this.#underWay.entries()) {
      if (underWay >= PIPELINED) continue;
      if (found === undefined || this.#askedOf[connection]! < this.#askedOf[found]!) {
        found = connection;
      }
    }
    return found;
  }

  /** Since the first byte; rather too low. */
  #bytesPerMs(): number {
    return this.#received / (this.#now() - this.#firstByteAt + BURST_MS);
  }

  /** Bytes that may have been asked for by now. */
  #mostAsked(): number {
    const first = FIRST_BYTES * this.#options.connections;
    const most = first + Math.max(ASK_FACTOR * this.#received, ASK_MS * this.#bytesPerMs());
    // So much may not exist, or nobody has said yet how much of it is to come this way.
    if (!this.#stopped && most > STRIPED_BYTES) {
      if (!Number.isFinite(this.#end)) return STRIPED_BYTES;
      return Math.max(STRIPED_BYTES, this.#givenOut - this.readableLength + READY_BYTES);
    }
    return most;
  }

  #askPiece(to: number, connection: number): void {
    const piece = { from: this.#nextFrom, to, received: 0, chunks: [], attempts: 0 };
    this.#pieces.push(piece);
    this.#askedOf[connection]! += to - this.#nextFrom;
    this.#nextFrom = to;
    void this.#fetch(piece, connection, this.#nextIndex++ === 0);
  }

  async #fetch(piece: Piece, connection: number | undefined, isFirst: boolean): Promise<void> {
    if (connection !== undefined) this.#underWay[connection]! += 1;
    try {
      await this.#attempt(piece, connection, isFirst);
    } catch (error) {
      void this.#failed(piece, isFirst, error as Error);
    } finally {
      if (connection !== undefined) this.#underWay[connection]! -= 1;
      this.#giveOut();
      this.#fill();
    }
  }

  /**
   * A connection has broken, or could not be made: the first one, which works, brings the rest. Not after `stopAt`: what
   * follows this body may have been asked for over all of them, is read after it, and would not let it pass.
   */
  async #failed(piece: Piece, isFirst: boolean, error: Error): Promise<void> {
    if (this.destroyed || this.#abandoned) return;
    const hopeless = isFinal(error) || ++piece.attempts >= ATTEMPTS;
    if (hopeless || (isFirst && !this.#headKnown)) {
      this.destroy(error);
      return;
    }
    // Where there is no first answer, whoever waits for that hears why.
    const answered = await this.#first.promise.then(
      () => true,
      () => false,
    );
    if (!answered || this.destroyed || this.#abandoned) return;
    const working = Math.max(0, this.#underWay.findIndex(Number.isFinite));
    void this.#fetch(piece, this.#stopped ? undefined : working, false);
  }

  async #attempt(piece: Piece, connection: number | undefined, isFirst: boolean): Promise<void> {
    const from = piece.from + piece.received;
    if (from >= Math.min(piece.to, this.#end)) return;
    const { signal } = isFirst ? this.#firstAbort : this.#abort;
    const head = await this.#options.ask(connection, from, piece.to, signal);
    if (isFirst) {
      const isPart = head.statusCode === 206;
      if (isPart) this.#options.named(head);
      this.#headKnown = isPart;
      // Whatever it is but a part: whoever waits for the head deals with it, body included.
      this.#abandoned = !isPart;
      this.#first.resolve(head);
      if (isPart) return this.#take(piece, head, from);
      // Each of the others would bring the whole, too; errors are short and break no connection.
      if (head.statusCode === 200) this.#abort.abort();
      return;
    }
    head.body.on('error', () => undefined);
    await this.#first.promise;
    if (this.#abandoned || head.statusCode === 416) {
      // The end of the bundle lies before this piece, or there is no bundle.
      head.body.resume();
      if (!this.#abandoned) this.#endsBefore(piece);
      return;
    }
    try {
      this.#options.check(head);
      await this.#take(piece, head, from);
    } catch (error) {
      // What nobody reads would hold up everything behind it on this connection.
      head.body.destroy();
      throw error;
    }
  }

  async #take(piece: Piece, head: PieceHead, from: number): Promise<void> {
    const { from: sentFrom, to, total } = contentRange(head);
    if (sentFrom !== from || to > piece.to || (to < piece.to && to !== total)) {
      throw new FirstlightError('corrupt', 'the server gave another range than was asked for');
    }
    this.#end = Math.min(this.#end, total);
    for await (const chunk of head.body) {
      this.#arrived(piece, chunk as Buffer);
      if (this.readableLength >= READY_BYTES) await this.#room();
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
    if (this.#received === 0) this.#firstByteAt = this.#now();
    this.#received += chunk.length;
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
    this.push(null);
  }
}

/** `Content-Range: bytes FROM-LAST/TOTAL`, with the end exclusive. */
function contentRange(head: PieceHead): { from: number; to: number; total: number } {
  const value = head.headers['content-range'];
  const match = /^bytes (\d+)-(\d+)\/(\d+)$/.exec(typeof value === 'string' ? value : '');
  if (match === null)
    throw new FirstlightError(
      'corrupt',
      'the answer of the server is a part that does not name its range',
    );
  return { from: Number(match[1]), to: Number(match[2]) + 1, total: Number(match[3]) };
}
