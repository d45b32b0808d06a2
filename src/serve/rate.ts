// The server's send rate: one token bucket for all connections, dealt out in small chunks, round
// robin, so that a short answer is not stuck behind a long one. What does not live here: sockets.
import { setTimeout } from 'node:timers/promises';
import { FirstlightError } from '../errors/errors.ts';

/** Bytes that a connection is granted at a time. */
export const CHUNK_BYTES = 16 << 10;
/** What is sent at once is never more than the line carries in this time. */
const BURST_MS = 10;
/**
 * Time that was lost while there was something to send (a busy processor wakes this process late, far beyond
 * BURST_MS) is made up for, up to this much of it, by sending a little faster than the rate. */
const CREDIT_MS = 200;
const CATCH_UP = 1.5;
/** A line that nobody has wanted for this long is idle, and what it did not carry is gone. */
const IDLE_MS = 50;

const UNITS: Record<string, number> = {
  bit: 1,
  kbit: 1e3,
  mbit: 1e6,
  gbit: 1e9,
  'b/s': 8,
  'kb/s': 8e3,
  'mb/s': 8e6,
  'gb/s': 8e9,
};

/**
 * Parses a rate as `--rate` takes it: `100mbit` (tc's way, decimal), `12.5MB/s` (bytes, decimal) or `off`.
 * @returns bits per second, or undefined for `off`
 * @throws FirstlightError 'usage'
 */
export function parseRate(text: string): number | undefined {
  if (text === 'off') return undefined;
  const match = /^([0-9]+(?:\.[0-9]+)?)\s*([a-z/]+)$/i.exec(text);
  const unit = match === null ? undefined : UNITS[match[2]!.toLowerCase().replace(/^bps$/, 'bit')];
  const bits = match === null || unit === undefined ? Number.NaN : Number(match[1]) * unit;
  if (!(bits >= 1000 && bits <= 1e12)) {
    throw new FirstlightError('usage', `bad rate '${text}'`, {
      hint: 'write 100mbit, 12.5MB/s or off, between 1kbit and 1000gbit',
    });
  }
  return bits;
}

/** Time as the limiter sees it, in ms; tests bring their own. */
export interface Clock {
  now(): number;
  sleep(ms: number): Promise<unknown>;
}

const REAL: Clock = { now: () => performance.now(), sleep: (ms) => setTimeout(ms) };

interface Waiter {
  bytes: number;
  resolve(): void;
  reject(reason: unknown): void;
  signal: AbortSignal | undefined;
}

/** Two token buckets, one for the average and one for the burst, with a queue. */
export class RateLimiter {
  readonly #clock: Clock;
  readonly #bytesPerMs: number;
  readonly #burstBytes: number;
  readonly #creditBytes: number;
  /** Bytes that the average allows now ... */
  #credit: number;
  /** ... and that may go out at once. */
  #burst: number;
  #filledAt: number;
  #wantedAt: number;
  readonly #queue: Waiter[] = [];
  #running = false;

  constructor(bitsPerSecond: number, clock: Clock = REAL) {
    this.#clock = clock;
    this.#bytesPerMs = bitsPerSecond / 8 / 1000;
    this.#burstBytes = Math.max(CHUNK_BYTES, this.#bytesPerMs * BURST_MS);
    this.#creditBytes = Math.max(this.#burstBytes, this.#bytesPerMs * CREDIT_MS);
    this.#credit = this.#burstBytes;
    this.#burst = this.#burstBytes;
    this.#filledAt = this.#clock.now();
    this.#wantedAt = this.#filledAt;
  }

  /**
   * Resolves when `bytes` (at most CHUNK_BYTES) may be sent. A connection that asks for one chunk after the other
   * stands behind every other waiting connection each time: round robin.
   */
  take(bytes: number, signal?: AbortSignal): Promise<void> {
    return new Promise((resolve, reject) => {
      this.#queue.push({ bytes, resolve, reject, signal });
      if (this.#running) return;
      this.#fill();
      if (this.#filledAt - this.#wantedAt > IDLE_MS) {
        this.#credit = Math.min(this.#credit, this.#burstBytes);
      }
      void this.#run();
    });
  }

  #fill(): void {
    const now = this.#clock.now();
    const earned = (now - this.#filledAt) * this.#bytesPerMs;
    this.#credit = Math.min(this.#creditBytes, this.#credit + earned);
    this.#burst = Math.min(this.#burstBytes, this.#burst + earned * CATCH_UP);
    this.#filledAt = now;
  }

  async #run(): Promise<void> {
    this.#running = true;
    while (this.#queue.length > 0) {
      const next = this.#queue[0]!;
      if (next.signal?.aborted) {
        this.#queue.shift();
        next.reject(next.signal.reason);
        continue;
      }
      this.#fill();
      const missing = Math.max(next.bytes - this.#credit, (next.bytes - this.#burst) / CATCH_UP);
      if (missing <= 0) {
        this.#credit -= next.bytes;
        this.#burst -= next.bytes;
        this.#queue.shift();
        next.resolve();
        // The one just served may ask again before the next decision, and finds its place at the end.
        await Promise.resolve();
      } else {
        await this.#clock.sleep(Math.max(1, missing / this.#bytesPerMs));
      }
    }
    this.#running = false;
    this.#wantedAt = this.#clock.now();
  }
}
