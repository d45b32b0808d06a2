// How long to wait before the next attempt: exponential with full jitter above a half, so that many
// workers do not come back to a restarted server in one moment.

/** First and longest wait in ms. */
export interface BackoffBounds {
  firstMs: number;
  mostMs: number;
}

export const DEFAULT_BACKOFF: BackoffBounds = { firstMs: 200, mostMs: 30_000 };

/** Wait before attempt `failures` + 1, in ms; `failures` counts from 1. */
export function backoffMs(
  failures: number,
  { firstMs, mostMs }: BackoffBounds = DEFAULT_BACKOFF,
  random = Math.random,
): number {
  const whole = Math.min(mostMs, firstMs * 2 ** Math.min(failures - 1, 30));
  return whole / 2 + (random() * whole) / 2;
}
