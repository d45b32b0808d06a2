// The rows of bench/metadata about mounting an image of 100,000 entries: time from its header,
// a second mount, memory, and what the command line itself takes. What does not live here: what
// reads through the mount cost (metadata-tree.ts).

import { rmSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import type { MountRequest } from '../src/daemon/control.ts';
import { formatPlatform, hostPlatform } from '../src/image/platform.ts';
import { median, memoryOf } from './lib/measure.ts';
import { Worker } from './lib/program.ts';
import type { RowWriter } from './lib/rows.ts';
import type { Workspace } from './lib/workspace.ts';

const MB = 1e6;

/** Header of the image in memory -> tree mounted, in a daemon that has nothing yet; a new root each time. */
async function headerToMounted(space: Workspace, server: string): Promise<number> {
  const root = space.makeDirectory('fresh-root');
  const directory = space.makeDirectory('fresh-mount');
  const worker = await Worker.start(space, root, server);
  await worker.run('mount', 'tree:bench', directory, '--rw', 'off');
  const { headerAt, mountedAt } = await worker.mountStatus(directory);
  if (headerAt === null) throw new Error('the daemon had the header before it was asked');
  await worker.run('umount', directory);
  await worker.stop();
  rmSync(root, { recursive: true });
  return mountedAt - headerAt;
}

function mountRequest(worker: Worker, image: string, directory: string): MountRequest {
  return {
    op: 'mount',
    image,
    directory,
    server: worker.server,
    platform: formatPlatform(hostPlatform()),
    rw: 'off',
    session: 'kernel',
    waitTimeoutMs: 60_000,
    threads: 0,
    passthrough: true,
    wait: false,
    requestedAt: Date.now(),
  };
}

/**
 * Mounts the image again, several times; milliseconds and bytes of one such mount. The clock runs
 * from the request on the daemon's socket to its answer: the start of the program is a row of its own.
 */
async function secondMounts(
  space: Workspace,
  worker: Worker,
): Promise<{ ms: number; bytes: number }> {
  const times: number[] = [];
  const directories: string[] = [];
  const before = memoryOf(worker.pid, 'VmRSS');
  for (let i = 0; i < 8; i++) {
    const directory = space.makeDirectory(`second-${i}`);
    directories.push(directory);
    const start = performance.now();
    await worker.request(mountRequest(worker, 'tree:bench', directory));
    times.push(performance.now() - start);
  }
  const bytes = (memoryOf(worker.pid, 'VmRSS') - before) / directories.length;
  for (const directory of directories) await worker.run('umount', directory);
  return { ms: median(times), bytes };
}

async function commandTimes(
  space: Workspace,
  worker: Worker,
): Promise<{ version: number; mount: number }> {
  const versions: number[] = [];
  const mounts: number[] = [];
  const directory = space.makeDirectory('command-mount');
  for (let i = 0; i < 15; i++) {
    versions.push(await worker.time('--version'));
    mounts.push(await worker.time('mount', 'python:bench', directory, '--rw', 'off'));
    await worker.run('umount', directory);
  }
  return { version: median(versions), mount: median(mounts) };
}

/** Measures and adds the rows. `tree:bench` and `python:bench` are complete in the worker's store. */
export async function measureMounts(
  space: Workspace,
  rows: RowWriter,
  worker: Worker,
  server: string,
): Promise<void> {
  // The daemon gives back what the transfers left a moment after they end.
  await sleep(2000);
  const rss = memoryOf(worker.pid, 'VmRSS');
  rows.add({ row: 'daemon-rss', value: rss / MB, unit: 'MB', better: 'lower', budget: 150 });
  const peak = memoryOf(worker.pid, 'VmHWM');
  rows.add({ row: 'daemon-rss-peak', value: peak / MB, unit: 'MB', better: 'lower' });

  const second = await secondMounts(space, worker);
  rows.add({ row: 'second-mount', value: second.ms, unit: 'ms', better: 'lower', budget: 30 });
  rows.add({
    row: 'second-mount-memory',
    value: second.bytes / MB,
    unit: 'MB',
    better: 'lower',
    budget: 5,
  });

  const command = await commandTimes(space, worker);
  rows.add({
    row: 'command-version',
    value: command.version,
    unit: 'ms',
    better: 'lower',
    budget: 60,
  });
  rows.add({ row: 'command-mount', value: command.mount, unit: 'ms', better: 'lower', budget: 60 });

  const fresh: number[] = [];
  for (let i = 0; i < 5; i++) fresh.push(await headerToMounted(space, server));
  rows.add({
    row: 'header-to-mounted',
    value: median(fresh),
    unit: 'ms',
    better: 'lower',
    budget: 150,
  });
}
