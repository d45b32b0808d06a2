// Which connections carry one stream: its own, and beside it some that are idle. What does not live here: the
// connections (connections.ts), what the stream asks for (frame-stream.ts).
//
// The kernel at the server grows each connection's window for itself, and stops the quick growth of slow start when
// round trips become longer (HyStart). Bursts of connections that begin side by side queue behind each other, so that
// most of them stop at some hundred segments, and which ones is chance: a stream that has drawn one of those
// has a tenth of the line for seconds, while the others rest. Shared out by which connection will have brought
// a run first, a stream has the windows of several together, and those that are wide bring more of it.
//
// On a line that is the bottleneck each connection gets the same share, so that a frame that a reader waits
// for would have a fifth of it beside four of the stream. While readers wait, what is asked for anew goes over one.
import type { Readable } from 'node:stream';
import { SILENT_MS } from './silence.ts';

/** A connection as a stream sees it. */
export interface Carrier {
  readonly client: { readonly stats: { connected: boolean; size: number } };
  /** Some stream has it for itself. */
  taken: boolean;
}

/** With less than this under way its own connection is enough: a slow line is shared with few. */
const ALONE_BYTES = 256 << 10;

/** What one connection has been asked for and not brought, and how fast it was. */
interface Load {
  runs: number;
  bytes: number;
  /** Bytes that came, and ms in which some were awaited; older ones count less. */
  brought: number;
  busyMs: number;
  busySince: number;
  /** When something came last, or was asked for while nothing was under way. */
  movedAt: number;
}

/** A run that has been given to a connection. */
export interface LaneRun<L> {
  lane: L;
  /** Its bytes are counted as they come. */
  follow(body: Readable): void;
  /** It is over, or has failed. Idempotent. */
  over(): void;
}

export class StreamLanes<L extends Carrier> {
  readonly #own: L;
  readonly #all: readonly L[];
  readonly #mayShare: () => boolean;
  readonly #readersWait: () => boolean;
  readonly #silentMs: number;
  readonly #loads = new Map<L, Load>();
  readonly #now: () => number;
  #released = false;

  /**
   * @param own       is taken from now on
   * @param all       of which streams share out at most half: the rest are for what readers wait for, and headers
   * @param mayShare  false as long as nothing may be asked for over others than its own
   * @param readersWait  true while something else is on its way that a reader waits for
   * @param silentMs  one that has brought nothing for so long may be dead, and gets nothing more
   * @param now       a clock, in ms
   */
  constructor(
    own: L,
    all: readonly L[],
    mayShare: () => boolean,
    readersWait: () => boolean = () => false,
    silentMs = SILENT_MS,
    now: () => number = () => performance.now(),
  ) {
    this.#own = own;
    this.#all = all;
    this.#mayShare = mayShare;
    this.#readersWait = readersWait;
    this.#silentMs = silentMs;
    this.#now = now;
    this.#take(own);
  }

  #take(lane: L): Load {
    const load = { runs: 0, bytes: 0, brought: 0, busyMs: 0, busySince: 0, movedAt: 0 };
    lane.taken = true;
    this.#loads.set(lane, load);
    return load;
  }

  /** The connection for a run of so many bytes. */
  next(bytes: number): LaneRun<L> {
    const lane = this.#choose(bytes);
    const load = this.#loads.get(lane) ?? this.#take(lane);
    if (load.runs === 0) load.busySince = load.movedAt = this.#now();
    load.runs += 1;
    load.bytes += bytes;
    let left = bytes;
    let isOver = false;
    const over = () => {
      if (isOver) return;
      isOver = true;
      load.runs -= 1;
      load.bytes -= left;
      this.#age(load);
      this.#giveBack(lane, load);
    };
    const follow = (body: Readable) => {
      body.on('data', (chunk: Buffer) => {
        if (isOver) return;
        left -= chunk.length;
        load.bytes -= chunk.length;
        load.brought += chunk.length;
        load.movedAt = this.#now();
      });
      body.once('close', over);
    };
    return { lane, follow, over };
  }

  /** A run has ended: what it showed of the connection's speed counts twice what was seen before. */
  #age(load: Load): void {
    const now = this.#now();
    load.busyMs = (load.busyMs + now - load.busySince) / 2;
    load.brought /= 2;
    load.busySince = now;
  }

  /** Something is awaited, and nothing has come for long. */
  #isSilent({ runs, movedAt }: Load): boolean {
    return runs > 0 && this.#now() - movedAt >= this.#silentMs;
  }

  /** In bytes per ms; undefined where nothing has come, and no run has been broken off before. */
  #speed({ runs, brought, busyMs, busySince }: Load): number | undefined {
    if (brought === 0 && busyMs === 0) return undefined;
    return brought / (busyMs + (runs === 0 ? 0 : this.#now() - busySince) + 1);
  }

  /** Of those that have shown how fast they are, else the first. */
  #fastest(loads: readonly (readonly [L, Load])[]): L {
    let found = loads[0]![0];
    let most = 0;
    for (const [lane, load] of loads) {
      const speed = this.#speed(load) ?? 0;
      if (speed > most) [found, most] = [lane, speed];
    }
    return found;
  }

  /** The one that will have brought the run first: one that has not been tried is taken for as fast as any. */
  #choose(bytes: number): L {
    // Its own stands first, having been taken first.
    const loads = [...this.#loads].filter(([, load]) => !this.#isSilent(load));
    if (loads.length === 0) return this.#idle() ?? this.#own;
    const underWay = loads.reduce((sum, [, load]) => sum + load.bytes, 0);
    if (underWay + bytes < ALONE_BYTES || !this.#mayShare()) return loads[0]![0];
    if (this.#readersWait()) return this.#fastest(loads);
    const best = Math.max(1, ...loads.map(([, load]) => this.#speed(load) ?? 0));
    let found = loads[0]![0];
    let soonest = Number.POSITIVE_INFINITY;
    for (const [lane, load] of loads) {
      const ms = (load.bytes + bytes) / (this.#speed(load) ?? best);
      if (ms < soonest) [found, soonest] = [lane, ms];
    }
    // Those of other streams count: a further image's header and its readers need some, too.
    const taken = this.#all.filter((lane) => lane.taken).length;
    if (soonest <= bytes / best || taken >= this.#all.length / 2) return found;
    return this.#idle() ?? found;
  }

  #idle(): L | undefined {
    return this.#all.find(
      ({ taken, client }) => !taken && client.stats.connected && client.stats.size === 0,
    );
  }

  /** The stream has ended: each connection is for others as soon as it has nothing to bring. */
  release(): void {
    this.#released = true;
    for (const [lane, load] of this.#loads) {
      if (lane === this.#own) lane.taken = false;
      else this.#giveBack(lane, load);
    }
  }

  #giveBack(lane: L, load: Load): void {
    if (this.#released && load.runs === 0 && lane !== this.#own) lane.taken = false;
  }
}
