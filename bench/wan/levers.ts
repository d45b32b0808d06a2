// make bench-levers: what each way around slow start is worth on the link itself, without firstlight:
// warm connections, several of them, a larger initial window, another congestion control. What does
// not live here: what a service's start gains by them (bench/startup).
import { execFileSync } from 'node:child_process';
import { median } from '../lib/measure.ts';
import { RowWriter } from '../lib/rows.ts';
import { describeCheck, Wan } from './wan.ts';

const RTT_MS = Number(process.env.RTT ?? 150);
const BITS_PER_SECOND = 100e6;
const ROUNDS = Number(process.env.ROUNDS ?? 3);
const SIZES = [100e3, 300e3, 1e6, 3e6, 6e6];
const BBR_PORT = 10;
/** Initial window, in segments, that the route is given. */
const INITCWND = 64;

/** One way to fetch. */
interface Lever {
  name: string;
  connections: number;
  kind: 'cold' | 'open' | 'warm';
  idleMs?: number;
  port?: number;
  initcwnd?: number;
  /** net.ipv4.tcp_slow_start_after_idle at the server; 1 is the kernel's default. */
  slowStartAfterIdle?: 0 | 1;
}

const LEVERS: Lever[] = [
  { name: 'cold-1', connections: 1, kind: 'cold' },
  { name: 'cold-4', connections: 4, kind: 'cold' },
  { name: 'cold-8', connections: 8, kind: 'cold' },
  { name: 'cold-1-bbr', connections: 1, kind: 'cold', port: BBR_PORT },
  { name: 'open-1', connections: 1, kind: 'open' },
  { name: 'open-8', connections: 8, kind: 'open' },
  { name: 'cold-1-initcwnd-64', connections: 1, kind: 'cold', initcwnd: INITCWND },
  { name: 'open-1-initcwnd-64', connections: 1, kind: 'open', initcwnd: INITCWND },
  { name: 'warm-1', connections: 1, kind: 'warm' },
  { name: 'warm-1-idle-3s', connections: 1, kind: 'warm', idleMs: 3000 },
  { name: 'warm-8-idle-3s', connections: 8, kind: 'warm', idleMs: 3000 },
  {
    ...{ name: 'warm-1-idle-3s-kept', connections: 1, kind: 'warm', idleMs: 3000 },
    slowStartAfterIdle: 0,
  },
  { name: 'warm-1-idle-3s-bbr', connections: 1, kind: 'warm', idleMs: 3000, port: BBR_PORT },
];

/** Bytes that a warm connection has carried before. */
const WARM_BYTES = 3e6;

function atServer(wan: Wan, command: string, ...args: string[]): void {
  execFileSync(...wan.atServer(command, args), { stdio: ['ignore', 'ignore', 'inherit'] });
}

async function fetchBy(wan: Wan, lever: Lever, bytes: number): Promise<number> {
  const { connections, kind, idleMs = 200, port, initcwnd, slowStartAfterIdle = 1 } = lever;
  const route = ['route', 'change', '198.18.0.0/30', 'dev', 'wan0'];
  atServer(wan, 'sysctl', '-qw', `net.ipv4.tcp_slow_start_after_idle=${slowStartAfterIdle}`);
  if (initcwnd !== undefined) atServer(wan, 'ip', ...route, 'initcwnd', String(initcwnd));
  try {
    const options = { warmBytes: WARM_BYTES, idleMs, ...(port === undefined ? {} : { port }) };
    return (await wan.fetchProbe(bytes, connections, kind, options)).ms;
  } finally {
    if (initcwnd !== undefined) atServer(wan, 'ip', ...route);
  }
}

async function main(wan: Wan): Promise<void> {
  console.error(describeCheck(await wan.check()));
  const bbr = await wan.serveProbe('bbr', BBR_PORT).catch((error: unknown) => {
    console.error(`without BBR: ${(error as Error).message}`);
    return undefined;
  });
  try {
    const rows = new RowWriter('levers');
    const levers = LEVERS.filter((lever) => lever.port !== BBR_PORT || bbr !== undefined);
    for (const bytes of SIZES) {
      const seen = new Map<string, number[]>(levers.map(({ name }) => [name, []]));
      for (let round = 0; round < ROUNDS; round++) {
        for (const lever of levers) {
          seen.get(lever.name)!.push(await fetchBy(wan, lever, bytes));
        }
      }
      const baseline = { name: 'cold-1', value: median(seen.get('cold-1')!) };
      for (const { name } of levers) {
        const value = median(seen.get(name)!);
        rows.add({ row: `${name}-${bytes / 1e3}k`, value, unit: 'ms', baseline, better: 'lower' });
      }
    }
    rows.print();
  } finally {
    bbr?.kill('SIGKILL');
  }
}

const wan = await Wan.start({ rttMs: RTT_MS, bitsPerSecond: BITS_PER_SECOND });
try {
  await main(wan);
} finally {
  await wan.close();
}
