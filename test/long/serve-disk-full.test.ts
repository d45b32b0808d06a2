// A delta server whose disk fills up while an image comes in, at every stage of it: the upload, the
// contents, the bundle; and while a trace is reported. It says so, nothing half-done is left, and it
// goes on.
import { spawn } from 'node:child_process';
import { mkdir, mkdtemp, readdir, rm, statfs, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import test, { type ExecutionContext } from 'ava';
import type { ErrorBody } from '../../src/delta/protocol.ts';
import { startServer } from '../../src/serve/server.ts';
import { addRootfs, ask, makeTar, noise, quiet } from '../../src/serve/testkit.ts';
import { orderNow, report, settled, traceOf } from '../../src/serve/testkit-traces.ts';
import { until } from '../lib/proc.ts';

function run(command: string, ...args: string[]): Promise<void> {
  return new Promise((resolve, reject) => {
    const child = spawn(command, args, { stdio: ['ignore', 'ignore', 'inherit'] });
    child.once('error', reject);
    child.once('exit', (code) =>
      code === 0 ? resolve() : reject(new Error(`${command}: ${code}`)),
    );
  });
}

/** A tmpfs of its own for the data directory; gone with the test. */
async function smallDisk(t: ExecutionContext, kib: number): Promise<string> {
  const parent = await mkdtemp(join(tmpdir(), 'firstlight-full-'));
  const path = join(parent, 'data');
  await mkdir(path);
  t.teardown(() => rm(parent, { recursive: true }));
  await run('mount', '-t', 'tmpfs', '-o', `size=${kib}k`, 'firstlight-test', path);
  t.teardown(() => run('umount', path));
  return path;
}

/** Entries of uploads/, images/, bundles/ and content/ together. */
async function entries(dataDir: string): Promise<number> {
  let found = 0;
  for (const name of ['uploads', 'images', 'bundles']) {
    found += (await readdir(join(dataDir, name))).length;
  }
  for (const shard of await readdir(join(dataDir, 'content'))) {
    found += (await readdir(join(dataDir, 'content', shard))).length;
  }
  return found;
}

const freeBytes = async (path: string) => {
  const { bavail, bsize } = await statfs(path);
  return bavail * bsize;
};

const IMAGE_BYTES = 4_000_000;

/** Where the disk ran full, by what the client had been told before. */
const stages = new Set<string>();

async function fillUp(t: ExecutionContext, kib: number, tar: Buffer): Promise<void> {
  const dataDir = await smallDisk(t, kib);
  const server = await startServer({ dataDir, listen: '127.0.0.1:0', log: quiet });
  try {
    const add = (name: string, body: Buffer) =>
      ask(`${server.url}/v1/images?kind=rootfs&name=${name}`, { method: 'POST', body });
    const before = await freeBytes(dataDir);
    const answer = await add('big', tar);
    const lines = answer.body.toString().trimEnd().split('\n');
    const last = JSON.parse(lines.at(-1)!) as Partial<ErrorBody> & { event?: string };
    if (last.event === 'done') {
      stages.add('none');
      return;
    }
    t.is(last.error?.kind, 'no-space', `${kib} KiB: ${answer.body}`);
    t.is(answer.status, lines.length === 1 ? 507 : 200);
    stages.add(
      lines.length === 1 ? 'upload' : (JSON.parse(lines.at(-2)!) as { event: string }).event,
    );
    t.false(answer.body.toString().includes(dataDir));
    await until(`${kib} KiB: nothing is left`, async () => (await entries(dataDir)) === 0);
    t.deepEqual((await ask(`${server.url}/v1/images`)).json(), []);
    t.is((await ask(`${server.url}/healthz`)).status, 200);
    // All but what the catalog's log grew by.
    t.true((await freeBytes(dataDir)) > before - 200_000, `${kib} KiB`);
    const small = await add('small', await makeTar({ small: 'small' }));
    t.regex(small.body.toString(), /"event":"done"/, `${kib} KiB`);
  } finally {
    await server.close();
  }
}

test.serial('a disk that fills up at any stage of an intake', async (t) => {
  const tar = await makeTar(
    Object.fromEntries(
      // Small and large contents: they are written in different ways.
      [3_000_000, ...Array<number>(20).fill((IMAGE_BYTES - 3_000_000) / 20)].map((bytes, i) => [
        `f${i}`,
        noise(bytes, i + 1),
      ]),
    ),
  );
  for (const kib of [2_500, 4_500, 5_500, 7_500, 8_800, 10_000, 12_000, 13_500, 15_000, 24_000]) {
    await fillUp(t, kib, tar);
  }
  // Contents are written behind the reader: how far it has come by then is a matter of time.
  t.true(stages.has('progress') || stages.has('layer'));
  for (const stage of ['upload', 'encode', 'none']) t.true(stages.has(stage), stage);
});

/** A report while only so much is free; true where the report itself was taken. */
async function reportFull(t: ExecutionContext, freeKib: number): Promise<boolean> {
  const dataDir = await smallDisk(t, 16_000);
  const server = await startServer({
    dataDir,
    listen: '127.0.0.1:0',
    log: quiet,
    limits: { reorderRetryMs: 200 },
  });
  try {
    const { url } = server;
    await addRootfs(url, 'app', await makeTar({ a: 'a', big: noise(3_000_000, 1), z: 'z' }));
    const tree = await orderNow(url, 'app');
    const filler = join(dataDir, 'filler');
    await writeFile(filler, Buffer.alloc((await freeBytes(dataDir)) - freeKib * 1024, 1));
    const answer = await report(url, traceOf('app', ['z']));
    if (answer.status !== 201) {
      t.is(answer.status, 507, `${freeKib} KiB: ${answer.body}`);
      t.is((answer.json() as ErrorBody).error.kind, 'no-space');
    }
    await sleep(500);
    t.is((await orderNow(url, 'app')).id, tree.id, 'the old order answers');
    const uploads = join(dataDir, 'uploads');
    await until('uploads are gone', async () => (await readdir(uploads)).length === 0);
    await rm(filler);
    if (answer.status !== 201) {
      t.is((await report(url, traceOf('app', ['z']))).status, 201, `${freeKib} KiB`);
    }
    await settled(url, 'app');
    t.is((await orderNow(url, 'app')).paths[0], 'z', `${freeKib} KiB`);
    return answer.status === 201;
  } finally {
    await server.close();
  }
}

test.serial(
  'a disk that fills up while a trace is reported, or while the bundle in its order is made',
  async (t) => {
    t.false(await reportFull(t, 0));
    await reportFull(t, 8);
    await reportFull(t, 32);
    t.true(await reportFull(t, 1000));
  },
);
