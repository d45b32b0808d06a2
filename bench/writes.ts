// make bench-writes: what writing costs in a mount against kernel overlayfs over the same unpacked tree:
// files created and removed, one large file, the first write to files of the image, PostgreSQL's initdb.
// What does not live here: reading (metadata.ts).
import { execFile, execFileSync } from 'node:child_process';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { makeDisk } from './lib/disk.ts';
import { writeList } from './lib/fsbench.ts';
import { Fswrite } from './lib/fswrite.ts';
import { machineFacts, takeTurns } from './lib/measure.ts';
import { checkBuilt, startServer, Worker } from './lib/program.ts';
import { RowWriter } from './lib/rows.ts';
import { realImage, unpack } from './lib/trees.ts';
import { Workspace } from './lib/workspace.ts';

const run = promisify(execFile);

/** The same tree, writable, three times. */
type Side = 'baseline' | 'fuse' | 'overlay';
const SIDES: Side[] = ['baseline', 'fuse', 'overlay'];
type Sides = Record<Side, string>;

const BASELINE = 'overlayfs';
/** Of the filesystem that all sides are on. */
const DISK_GB = 12;
const CREATED = 2000;
const CREATED_BYTES = 4096;
const LARGE_MB = 256;
/** Files of the image that get their first write in one round. */
const PROMOTED = 200;
/** Its largest file: some 100 MB. */
const LARGE_FILE = 'usr/lib/x86_64-linux-gnu/libLLVM-14.so.1';

/** Unpacks a tar for overlayfs, adds it as an image, and mounts it all three ways with all of it ready. */
async function prepare(
  space: Workspace,
  worker: Worker,
  name: string,
  tar: string,
): Promise<{ lower: string; sides: Sides }> {
  process.stderr.write(`preparing ${name}\n`);
  const lower = space.makeDirectory('disk', `${name}-lower`);
  unpack(tar, lower);
  await worker.run('image', 'add', `rootfs:${tar}`, '--name', `${name}:bench`);
  const sides = { baseline: space.mountOverlay(join('disk', `${name}-overlayfs`), lower) } as Sides;
  for (const rw of ['fuse', 'overlay'] as const) {
    sides[rw] = space.makeDirectory(`${name}-${rw}`);
    await worker.run('mount', `${name}:bench`, sides[rw], '--rw', rw, '--wait');
  }
  return { lower, sides };
}

/** One figure for each side, taken in turns. */
function turns(
  rounds: number,
  sides: Sides,
  measure: (directory: string, side: Side) => Promise<number>,
): Promise<Record<Side, number>> {
  const of = (side: Side) => () => measure(sides[side], side);
  return takeTurns(rounds, {
    baseline: of('baseline'),
    fuse: of('fuse'),
    overlay: of('overlay'),
  });
}

/** `--rw fuse` with the budget, and its `--rw overlay` sibling. */
function addRows(
  rows: RowWriter,
  row: string,
  unit: string,
  seen: Record<Side, number>,
  better: 'lower' | 'higher',
  budget?: number,
): void {
  const baseline = { name: BASELINE, value: seen.baseline };
  const bound = budget === undefined ? {} : { budget };
  rows.add({ row, value: seen.fuse, unit, baseline, better, ...bound });
  rows.add({ row: `${row}-rw-overlay`, value: seen.overlay, unit, baseline, better });
}

/** Regular files of 1 to 64 KiB, spread over the tree, in lists of PROMOTED each. */
function filesToPromote(space: Workspace, lower: string, lists: number): string[] {
  const find = ['.', '-type', 'f', '-size', '+1k', '-size', '-64k', '-printf', '%P\\0'];
  const found = execFileSync('find', find, { cwd: lower, encoding: 'latin1', maxBuffer: 1 << 30 });
  const all = found.split('\0').slice(0, -1).sort();
  if (all.length < lists * PROMOTED) throw new Error(`only ${all.length} files to promote`);
  const step = Math.floor(all.length / (lists * PROMOTED));
  return Array.from({ length: lists }, (_, list) => {
    const path = join(space.directory, `promote-${list}.list`);
    const files = Array.from({ length: PROMOTED }, (_, i) => all[(i * lists + list) * step]!);
    writeList(path, files);
    return path;
  });
}

async function measureFiles(
  space: Workspace,
  rows: RowWriter,
  lower: string,
  sides: Sides,
): Promise<void> {
  const fswrite = new Fswrite();
  const created = await turns(7, sides, (directory) =>
    fswrite.create(join(directory, 'var/tmp'), CREATED, CREATED_BYTES),
  );
  addRows(rows, 'create-write-unlink', 'us', created, 'lower', 4);

  const large = await turns(5, sides, (directory) =>
    fswrite.large(join(directory, 'var/tmp/written'), LARGE_MB),
  );
  addRows(rows, 'write-large', 'MB/s', large, 'higher', 0.9);

  const lists = filesToPromote(space, lower, 5);
  const next: Record<Side, number> = { baseline: 0, fuse: 0, overlay: 0 };
  const promoted = await turns(lists.length, sides, (directory, side) =>
    fswrite.append(directory, lists[next[side]++]!),
  );
  addRows(rows, 'first-write', 'us', promoted, 'lower');

  const one = join(space.directory, 'large.list');
  writeList(one, [LARGE_FILE]);
  // Once only: the second write would not be the first.
  const seen = {} as Record<Side, number>;
  for (const side of SIDES) seen[side] = (await fswrite.append(sides[side], one)) / 1000;
  addRows(rows, 'first-write-large', 'ms', seen, 'lower');
}

/** Seconds of initdb as the user postgres, in a chroot; the clock is around that program alone. */
async function initdb(root: string, data: string): Promise<number> {
  const inside = (...command: string[]) => run('chroot', [root, ...command]);
  await inside('install', '-d', '-o', 'postgres', '-g', 'postgres', '-m', '700', data);
  const user = ['setpriv', '--reuid=postgres', '--regid=postgres', '--clear-groups'];
  const options = ['-D', data, '-A', 'trust', '--no-locale', '-E', 'UTF8'];
  const start = performance.now();
  await inside(...user, '/usr/lib/postgresql/15/bin/initdb', ...options);
  return (performance.now() - start) / 1000;
}

async function measureInitdb(rows: RowWriter, sides: Sides): Promise<void> {
  for (const side of SIDES) {
    const shm = join(sides[side], 'dev/shm');
    await run('mkdir', ['-p', shm]);
    await run('mount', ['-t', 'tmpfs', 'shm', shm]);
    await run('mount', ['--bind', '/dev/null', await made(join(sides[side], 'dev/null'))]);
    await run('mount', ['--bind', '/dev/urandom', await made(join(sides[side], 'dev/urandom'))]);
  }
  let number = 0;
  const seen = await turns(5, sides, (directory) => {
    number += 1;
    return initdb(directory, `/var/lib/postgresql/bench-${number}`);
  });
  addRows(rows, 'initdb', 's', seen, 'lower', 1.5);
}

async function made(path: string): Promise<string> {
  await run('touch', [path]);
  return path;
}

async function main(space: Workspace): Promise<void> {
  checkBuilt();
  const rows = new RowWriter('writes');
  const tar = `${realImage('programs')}/rootfs.tar`;
  const disk = makeDisk(space, DISK_GB);
  process.stderr.write(`${JSON.stringify(machineFacts(disk))}\n`);
  const server = await startServer(space, space.makeDirectory('data'));
  const worker = await Worker.start(space, space.makeDirectory('disk', 'root'), server);
  const { lower, sides } = await prepare(space, worker, 'programs', tar);
  // First, while the files are what they were: the first writes append to all kinds of them.
  await measureInitdb(rows, sides);
  await measureFiles(space, rows, lower, sides);
  rows.print();
}

const space = new Workspace('writes');
try {
  await main(space);
} finally {
  await space.close();
}
