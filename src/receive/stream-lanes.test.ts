// Which connections carry a stream.
import { PassThrough } from 'node:stream';
import test from 'ava';
import { ReaderRequests } from './reader-requests.ts';
import { type Carrier, StreamLanes } from './stream-lanes.ts';

const KIB = 1 << 10;

function makeLanes(count: number): (Carrier & { name: number })[] {
  return Array.from({ length: count }, (_, name) => ({
    name,
    taken: false,
    client: { stats: { connected: true, size: 0 } },
  }));
}

/** Bytes come; resolves when they have been counted. */
async function bring(body: PassThrough, bytes: number): Promise<void> {
  body.write(Buffer.alloc(bytes));
  await new Promise((resolve) => setImmediate(resolve));
}

test('its own connection comes first, then those that are idle, and then whichever will be done first', async (t) => {
  const all = makeLanes(8);
  let now = 1000;
  const lanes = new StreamLanes(
    all[0]!,
    all,
    () => true,
    () => false,
    3000,
    () => now,
  );
  t.true(all[0]!.taken);
  const runs = [300, 300, 300, 300].map((kib) => lanes.next(kib * KIB));
  t.deepEqual(
    runs.map(({ lane }) => lane.name),
    [0, 1, 2, 3],
  );
  // Half of them are left to others.
  t.deepEqual(
    all.filter(({ taken }) => taken).map(({ name }) => name),
    [0, 1, 2, 3],
  );
  const bodies = runs.map(({ follow }) => {
    const body = new PassThrough();
    follow(body);
    return body;
  });
  now += 100;
  for (const body of bodies.slice(0, 2)) await bring(body, 100 * KIB);
  await bring(bodies[2]!, 10 * KIB);
  await bring(bodies[3]!, 250 * KIB);
  // 200 KiB are left at 1 KiB a ms, 290 at 0.1, and 50 at 2.5.
  const next = [400, 400, 100].map((kib) => lanes.next(kib * KIB).lane.name);
  t.deepEqual(next, [3, 3, 0]);
  for (const { over } of runs) over();
  // A slow one that has nothing to do is worse than a fast one that has.
  t.is(lanes.next(100 * KIB).lane.name, 1);
  t.is(lanes.next(300 * KIB).lane.name, 0);
});

test('little is left to its own connection, and so is all while the others have something else to bring', (t) => {
  const all = makeLanes(8);
  let mayShare = false;
  const lanes = new StreamLanes(all[3]!, all, () => mayShare);
  const names = (bytes: number[]) => bytes.map((one) => lanes.next(one).lane.name);
  t.deepEqual(names([100 * KIB, 1000 * KIB, 1000 * KIB]), [3, 3, 3]);
  mayShare = true;
  t.deepEqual(names([10]), [0]);

  const slow = new StreamLanes(all[4]!, all, () => true);
  for (let i = 0; i < 5; i++) {
    const { lane, over } = slow.next(200 * KIB);
    t.is(lane.name, 4);
    over();
  }
});

test('while readers wait, one connection carries what is asked for anew: the fastest', async (t) => {
  const all = makeLanes(8);
  let [now, wait] = [1000, true];
  const lanes = new StreamLanes(
    all[0]!,
    all,
    () => true,
    () => wait,
    3000,
    () => now,
  );
  const names = (count: number) =>
    Array.from({ length: count }, () => lanes.next(300 * KIB).lane.name);
  t.deepEqual(names(3), [0, 0, 0]);
  wait = false;
  const runs = [1, 2].map(() => lanes.next(300 * KIB));
  t.deepEqual(
    runs.map(({ lane }) => lane.name),
    [1, 2],
  );
  const bodies = runs.map(({ follow }) => {
    const body = new PassThrough();
    follow(body);
    return body;
  });
  now += 100;
  await bring(bodies[0]!, 20 * KIB);
  await bring(bodies[1]!, 200 * KIB);
  wait = true;
  t.deepEqual(names(3), [2, 2, 2]);
  wait = false;
  t.not(names(1)[0], 2);
});

test('a connection that brings nothing for long gets nothing more, its own neither', async (t) => {
  const all = makeLanes(6);
  let now = 1000;
  const lanes = new StreamLanes(
    all[0]!,
    all,
    () => true,
    () => true,
    3000,
    () => now,
  );
  const [first, second] = [lanes.next(300 * KIB), lanes.next(10 * KIB)];
  t.is(second.lane.name, 0);
  now += 3000;
  const third = lanes.next(10 * KIB);
  t.is(third.lane.name, 1);
  const body = new PassThrough();
  third.follow(body);
  now += 2999;
  await bring(body, 10);
  now += 2999;
  t.is(lanes.next(1).lane.name, 1);
  now += 1;
  t.is(lanes.next(1).lane.name, 2);
  // Broken off, and made anew.
  for (const { over } of [first, second]) over();
  t.is(lanes.next(1).lane.name, 0);
  // Where there is no other, there is no choice.
  const alone = new StreamLanes(
    makeLanes(1)[0]!,
    [],
    () => true,
    () => true,
    3000,
    () => now,
  );
  const { lane } = alone.next(1);
  now += 3000;
  t.is(alone.next(1).lane, lane);
});

test('readers wait from a request on until some time after its end', (t) => {
  let now = 0;
  const readers = new ReaderRequests(() => now);
  t.false(readers.wait);
  const [first, second] = [readers.begin(), readers.begin()];
  now += 10_000;
  first();
  first();
  now += 10_000;
  t.true(readers.wait);
  second();
  t.true(readers.wait);
  now += 299;
  t.true(readers.wait);
  now += 1;
  t.false(readers.wait);
});

test('connections that are closed, busy or of another stream are left alone', (t) => {
  const all = makeLanes(8);
  all[1]!.taken = true;
  Object.assign(all[2]!.client.stats, { size: 1 });
  Object.assign(all[3]!.client.stats, { connected: false });
  const lanes = new StreamLanes(all[0]!, all, () => true);
  lanes.next(300 * KIB);
  t.is(lanes.next(1).lane.name, 4);
  // One is no half of a pair, and there is no other.
  const pair = makeLanes(2);
  const alone = new StreamLanes(pair[0]!, pair, () => true);
  for (let i = 0; i < 3; i++) t.is(alone.next(300 * KIB).lane.name, 0);
});

test('several streams together leave as many to others as one does', (t) => {
  const all = makeLanes(8);
  const first = new StreamLanes(all[0]!, all, () => true);
  for (let i = 0; i < 8; i++) first.next(300 * KIB);
  const second = new StreamLanes(all[7]!, all, () => true);
  for (let i = 0; i < 8; i++) t.is(second.next(300 * KIB).lane.name, 7);
  t.is(all.filter(({ taken }) => taken).length, 5);
});

test('after its end each connection is given back when it has nothing more to bring', (t) => {
  const all = makeLanes(8);
  const lanes = new StreamLanes(all[0]!, all, () => true);
  lanes.next(300 * KIB);
  const second = lanes.next(300 * KIB);
  const third = lanes.next(300 * KIB);
  third.over();
  third.over();
  t.true(all[2]!.taken);
  lanes.release();
  t.deepEqual(
    all.filter(({ taken }) => taken).map(({ name }) => name),
    [1],
  );
  second.over();
  t.false(all.some(({ taken }) => taken));
});
