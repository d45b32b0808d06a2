// Reported traces: what they do to the order of bundles, which images they reach, and that whoever
// asks meanwhile gets the old order at once.

import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { setTimeout as sleep } from 'node:timers/promises';
import test from 'ava';
import type { ErrorBody, ImageDetail, TraceSummary } from '../delta/protocol.ts';
import { ImageStore } from './image-store.ts';
import { packRanks, ranksVersion } from './ranks.ts';
import { addRootfs, ask, makeDirectory, makeTar, noise, quiet, serve } from './testkit.ts';
import { orderNow, orderOf, report, reported, settled, traceOf } from './testkit-traces.ts';

const files = (version: string) => ({
  a: `a of ${version}`,
  b: `b of ${version}`,
  c: `c of ${version}`,
  [`lib/libx.so.${version}`]: noise(3_000_000, version.length),
  z: 'z of all',
});
const image = (version: string) => makeTar(files(version));

/** The trace's name of a large file that was read from 1 MiB on, a little. */
const second = { a: 500_000, w: 0, s: 0, r: [[1_500_000, 1000]] };

test('a report orders the next bundles, with and without bases; the old one stays to be had', async (t) => {
  const { url } = await serve(t);
  await addRootfs(url, 'app:1', await image('1.2'));
  const tree = await orderNow(url, 'app:1');
  t.deepEqual(tree.paths.slice(0, 3), ['a', 'b', 'c']);
  await addRootfs(url, 'other:1', await makeTar({ only: 'b of 1.2' }));
  const other = ((await ask(`${url}/v1/images/other:1`)).json() as ImageDetail).digest;
  await orderNow(url, 'app:1', [other]);
  const trace = JSON.parse(traceOf('app:1', ['z', 'c']));
  trace.seq.push({ f: 'lib/libx.so.1.2', ...second });
  const receipt = await reported(url, JSON.stringify(trace));
  t.true(receipt.added);
  t.like(receipt.trace, { image: 'app:1', files: 3, group: 'default', durationMs: 1000 });
  const traced = await orderNow(url, 'app:1');
  t.deepEqual(traced.paths, [
    'z',
    'lib/libx.so.1.2#1',
    'c',
    'a',
    'b',
    'lib/libx.so.1.2',
    'lib/libx.so.1.2#2',
  ]);
  const detail = (await ask(`${url}/v1/images/app:1`)).json() as ImageDetail;
  t.deepEqual(detail.order, { runs: 1, ranked: 3, settled: true });
  let update = await orderNow(url, 'app:1', [other]);
  for (let i = 0; i < 100 && update.paths[0] !== 'z'; i++) {
    t.is(update.paths[0], 'a', 'the old order answers while the new one is computed');
    await sleep(50);
    update = await orderNow(url, 'app:1', [other]);
  }
  t.is(update.paths[0], 'z');
  const old = await ask(`${url}/v1/bundles/${tree.id}`);
  t.is(old.status, 200);
  t.deepEqual(orderOf(old.body), tree);
});

test('an equal report is one; a removed one leaves the order of the tree', async (t) => {
  const { url } = await serve(t);
  await addRootfs(url, 'app:1', await image('1.2'));
  const tree = await orderNow(url, 'app:1');
  const body = traceOf('app:1', ['z', 'c']);
  const { trace } = await reported(url, body);
  const traced = await orderNow(url, 'app:1');
  t.not(traced.id, tree.id);
  const again = await report(url, ` ${body}\n`);
  t.is(again.status, 200);
  t.like(again.json(), { added: false, trace: { id: trace.id } });
  t.deepEqual((await ask(`${url}/v1/traces`)).json(), [trace]);
  const text = (await ask(`${url}/v1/traces/${trace.id}`)).json() as { seq: { f: string }[] };
  t.deepEqual(
    text.seq.map((item) => item.f),
    ['z', 'c'],
  );
  t.is((await ask(`${url}/v1/traces/${trace.id}`, { method: 'DELETE' })).status, 204);
  t.is((await ask(`${url}/v1/traces/${trace.id}`, { method: 'DELETE' })).status, 404);
  t.is((await ask(`${url}/v1/traces/${trace.id}`)).status, 404);
  const detail = await settled(url, 'app:1');
  t.deepEqual(detail.order, { runs: 0, ranked: 0, settled: true });
  t.is((await orderNow(url, 'app:1')).id, tree.id);
});

test('another version is ordered by it: one that is there, one that comes, one that takes the name', async (t) => {
  const { url } = await serve(t);
  await addRootfs(url, 'app:1', await image('1.2'));
  await addRootfs(url, 'app:2', await image('1.10'));
  await addRootfs(url, 'apple:1', await makeTar({ ...files('1.2'), d: 'another image' }));
  const trace = JSON.parse(traceOf('docker.io/library/app:1', ['z', 'c']));
  trace.seq.push({ f: 'lib/libx.so.1.2', ...second });
  const { images } = await reported(url, JSON.stringify(trace));
  t.is(images.length, 2, 'another repository has nothing of it');
  const first = ['z', 'lib/libx.so.1.10#1', 'c', 'a', 'b'];
  t.deepEqual((await orderNow(url, 'app:2')).paths.slice(0, 5), first);
  t.is((await orderNow(url, 'apple:1')).paths[0], 'a');
  await addRootfs(url, 'app:3', await image('2.0.1'));
  const third = (await ask(`${url}/v1/images/app:3`)).json() as ImageDetail;
  t.like(third.order, { runs: 1, settled: true }, 'from its first bundle on');
  t.deepEqual((await orderNow(url, 'app:3')).paths.slice(0, 3), ['z', 'lib/libx.so.2.0.1#1', 'c']);
  await addRootfs(url, 'app:1', await image('1.3'));
  t.is((await orderNow(url, 'app:1')).paths[0], 'z');
  // An image of another name gets it with a second name.
  await addRootfs(url, 'app:apple', await makeTar({ ...files('1.2'), d: 'another image' }));
  await settled(url, 'apple:1');
  t.is((await orderNow(url, 'apple:1')).paths[0], 'z');
});

test('the images of a group carry its order, each its own files', async (t) => {
  const { url } = await serve(t);
  const shared = noise(70_000, 7);
  await addRootfs(url, 'web:1', await makeTar({ a: 'a', b: 'b', m: shared, z: 'z' }));
  await addRootfs(url, 'db:1', await makeTar({ c: 'c', d: 'd', m: shared, y: 'y' }));
  const group = { group: 'shop' };
  await reported(url, traceOf('web:1', ['z', 'm'], group));
  const start = '2026-01-02T03:04:05.7Z';
  await reported(url, traceOf('db:1', ['y', 'd'], { ...group, start }));
  await settled(url, 'web:1');
  t.deepEqual((await orderNow(url, 'web:1')).paths, ['z', 'm', 'a', 'b']);
  t.deepEqual(
    (await orderNow(url, 'db:1')).paths,
    ['y', 'd', 'm', 'c'],
    'm: its neighbour read it',
  );
  const list = (await ask(`${url}/v1/traces`)).json() as TraceSummary[];
  t.deepEqual(
    list.map((trace) => trace.group),
    ['shop', 'shop'],
  );
});

test('repeated runs: what most of them read comes first', async (t) => {
  const { url } = await serve(t);
  await addRootfs(url, 'app:1', await makeTar({ a: '1', b: '2', c: '3', d: '4' }));
  const run = (n: number, paths: string[]) =>
    reported(url, traceOf('app:1', paths, { start: `2026-01-02T03:04:0${n}Z`, end: undefined }));
  await run(1, ['d', 'c']);
  await run(2, ['b', 'd', 'c']);
  await run(3, ['d', 'c']);
  const detail = await settled(url, 'app:1');
  t.deepEqual(detail.order, { runs: 3, ranked: 3, settled: true });
  t.deepEqual((await orderNow(url, 'app:1')).paths, ['d', 'c', 'b', 'a']);
});

test('a bundle in an older order answers at once, and the newer one follows', async (t) => {
  const dataDir = await makeDirectory(t);
  const server = await serve(t, { dataDir });
  await addRootfs(server.url, 'app:1', await image('1.2'));
  const tree = await orderNow(server.url, 'app:1');
  await server.close();
  const store = await ImageStore.open({ dataDir, log: quiet });
  try {
    const app = await store.find('app:1', undefined);
    const data = packRanks([{ content: 2 }]);
    const ranks = { data, version: ranksVersion(data), count: 1, runs: 1 };
    await store.catalog.setRanks(app.digest, ranks);
    t.is((await store.bundleFor(app, [])).id, tree.id);
    let now = tree.id;
    for (let i = 0; i < 200 && now === tree.id; i++) {
      await sleep(20);
      now = (await store.bundleFor(app, [])).id;
    }
    t.not(now, tree.id);
    t.is(
      (await store.catalog.bundleById(tree.id))?.fresh,
      false,
      'it goes when nobody asks for it',
    );
    t.is((await store.catalog.freshBundle(app.digest))?.id, now);
    const soon = await store.bundles.shelf.clean(Date.now() + 23 * 3_600_000);
    t.deepEqual(soon, []);
    t.deepEqual(await store.bundles.shelf.clean(Date.now() + 25 * 3_600_000), [tree.id]);
  } finally {
    await store.close();
  }
});

test('a report outlives a restart before it is worked off, and an old catalog is brought up', async (t) => {
  const dataDir = await makeDirectory(t);
  const before = await serve(t, { dataDir });
  await addRootfs(before.url, 'app:1', await image('1.2'));
  const { digest } = (await ask(`${before.url}/v1/images/app:1`)).json() as ImageDetail;
  await before.close();
  const db = new DatabaseSync(join(dataDir, 'catalog.db'));
  // As version 1 of the schema was.
  db.exec(`DROP TABLE trace_data; DROP TABLE traces; DROP TABLE ranks; DROP TABLE reorders;
    DROP INDEX bundles_by_family; ALTER TABLE bundles DROP COLUMN family; PRAGMA user_version=1`);
  db.close();
  const store = await ImageStore.open({ dataDir, log: quiet });
  const bounds = { tracesPerImage: 32, tracesMaxBytes: 1 << 20 };
  const { zstdCompressSync } = await import('node:zlib');
  const text = Buffer.from(traceOf('app:1', ['z']));
  const trace = {
    id: '1'.repeat(64),
    group: 'default',
    image: 'app:1',
    name: 'app:1',
    digest,
    platform: undefined,
    startedAt: 1,
    durationMs: 1,
    files: 1,
    bytes: text.length,
    receivedAt: 1,
  };
  t.true(await store.catalog.addTrace(trace, zstdCompressSync(text), [digest], bounds));
  t.true(await store.catalog.isReordering(digest));
  await store.close();
  const { url } = await serve(t, { dataDir });
  await settled(url, 'app:1');
  t.is((await orderNow(url, 'app:1')).paths[0], 'z');
});

test('a trace of an image that is not there is refused; those of a removed image go with its last version', async (t) => {
  const { url } = await serve(t);
  await addRootfs(url, 'app:1', await image('1.2'));
  await addRootfs(url, 'app:2', await image('1.3'));
  for (const name of ['nope:1', 'ap:1', `sha256:${'0'.repeat(64)}`, '']) {
    const answer = await report(url, traceOf(name, ['z']));
    t.is(answer.status, name === '' ? 422 : 404, name);
    t.is((answer.json() as ErrorBody).error.kind, name === '' ? 'corrupt' : 'not-found');
  }
  await reported(url, traceOf('app:1', ['z']));
  await ask(`${url}/v1/images/app:1`, { method: 'DELETE' });
  const count = async () => ((await ask(`${url}/v1/traces`)).json() as unknown[]).length;
  t.is(await count(), 1, 'it orders app:2');
  await ask(`${url}/v1/images/app:2`, { method: 'DELETE' });
  t.is(await count(), 0);
});
