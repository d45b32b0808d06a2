// make bench-receive: throughput of taking an image in (decode, verify, write, make durable) against
// the same work done by zstd, sha256sum and a small C program. What stands on each side is said in
// docs/PERFORMANCE.md. What does not live here: reads through a mount (metadata.ts).
import { execFileSync } from 'node:child_process';
import { mkdirSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { DEFAULT_LEVEL } from '../src/delta/zstd.ts';
import { buildFsbench, writeList } from './lib/fsbench.ts';
import { type ContentFile, compressContents, contentsOf } from './lib/image-contents.ts';
import { machineFacts, takeTurns } from './lib/measure.ts';
import { checkBuilt, startServer, Worker } from './lib/program.ts';
import { RowWriter } from './lib/rows.ts';
import { realImage } from './lib/trees.ts';
import { Workspace } from './lib/workspace.ts';

const ROUNDS = Number(process.env.BENCH_ROUNDS ?? 5);
const MB = 1e6;

/** What the baseline reads: one compressed stream, where to cut it, and the digests to check. */
interface Baseline {
  body: string;
  list: string;
  sums: string;
}

async function makeBaseline(
  space: Workspace,
  root: string,
  name: string,
  contents: ContentFile[],
): Promise<Baseline> {
  const [body, list, sums] = ['body.zst', 'list', 'sums'].map((part) =>
    join(space.directory, `${name}.${part}`),
  ) as [string, string, string];
  await compressContents(root, contents, DEFAULT_LEVEL, body);
  writeList(
    list,
    contents.map((c) => `${c.name} ${c.bytes}`),
  );
  writeFileSync(sums, contents.map((c) => `${c.digest}  ${c.name}\n`).join(''));
  return { body, list, sums };
}

/** A directory with the 256 directories of a content store, made and synced before the clock starts. */
function emptyStore(space: Workspace): string {
  const directory = join(space.directory, 'baseline-store');
  rmSync(directory, { recursive: true, force: true });
  for (let i = 0; i < 256; i++) {
    mkdirSync(join(directory, i.toString(16).padStart(2, '0')), { recursive: true });
  }
  execFileSync('sync');
  return directory;
}

/** Milliseconds of a shell line. */
function timeShell(line: string, directory: string): number {
  const start = performance.now();
  execFileSync('bash', ['-euo', 'pipefail', '-c', line], { cwd: directory, stdio: 'pipe' });
  return performance.now() - start;
}

/**
 * The baseline: decompression feeds the writer through a pipe (two processes at once, as a shell does
 * it), then every file is checked, then all of them are made durable.
 */
function runBaseline(space: Workspace, fsbench: string, b: Baseline): number {
  const directory = emptyStore(space);
  return timeShell(
    `zstd -dcq '${b.body}' | '${fsbench}' put . '${b.list}' >/dev/null
     sha256sum --quiet --check '${b.sums}'
     '${fsbench}' syncfs . >/dev/null`,
    directory,
  );
}

/** Ours: `firstlight mount --wait` in a fresh root whose daemon runs already, from the command to its end. */
async function runOurs(
  space: Workspace,
  server: string,
  image: string,
  check?: (root: string) => Promise<void>,
): Promise<number> {
  const root = space.makeDirectory('receive-root');
  const mountPoint = space.makeDirectory('receive-mount');
  const worker = await Worker.start(space, root, server);
  execFileSync('sync');
  const ms = await worker.time('mount', image, mountPoint, '--rw', 'off', '--wait');
  await check?.(root);
  await worker.run('umount', mountPoint);
  await worker.stop();
  rmSync(root, { recursive: true });
  return ms;
}

async function measureImage(
  space: Workspace,
  rows: RowWriter,
  server: string,
  name: string,
): Promise<void> {
  const fsbench = buildFsbench();
  let contents: ContentFile[] = [];
  let baseline: Baseline | undefined;
  // The first transfer is not measured: the server computes the bundle in it, and its store gives
  // the baseline's files.
  await runOurs(space, server, `${name}:bench`, async (root) => {
    contents = await contentsOf(root);
    baseline = await makeBaseline(space, root, name, contents);
  });
  const bytes = contents.reduce((sum, c) => sum + c.bytes, 0);
  process.stderr.write(
    `${name}: ${contents.length} files, ${(bytes / MB).toFixed(1)} MB, ` +
      `${(statSync(baseline!.body).size / MB).toFixed(1)} MB compressed\n`,
  );
  const ms = await takeTurns(ROUNDS, {
    baseline: () => runBaseline(space, fsbench, baseline!),
    ours: () => runOurs(space, server, `${name}:bench`),
  });
  rows.add({
    row: `receive-${name}`,
    value: bytes / MB / (ms.ours / 1000),
    unit: 'MB/s',
    baseline: {
      name: 'zstd + sha256sum + write + syncfs',
      value: bytes / MB / (ms.baseline / 1000),
    },
    better: 'higher',
    budget: 0.7,
  });
}

async function main(space: Workspace): Promise<void> {
  checkBuilt();
  const rows = new RowWriter('receive');
  process.stderr.write(`${JSON.stringify(machineFacts(space.directory))}\n`);
  const server = await startServer(space, space.makeDirectory('data'));
  const adder = await Worker.start(space, space.makeDirectory('adder'), server);
  const sources = {
    redis: `oci:${realImage('redis')}/oci:latest`,
    python: `rootfs:${realImage('python')}/rootfs.tar`,
  };
  for (const [name, source] of Object.entries(sources)) {
    await adder.run('image', 'add', source, '--name', `${name}:bench`);
    await measureImage(space, rows, server, name);
  }
  rows.print();
}

const space = new Workspace('receive');
try {
  await main(space);
} finally {
  await space.close();
}
