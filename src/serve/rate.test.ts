import test, { type ExecutionContext } from 'ava';
import { CHUNK_BYTES, type Clock, parseRate, RateLimiter } from './rate.ts';

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

const bytesPerMs = 5_000;
const burstBytes = bytesPerMs * 10;

/** A clock that stands still but for sleeps, which are rounded up as Node's timers are. */
class TestClock implements Clock {
  time = 0;
  now(): number {
    return this.time;
  }
  async sleep(ms: number): Promise<void> {
    this.time += Math.ceil(ms) + 0.1;
  }
}

/** When each chunk was granted, ms from the start. */
async function run(
  limiter: RateLimiter,
  clock: TestClock,
  ms: number,
  between: (now: number) => void = () => {},
): Promise<number[]> {
  const at: number[] = [];
  const started = clock.time;
  while (clock.time - started < ms) {
    await limiter.take(CHUNK_BYTES);
    at.push(clock.time - started);
    between(clock.time);
  }
  return at;
}

/** In no window does more pass than its time allows at 1.5 times the rate, plus the burst. */
function smooth(t: ExecutionContext, at: number[]): void {
  for (const [i, start] of at.entries()) {
    for (let j = i; j < Math.min(i + 20, at.length); j++) {
      const passed = (j - i + 1) * CHUNK_BYTES;
      t.true(passed <= burstBytes + CHUNK_BYTES + 1.5 * bytesPerMs * (at[j]! - start));
    }
  }
}

test('the rate is held, and smoothly', async (t) => {
  const clock = new TestClock();
  const at = await run(new RateLimiter(bytesPerMs * 8000, clock), clock, 10_000);
  const ratio = (at.length * CHUNK_BYTES) / (at.at(-1)! * bytesPerMs);
  t.true(ratio > 0.98 && ratio < 1.01, `${ratio}`);
  smooth(t, at);
});

test('time lost to a busy process is made up for without a burst', async (t) => {
  const clock = new TestClock();
  let next = 50;
  const at = await run(new RateLimiter(bytesPerMs * 8000, clock), clock, 9_900, (now) => {
    if (now < next) return;
    // The event loop stands still for four times what the burst covers.
    clock.time += 40;
    next += 200;
  });
  const ratio = (at.length * CHUNK_BYTES) / (at.at(-1)! * bytesPerMs);
  t.true(ratio > 0.98 && ratio < 1.01, `${ratio}`);
  smooth(t, at);
});

test('an idle line saves nothing up', async (t) => {
  const clock = new TestClock();
  const limiter = new RateLimiter(bytesPerMs * 8000, clock);
  await limiter.take(CHUNK_BYTES);
  clock.time += 400;
  const at = await run(limiter, clock, 100);
  t.true(at.length * CHUNK_BYTES <= burstBytes + 2 * CHUNK_BYTES + bytesPerMs * at.at(-1)!);
});

test('connections take turns', async (t) => {
  const limiter = new RateLimiter(8 * CHUNK_BYTES * 200, new TestClock());
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
  const limiter = new RateLimiter(8 * CHUNK_BYTES * 100, new TestClock());
  const gone = new AbortController();
  await limiter.take(CHUNK_BYTES);
  const waits = limiter.take(CHUNK_BYTES, gone.signal);
  const after = limiter.take(CHUNK_BYTES);
  gone.abort(new Error('gone'));
  await t.throwsAsync(waits, { message: 'gone' });
  await after;
});
