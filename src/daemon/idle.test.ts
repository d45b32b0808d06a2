import test from 'ava';
import { IdleTimer } from './idle.ts';

const sleep = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));

test('ends after the time without use, and not before', async (t) => {
  let idle = 0;
  const timer = new IdleTimer(40, () => idle++);
  const first = timer.use();
  const second = timer.use();
  first();
  first();
  await sleep(120);
  t.is(idle, 0, 'still in use once');
  second();
  await sleep(150);
  t.is(idle, 1);
});

test('an infinite time never ends, and stop is final', async (t) => {
  const timer = new IdleTimer(Number.POSITIVE_INFINITY, () => t.fail());
  timer.use()();
  const stopped = new IdleTimer(10, () => t.fail());
  const release = stopped.use();
  stopped.stop();
  release();
  await sleep(60);
  t.pass();
});
