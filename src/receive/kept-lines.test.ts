// Connections that are kept open: how long, and what happens when they have died without a word.
import { setTimeout as sleep } from 'node:timers/promises';
import test, { type ExecutionContext } from 'ava';
import { FaultProxy } from '../../test/lib/fault-proxy.ts';
import { makeImage, someFiles } from '../../test/receive/fixture.ts';
import { makeStage, SMALL } from '../../test/receive/stage.ts';
import { DEFAULT_TIMEOUTS } from './connections.ts';
import { DeltaClient } from './delta-client.ts';
import { KeptLines, type Line } from './kept-lines.ts';

const IMAGE = makeImage('kept lines', someFiles('kept lines', SMALL));
/** A line that was idle for the shortest moment is tried; nothing is said by the clock. */
const LINES = { keepMs: 1e9, suspectMs: 1, leastDeadMs: 300, mostDeadMs: 1000 };

async function until(what: string, holds: () => boolean): Promise<void> {
  const deadline = Date.now() + 30_000;
  while (!holds()) {
    if (Date.now() > deadline) throw new Error(`not in time: ${what}`);
    await sleep(5);
  }
}

async function clientBehindProxy(t: ExecutionContext, connections: number) {
  const { server } = await makeStage(t, IMAGE);
  server.deltaRanges = true;
  const proxy = await FaultProxy.start(server.url);
  t.teardown(() => proxy.close());
  const client = new DeltaClient(proxy.url, { ...DEFAULT_TIMEOUTS, lines: LINES }, connections);
  t.teardown(() => client.close());
  return { client, proxy, server };
}

for (const connections of [1, 3]) {
  test(`dead lines are found by their first use, ${connections} of them`, async (t) => {
    const { client, proxy, server } = await clientBehindProxy(t, connections);
    client.keepOpen();
    await until('the lines are open', () => server.requests.length >= connections);
    // Their answers are in.
    await client.ping(10_000);
    proxy.blackhole();
    const before = proxy.connections;
    const startedAt = performance.now();
    const { digest } = await client.delta({
      image: 'app:1',
      platform: 'linux/amd64',
      bases: [],
      patches: false,
    });
    const ms = performance.now() - startedAt;
    // The bound of the answer itself is 300 s: its bundle might be being computed.
    t.true(ms < 20_000, `${ms} ms`);
    t.regex(digest, /^sha256:/);
    t.true(proxy.connections > before, 'over fresh connections');
    await client.ping(10_000);
    t.deepEqual(await client.chains(`sha256:${'0'.repeat(64)}`, 10_000).catch(() => []), []);
  });
}

function line() {
  const said: number[] = [];
  const made: Line & { said: number[]; state: { connected: boolean; size: number } } = {
    said,
    state: { connected: false, size: 0 },
    stats: () => made.state,
    say: async (boundMs) => {
      said.push(boundMs);
      made.state.connected = true;
    },
    usedAt: 0,
  };
  return made;
}

test('lines are kept for the budget after the last use, and not at all where it is nothing', async (t) => {
  const lines = [line(), line()];
  const kept = new KeptLines(lines, () => undefined, { ...LINES, keepMs: 10 });
  kept.keep(0);
  await sleep(30);
  t.deepEqual(
    lines.map(({ said }) => said.length),
    [0, 0],
  );
  kept.keep(60_000);
  await until('each is used again and again', () => lines.every(({ said }) => said.length > 2));
  t.is(lines[0]!.said[0], 11_000, 'one that has to be made may take longer');
  t.is(lines[0]!.said[1], 1000);
  kept.keep(1);
  await sleep(20);
  const after = lines.map(({ said }) => said.length);
  await sleep(60);
  t.deepEqual(
    lines.map(({ said }) => said.length),
    after,
    'the budget is used up',
  );
  kept.keep(60_000);
  await until('the next use begins it anew', () => lines[0]!.said.length > after[0]!);
  kept.stop();
});

test('only idle lines are tried, for a few round trips, all of them at once', (t) => {
  const [idle, busy, closed, fresh] = [line(), line(), line(), line()];
  for (const each of [idle, busy, closed]) each.usedAt = performance.now() - 10_000;
  idle.state.connected = true;
  busy.state = { connected: true, size: 1 };
  fresh.state.connected = true;
  fresh.usedAt = performance.now();
  const kept = new KeptLines([idle, busy, closed, fresh], () => 100, { ...LINES, suspectMs: 5000 });
  kept.tryIdle();
  t.deepEqual(
    [idle, busy, closed, fresh].map(({ said }) => said),
    [[600], [], [], []],
  );
  kept.tryIdle();
  t.is(idle.said.length, 1, 'it is in use now');
});
