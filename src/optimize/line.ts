// A wide-area line in simulated time: one bottleneck, a round trip, and connections that share it,
// each with TCP's slow start. No loss: what a real line loses by it stands in the tests, beside
// measured times.
import { FirstlightError } from '../errors/errors.ts';

/** What is simulated of the network. */
export interface LineOptions {
  bytesPerSecond: number;
  roundTripMs: number;
}

/** First window of a connection: ten segments of 1,460 bytes (RFC 6928). */
const INITIAL_WINDOW_BYTES = 14_600;
/** What is sent at a time: half of that; more where there would be very many of them. */
const QUANTUM_BYTES = 7_300;
const QUANTA_MAX = 200_000;

interface Event {
  atMs: number;
  /** Events of one moment happen in the order they were made. */
  order: number;
  run(): void;
}

/** Simulated time: runs events in order. */
export class Clock {
  nowMs = 0;
  /** Binary heap. */
  readonly #heap: Event[] = [];
  #made = 0;

  at(atMs: number, run: () => void): void {
    const heap = this.#heap;
    const event = { atMs: Math.max(atMs, this.nowMs), order: this.#made++, run };
    let at = heap.push(event) - 1;
    while (at > 0) {
      const parent = (at - 1) >> 1;
      if (before(heap[parent]!, event)) break;
      heap[at] = heap[parent]!;
      at = parent;
    }
    heap[at] = event;
  }

  after(ms: number, run: () => void): void {
    this.at(this.nowMs + ms, run);
  }

  /** Runs until nothing is left. */
  run(): void {
    for (let event = this.#take(); event !== undefined; event = this.#take()) {
      this.nowMs = event.atMs;
      event.run();
    }
  }

  #take(): Event | undefined {
    const heap = this.#heap;
    const first = heap[0];
    const last = heap.pop();
    if (first === undefined || last === undefined || heap.length === 0) return first;
    let at = 0;
    for (;;) {
      let child = 2 * at + 1;
      if (child >= heap.length) break;
      if (child + 1 < heap.length && before(heap[child + 1]!, heap[child]!)) child++;
      if (before(last, heap[child]!)) break;
      heap[at] = heap[child]!;
      at = child;
    }
    heap[at] = last;
    return first;
  }
}

function before(x: Event, y: Event): boolean {
  return x.atMs < y.atMs || (x.atMs === y.atMs && x.order < y.order);
}

/** One connection, as its server sees it. */
export class Connection {
  readonly queue: { bytes: number; arrived: () => void }[] = [];
  /** Bytes that may be on their way unacknowledged. */
  windowBytes: number;
  inFlightBytes = 0;
  readonly #line: Line;

  constructor(line: Line, windowBytes: number) {
    this.#line = line;
    this.windowBytes = windowBytes;
  }

  /** Sends bytes; `arrived` runs when the last of them is there. */
  send(bytes: number, arrived: () => void): void {
    this.queue.push({ bytes, arrived });
    this.#line.pump();
  }

  get canSend(): boolean {
    return this.queue.length > 0 && this.inFlightBytes < this.windowBytes;
  }
}

/** The line. */
export class Line {
  readonly clock: Clock;
  readonly #options: LineOptions;
  readonly #connections: Connection[] = [];
  readonly #quantumBytes: number;
  readonly #windowMaxBytes: number;
  #busy = false;
  /** The connection that sends next, where it can. */
  #turn = 0;

  /**
   * @param totalBytes  about how much will be sent
   * @throws FirstlightError `usage` where the options are no positive numbers
   */
  constructor(clock: Clock, options: LineOptions, totalBytes: number) {
    const { bytesPerSecond, roundTripMs } = options;
    if (!(bytesPerSecond >= 1) || !Number.isFinite(bytesPerSecond)) {
      throw new FirstlightError('usage', `a bandwidth of ${bytesPerSecond} bytes a second`, {
        hint: 'it has to be at least one byte a second',
      });
    }
    if (!(roundTripMs >= 0) || !Number.isFinite(roundTripMs)) {
      throw new FirstlightError('usage', `a round trip of ${roundTripMs} ms`);
    }
    this.clock = clock;
    this.#options = options;
    this.#quantumBytes = Math.max(QUANTUM_BYTES, Math.ceil(totalBytes / QUANTA_MAX));
    // Room for what the line holds, and for a queue before it.
    const heldBytes = (bytesPerSecond * roundTripMs) / 1000;
    this.#windowMaxBytes = Math.max(4 * INITIAL_WINDOW_BYTES, 1.5 * heldBytes);
  }

  /** @param warm  it has moved so much before that its window is open */
  connect(warm: boolean): Connection {
    const window = warm ? this.#windowMaxBytes : INITIAL_WINDOW_BYTES;
    const connection = new Connection(this, window);
    this.#connections.push(connection);
    return connection;
  }

  /** Bytes that a connection brings in a millisecond, as things stand. */
  bytesPerMs(connection: Connection): number {
    const { bytesPerSecond, roundTripMs } = this.#options;
    const sharing = this.#connections.filter(({ queue }) => queue.length > 0).length;
    const share = bytesPerSecond / 1000 / Math.max(1, sharing);
    return roundTripMs === 0 ? share : Math.min(share, connection.windowBytes / roundTripMs);
  }

  /** Sends the next piece, where the line is free and a connection may. */
  pump(): void {
    if (this.#busy) return;
    const connection = this.#next();
    if (connection === undefined) return;
    const { bytesPerSecond, roundTripMs } = this.#options;
    const head = connection.queue[0]!;
    const bytes = Math.min(this.#quantumBytes, head.bytes);
    head.bytes -= bytes;
    const last = head.bytes === 0;
    if (last) connection.queue.shift();
    connection.inFlightBytes += bytes;
    this.#busy = true;
    this.clock.after((bytes / bytesPerSecond) * 1000, () => {
      this.#busy = false;
      if (last) this.clock.after(roundTripMs / 2, head.arrived);
      this.clock.after(roundTripMs, () => {
        connection.inFlightBytes -= bytes;
        const opened = connection.windowBytes + bytes;
        connection.windowBytes = Math.min(this.#windowMaxBytes, opened);
        this.pump();
      });
      this.pump();
    });
  }

  #next(): Connection | undefined {
    const count = this.#connections.length;
    for (let i = 0; i < count; i++) {
      const connection = this.#connections[(this.#turn + i) % count]!;
      if (!connection.canSend) continue;
      this.#turn = (this.#turn + i + 1) % count;
      return connection;
    }
    return undefined;
  }
}
