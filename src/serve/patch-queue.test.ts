// How many computations of patches wait, and in which order they run.
import test from 'ava';
import { PatchQueue } from './patch-queue.ts';

/** A computation that ends when it is told to. */
function held(started: string[], name: string) {
  const { promise, resolve } = Promise.withResolvers<void>();
  const make = async () => {
    started.push(name);
    await promise;
    return undefined;
  };
  return { make, end: resolve };
}

test('one at a time, what was asked for first, and no more waiting than may be', async (t) => {
  let refused = 0;
  const queue = new PatchQueue(2, () => refused++);
  const started: string[] = [];
  const jobs = ['a', 'b', 'c', 'ahead'].map((name) => ({ name, ...held(started, name) }));
  const [a, b, c, ahead] = jobs as [
    (typeof jobs)[0],
    (typeof jobs)[0],
    (typeof jobs)[0],
    (typeof jobs)[0],
  ];
  const ends = [queue.add(a.make, 1), queue.add(ahead.make, 0), queue.add(b.make, 1)];
  t.is(queue.waiting, 3);
  t.false(queue.admits('c', false));
  t.is(refused, 1);
  t.true(queue.admits('another ahead', true));
  a.end();
  await ends[0];
  t.true(queue.admits('c', false));
  ends.push(queue.add(c.make, 1));
  for (const job of jobs) job.end();
  await Promise.all(ends);
  t.deepEqual(started, ['a', 'b', 'c', 'ahead']);
  t.is(queue.waiting, 0);
  t.is(refused, 1);
});

test('what turned out to have no patches is not looked at again, and not counted as refused', (t) => {
  let refused = 0;
  const queue = new PatchQueue(0, () => refused++);
  queue.hasNone('key');
  t.false(queue.admits('key', true));
  t.false(queue.admits('key', false));
  t.is(refused, 0);
});
