// The server's send rate: one token bucket for all connections, dealt out in small chunks, round
// robin, so that a short answer is not stuck behind a long one. What does not live here: sockets.
import { setTimeout as sleep } from 'node:timers/promises';
import { FirstlightError } from '../errors/errors.ts';

/** Bytes that a connection is granted at a time. */
export const CHUNK_BYTES = 16 << 10;
/** The bucket holds what the line carries in this time: longer pauses are not made up for. */
const BURST_MS = 10;

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

interface Waiter {
  bytes: number;
  resolve(): void;
  reject(reason: unknown): void;
  signal: AbortSignal | undefined;
}

/** A token bucket with a queue. */
export class RateLimiter {
  readonly #bytesPerMs: number;
  readonly #capacity: number;
  #tokens: number;
  #filledAt: number;
  readonly #queue: Waiter[] = [];
  #running = false;

  constructor(bitsPerSecond: number) {
    this.#bytesPerMs = bitsPerSecond / 8 / 1000;
    this.#capacity = Math.max(CHUNK_BYTES, this.#bytesPerMs * BURST_MS);
    this.#tokens = this.#capacity;
    this.#filledAt = performance.now();
  }

  /**
   * Resolves when `bytes` (at most CHUNK_BYTES) may be sent. A connection that asks for one chunk after the other
   * stands behind every other waiting connection each time: round robin.
   */
  take(bytes: number, signal?: AbortSignal): Promise<void> {
    return new Promise((resolve, reject) => {
      this.#queue.push({ bytes, resolve, reject, signal });
      if (!this.#running) void this.#run();
    });
  }

  #fill(): void {
    const now = performance.now();
    const earned = (now - this.#filledAt) * this.#bytesPerMs;
    this.#tokens = Math.min(this.#capacity, this.#tokens + earned);
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
      if (this.#tokens >= next.bytes) {
        this.#tokens -= next.bytes;
        this.#queue.shift();
        next.resolve();
        // The one just served may ask again before the next decision, and finds its place at the end.
        await Promise.resolve();
      } else {
        await sleep(Math.max(1, (next.bytes - this.#tokens) / this.#bytesPerMs));
      }
    }
    this.#running = false;
  }
}
