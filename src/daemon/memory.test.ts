import { setTimeout as sleep } from 'node:timers/promises';
import test from 'ava';
import { settleMemory } from './memory.ts';

test('what a transfer leaves behind is given back to the kernel', async (t) => {
  // Garbage as frames make it: buffers of many sizes that have been written to, and small objects.
  const fill = () => {
    const kept: unknown[] = [];
    for (let i = 0; i < 4000; i++) {
      kept.push(Buffer.alloc(1000 + ((i * 7919) % 60_000), 1));
      kept.push(Array.from({ length: 100 }, (_, n) => ({ n, i })));
    }
    return kept.length;
  };
  const before = process.memoryUsage.rss();
  t.is(fill(), 8000);
  const full = process.memoryUsage.rss();
  settleMemory();
  let after = full;
  const isBack = () => after - before < (full - before) / 2;
  for (let tries = 0; tries < 600 && !isBack(); tries++) {
    await sleep(100);
    after = process.memoryUsage.rss();
  }
  const mb = (bytes: number) => Math.round(bytes / 1e6);
  t.true(full - before > 80e6, `only ${mb(full - before)} MB were used`);
  t.true(isBack(), `${mb(after - before)} MB of ${mb(full - before)}`);
});
