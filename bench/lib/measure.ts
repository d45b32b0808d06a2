// How figures are taken: medians over rounds in which the two sides take turns, the kernel's caches
// dropped between them, and the facts of the machine. What does not live here: the rows themselves.
import { execFileSync } from 'node:child_process';
import { readFileSync, writeFileSync } from 'node:fs';
import { cpus, release, totalmem } from 'node:os';
import { setTimeout as sleep } from 'node:timers/promises';

/** Median; the mean of the middle two where the count is even. */
export function median(values: number[]): number {
  if (values.length === 0) throw new Error('median of nothing');
  const sorted = [...values].sort((x, y) => x - y);
  const middle = sorted.length >> 1;
  return sorted.length % 2 === 1 ? sorted[middle]! : (sorted[middle - 1]! + sorted[middle]!) / 2;
}

/**
 * Runs the sides one after the other, `rounds` times, beginning with another side each time, and
 * gives the median of each: what disturbs the machine for a while disturbs all of them.
 */
export async function takeTurns<K extends string>(
  rounds: number,
  sides: Record<K, () => number | Promise<number>>,
): Promise<Record<K, number>> {
  const names = Object.keys(sides) as K[];
  const seen = new Map<K, number[]>(names.map((name) => [name, []]));
  for (let round = 0; round < rounds; round++) {
    for (let i = 0; i < names.length; i++) {
      const name = names[(round + i) % names.length]!;
      seen.get(name)!.push(await sides[name]());
    }
  }
  if (process.env.BENCH_VERBOSE) {
    for (const [name, values] of seen) {
      process.stderr.write(`    ${name}: ${values.map((v) => v.toPrecision(4)).join(' ')}\n`);
    }
  }
  return Object.fromEntries(names.map((name) => [name, median(seen.get(name)!)])) as Record<
    K,
    number
  >;
}

/**
 * Drops the kernel's caches: `dentries` the dentries and inodes alone (the directory blocks stay in
 * memory, which is the harder comparison for us), `all` file pages too. Then waits until the FUSE
 * sessions have read the FORGETs that this brings.
 */
export async function dropCaches(what: 'dentries' | 'all'): Promise<void> {
  execFileSync('sync');
  writeFileSync('/proc/sys/vm/drop_caches', what === 'all' ? '3' : '2');
  await sleep(400);
}

/** Field of /proc/PID/status in kB, such as VmRSS, as bytes. */
export function memoryOf(pid: number, field: string): number {
  const line = new RegExp(`^${field}:\\s+(\\d+) kB$`, 'm').exec(
    readFileSync(`/proc/${pid}/status`, 'utf8'),
  );
  if (line === null) throw new Error(`/proc/${pid}/status has no ${field}`);
  return Number(line[1]) * 1024;
}

/** What the figures were taken on, in words that name no particular machine. */
export interface MachineFacts {
  date: string;
  kernel: string;
  cpus: string;
  memory_gib: number;
  filesystem: string;
  node: string;
  zstd: string;
}

/** Facts for the documentation. @param directory  where the bench keeps its files */
export function machineFacts(directory: string): MachineFacts {
  const zstd = execFileSync('zstd', ['--version'], { encoding: 'utf8' });
  const filesystem = execFileSync('findmnt', ['-no', 'FSTYPE', '-T', directory], {
    encoding: 'utf8',
  });
  return {
    date: new Date().toISOString().slice(0, 10),
    kernel: release().replace(/-.*/, ''),
    cpus: `${cpus().length} x ${cpus()[0]?.model ?? 'unknown'}`,
    memory_gib: Math.round(totalmem() / 2 ** 30),
    filesystem: filesystem.trim(),
    node: process.version,
    zstd: /v[\d.]+/.exec(zstd)?.[0] ?? 'unknown',
  };
}
