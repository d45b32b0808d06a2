// The connections that the pieces of a bundle are on their way over: which gets the next piece, and which has fallen
// silent while others live. What does not live here: pieces, and their order (striped.ts).

/** Requests that are under way on each connection. */
export const PIPELINED = 4;

/**
 * On a slow line connections take turns: one that brings nothing is no more than waiting for its own as long as the others
 * have not brought so many bytes meanwhile.
 */
const TURNS_BYTES = 256 << 10;

/** A request that is on its way over a route. */
export interface Underway {
  /** Of silence on its route, before it is asked for elsewhere. */
  readonly silentMs: number;
}

/** One connection, as the pieces of one bundle see it. */
export interface Route<A extends Underway> {
  /** Its index; undefined: one that has nothing else to bring. */
  readonly connection: number | undefined;
  /** In the order in which they were asked for, which is that of their answers. */
  readonly attempts: Set<A>;
  /** Bytes that it has been asked for so far. */
  askedBytes: number;
  /** It has answered since it was made, or failed last. */
  isUp: boolean;
  /** It has failed, or fallen silent, and brought nothing since. */
  isDown: boolean;
  /** Answers that have come and wait for us. */
  held: number;
  /** When something came last, or was asked for while nothing was under way, in ms. */
  movedAt: number;
  /** Bytes that had come on all of them by then. */
  allBytes: number;
}

/** See the head of this file. */
export class PieceRoutes<A extends Underway> {
  readonly #routes: Route<A>[];
  readonly #own = new Set<Route<A>>();
  readonly #silentMs: number;
  readonly #now: () => number;
  /** Bytes that have come on all of them. */
  #bytes = 0;
  /** Of somebody else from now on. */
  #left: Route<A> | undefined;

  /** @param now  a clock, in ms */
  constructor(connections: number, silentMs: number, now: () => number) {
    this.#routes = Array.from({ length: connections }, (_, index) => makeRoute<A>(index));
    this.#silentMs = silentMs;
    this.#now = now;
  }

  /** Somebody else has this one from now on. */
  leave(connection: number): void {
    this.#left = this.#routes[connection];
  }

  /** A route that brings one request and nothing else. */
  apart(): Route<A> {
    const route = makeRoute<A>(undefined);
    this.#own.add(route);
    return route;
  }

  begin(route: Route<A>, attempt: A): void {
    if (route.attempts.size === 0) this.#start(route);
    route.attempts.add(attempt);
  }

  end(route: Route<A>, attempt: A): void {
    route.attempts.delete(attempt);
    if (route.connection === undefined) this.#own.delete(route);
  }

  /** Something has come: so many bytes of a body, or a head. */
  moved(route: Route<A>, bytes = 0): void {
    this.#bytes += bytes;
    this.#start(route);
    route.isUp = true;
    route.isDown = false;
  }

  /** It has failed, or is given up as silent. */
  down(route: Route<A>): void {
    route.isUp = false;
    route.isDown = true;
  }

  /** Silence counts from now on: till now everybody may have waited for the server. */
  startAll(): void {
    for (const route of this.#all()) this.#start(route);
  }

  #start(route: Route<A>): void {
    route.movedAt = this.#now();
    route.allBytes = this.#bytes;
  }

  /** What has come on a route waits until `work` is done: that is no silence. */
  async hold<T>(route: Route<A>, work: Promise<T>): Promise<T> {
    route.held++;
    try {
      return await work;
    } finally {
      route.held--;
      this.#start(route);
    }
  }

  /**
   * For the next piece: the one that has been asked for least so far, of those with room. Windows grow with what they
   * have carried, and a piece too many on one of them holds up all that follows by a round trip.
   */
  next(): Route<A> | undefined {
    const all = this.#routes.filter((route) => route !== this.#left);
    const working = all.filter(({ isDown }) => !isDown);
    let found: Route<A> | undefined;
    for (const route of working.length > 0 ? working : all) {
      if (route.attempts.size >= PIPELINED) continue;
      if (found === undefined || route.askedBytes < found.askedBytes) found = route;
    }
    return found;
  }

  /** One that lives, other than this one, or at least works: of several the one with least under way. */
  other(route: Route<A>, least: 'up' | 'live'): Route<A> | undefined {
    const working = this.#routes.filter(
      (one) => one !== route && one !== this.#left && one.isUp && !one.isDown,
    );
    const live = working.filter((one) => this.#isLive(one));
    const some = live.length > 0 || least === 'live' ? live : working;
    return some.toSorted((a, b) => a.attempts.size - b.attempts.size)[0];
  }

  /** It has brought something, and lately where something is awaited of it. */
  #isLive(route: Route<A>): boolean {
    return route.isUp && this.#idleMs(route) < this.#silentMs / 2;
  }

  /** The same of a connection by its index. */
  lives(connection: number): boolean {
    return this.#isLive(this.#routes[connection]!);
  }

  /**
   * Those that have fallen silent, as far as something is to be done about it.
   * @param first  the request that everything waits for. Where none lives it is not known whether it is for
   *   the line or the server, and that one alone is asked for again.
   */
  silent(first: A | undefined): Route<A>[] {
    const all = this.#all();
    const silent = all.filter((route) => {
      const [head] = route.attempts;
      return head !== undefined && this.#idleMs(route) >= head.silentMs;
    });
    const live = all.filter((route) => this.#isLive(route));
    if (live.some(({ attempts, held }) => attempts.size > 0 && held === 0)) {
      return silent.filter(({ allBytes }) => this.#bytes - allBytes >= TURNS_BYTES);
    }
    if (live.length > 0) return silent;
    return silent.filter(({ attempts }) => first !== undefined && attempts.has(first));
  }

  /** How long nothing has come of what is awaited, in ms. */
  #idleMs({ attempts, held, movedAt }: Route<A>): number {
    return attempts.size === 0 || held > 0 ? 0 : this.#now() - movedAt;
  }

  #all(): Route<A>[] {
    return [...this.#routes, ...this.#own];
  }
}

function makeRoute<A extends Underway>(connection: number | undefined): Route<A> {
  const state = { askedBytes: 0, isUp: false, isDown: false, held: 0, movedAt: 0, allBytes: 0 };
  return { connection, attempts: new Set<A>(), ...state };
}
