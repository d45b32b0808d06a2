// The wide-area link that the benches measure over: it is as long and as fast as it says, it drops
// what its queue does not hold, and nothing is left of it.
import { execFile } from 'node:child_process';
import { once } from 'node:events';
import { access, readFile } from 'node:fs/promises';
import { promisify } from 'node:util';
import test from 'ava';
import { Wan } from '../../bench/wan/wan.ts';
import { MissedError, untilMet } from '../lib/arriving.ts';

const run = promisify(execFile);

test('round trip, rate, queue and counters of the link', async (t) => {
  const allowed = '/proc/sys/net/ipv4/tcp_allowed_congestion_control';
  const before = await readFile(allowed, 'utf8');
  const wan = await Wan.start({ rttMs: 40, bitsPerSecond: 50e6 });
  t.teardown(() => wan.close());
  t.is(await readFile(allowed, 'utf8'), before, 'the machine is as it was');

  // Never faster than it says; as fast, where this machine has the time.
  await untilMet(t, async () => {
    const check = await wan.check();
    t.true(check.connectMs >= 40, `connect took ${check.connectMs} ms`);
    t.true(check.mbitPerSecond <= 50, `${check.mbitPerSecond} Mbit/s`);
    if (check.mbitPerSecond <= 45) throw new MissedError(`${check.mbitPerSecond} Mbit/s`);
  });

  const first = await wan.stats();
  await wan.fetchProbe(200_000, 4, 'cold');
  const second = await wan.stats();
  t.is(second.up.connects - first.up.connects, 4);
  t.true(second.down.bytes - first.down.bytes >= 200_000);
  t.true(second.cpu_s > 0 && second.cpu_s < second.wall_s);

  // A sender without a window floods the queue: one product of delay and rate, and not more.
  const [command, args] = wan.atServer('python3', [
    '-c',
    'import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n' +
      `for _ in range(4000): s.sendto(bytes(1400), ("${wan.client.address}", 9))`,
  ]);
  await run(command, args);
  const third = await wan.stats();
  t.true(third.down.dropped > second.down.dropped);
  t.true(third.down.max_queue_bytes <= (50e6 / 8) * 0.04);

  await wan.set({ rttMs: 5, bitsPerSecond: 50e6 });
  // What was sent before still comes by the longer way: order is kept.
  await wan.fetchProbe(1000, 1, 'cold');
  await untilMet(t, async () => {
    const { connect_ms } = await wan.fetchProbe(1000, 1, 'cold');
    if (connect_ms >= 40) throw new MissedError(`connect took ${connect_ms} ms`);
  });
  await t.throwsAsync(wan.set({ rttMs: -1, bitsPerSecond: 50e6 }), {
    message: /out of its bounds/,
  });
});

test('nothing is left of a link, whoever ends first', async (t) => {
  const closed = await Wan.start({ rttMs: 2, bitsPerSecond: 10e6 });
  await closed.check();
  await closed.close();
  await t.throwsAsync(access(closed.client.netns));
  await closed.close();

  // Whoever started it is killed: its standard input ends, and so does the relay.
  const script =
    "import { Wan } from './bench/wan/wan.ts';" +
    'const wan = await Wan.start({ rttMs: 2, bitsPerSecond: 10e6 });' +
    "console.log(wan.client.netns.split('/')[2]); setInterval(() => {}, 1000);";
  const child = execFile(process.execPath, ['--input-type=module-typescript', '-e', script]);
  const [line] = (await once(child.stdout!, 'data')) as [string];
  const relay = `/proc/${line.trim()}`;
  await access(relay);
  child.kill('SIGKILL');
  const end = Date.now() + 120_000;
  for (;;) {
    const gone = await access(relay).then(
      () => false,
      () => true,
    );
    if (gone) break;
    if (Date.now() > end) return t.fail('the relay outlives who started it');
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
  t.pass();
});
