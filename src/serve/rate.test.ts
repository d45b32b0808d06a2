import test from 'ava';
import { CHUNK_BYTES, parseRate, RateLimiter } from './rate.ts';

test('rates are read', (t) => {
  for (const [text, bits] of [
    ['100mbit', 100e6],
    ['100Mbit', 100e6],
    ['1.5gbit', 1.5e9],
    ['64kbit', 64e3],
    ['12.5MB/s', 100e6],
    ['1000bps', 1000],
    ['off', undefined],
  ] as const) {
    t.is(parseRate(text), bits, text);
  }
  for (const bad of [
    '',
    '100',
    'mbit',
    '-1mbit',
    '0mbit',
    '1e9mbit',
    '10furlong',
    'on',
    '999999gbit',
  ]) {
    t.throws(() => parseRate(bad), { message: `bad rate '${bad}'` }, bad);
  }
});

test('the rate is held within 5%, and smoothly', async (t) => {
  const bytesPerMs = 5_000;
  const limiter = new RateLimiter(bytesPerMs * 8000);
  const at: number[] = [];
  const started = performance.now();
  while (performance.now() - started < 1000) {
    await limiter.take(CHUNK_BYTES);
    at.push(performance.now() - started);
  }
  const sent = at.length * CHUNK_BYTES;
  const ratio = sent / (at.at(-1)! * bytesPerMs);
  t.true(ratio > 0.95 && ratio < 1.1, `${ratio}`);
  // In no window does more pass than its time allows, plus the bucket.
  const bucket = Math.max(CHUNK_BYTES, bytesPerMs * 10);
  for (const [i, start] of at.entries()) {
    for (let j = i; j < Math.min(i + 20, at.length); j++) {
      const passed = (j - i + 1) * CHUNK_BYTES;
      t.true(passed <= bucket + CHUNK_BYTES + (at[j]! - start + 2) * bytesPerMs);
    }
  }
});

test('connections take turns', async (t) => {
  const limiter = new RateLimiter(8 * CHUNK_BYTES * 200);
  const turns: string[] = [];
  const connection = async (name: string, chunks: number) => {
    for (let i = 0; i < chunks; i++) {
      await limiter.take(CHUNK_BYTES);
      turns.push(name);
    }
  };
  const long = [connection('a', 60), connection('b', 60)];
  await connection('short', 10);
  // Ten chunks of the short one need at most ten (and the first bucket) of each long one.
  t.true(turns.length <= 36, `${turns.length}`);
  await Promise.all(long);
});

test('one that is gone is passed over', async (t) => {
  const limiter = new RateLimiter(8 * CHUNK_BYTES * 100);
  const gone = new AbortController();
  await limiter.take(CHUNK_BYTES);
  const waits = limiter.take(CHUNK_BYTES, gone.signal);
  const after = limiter.take(CHUNK_BYTES);
  gone.abort(new Error('gone'));
  await t.throwsAsync(waits, { message: 'gone' });
  await after;
});
