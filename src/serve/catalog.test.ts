// The tests of the Catalog interface, run against every implementation, and the lock of the SQLite one.
import { spawn } from 'node:child_process';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test, { type ExecutionContext } from 'ava';
import type { BundleRecord, Catalog, ImageRecord, TraceRecord } from './catalog.ts';
import { SqliteCatalog } from './catalog-sqlite.ts';

const digest = (n: number) => `sha256:${n.toString(16).padStart(64, '0')}`;
const content = (n: number) => Buffer.alloc(32, n);
const image = (n: number, platform = 'linux/amd64'): ImageRecord => ({
  digest: digest(n),
  platform,
  entries: 10 * n,
  bytes: 100 * n,
  layers: n,
  addedAt: 1_700_000_000_000 + n,
});
const bundle = (n: number, of: number, more: Partial<BundleRecord> = {}): BundleRecord => ({
  id: n.toString(16).padStart(64, '0'),
  key: `key ${n}`,
  family: `family ${of}`,
  image: digest(of),
  bytes: 1000,
  headerBytes: 10,
  fresh: false,
  createdAt: n,
  usedAt: n,
  ...more,
});

const trace = (n: number, of: number, more: Partial<TraceRecord> = {}): TraceRecord => ({
  id: String(n).padStart(64, '0'),
  group: 'default',
  image: `some:${of}`,
  name: `some:${of}`,
  digest: digest(of),
  platform: 'linux/amd64',
  startedAt: n,
  durationMs: 10 * n,
  files: n,
  bytes: 1000,
  receivedAt: n,
  ...more,
});

async function directory(t: ExecutionContext): Promise<string> {
  const path = await mkdtemp(join(tmpdir(), 'firstlight-catalog-'));
  t.teardown(() => rm(path, { recursive: true }));
  return path;
}

const IMPLEMENTATIONS: Record<string, (dataDir: string) => Promise<Catalog>> = {
  sqlite: (dataDir) => SqliteCatalog.open(dataDir),
};

for (const [name, open] of Object.entries(IMPLEMENTATIONS)) {
  async function opened(t: ExecutionContext): Promise<Catalog> {
    const catalog = await open(await directory(t));
    t.teardown(() => catalog.close());
    return catalog;
  }

  test(`${name}: images and names, one image for each name and platform`, async (t) => {
    const catalog = await opened(t);
    await catalog.addImage(image(1), content(1), 'a:1');
    await catalog.addImage(image(2, 'linux/arm64/v8'), content(2), 'a:1');
    await catalog.addImage(image(3), content(3), 'a:1');
    t.deepEqual(await catalog.findByName('a:1'), [
      { ...image(3), name: 'a:1' },
      { ...image(2, 'linux/arm64/v8'), name: 'a:1' },
    ]);
    t.deepEqual(await catalog.findByDigest(digest(1)), { ...image(1), name: undefined });
    t.is(await catalog.findByDigest(digest(9)), undefined);
    t.deepEqual(
      (await catalog.listImages()).map((i) => [i.name, i.digest]),
      [
        ['a:1', digest(3)],
        ['a:1', digest(2)],
        [undefined, digest(1)],
      ],
    );
    t.true(await catalog.nameImage(digest(1), 'b:1'));
    t.is((await catalog.findByDigest(digest(1)))?.name, 'b:1');
    t.false(await catalog.nameImage(digest(9), 'c:1'));
    t.deepEqual(await catalog.findByName('c:1'), []);
  });

  test(`${name}: an image goes with its last name, a content with its last image`, async (t) => {
    const catalog = await opened(t);
    const [one, two] = [
      Buffer.concat([content(1), content(2)]),
      Buffer.concat([content(2), content(3)]),
    ];
    await catalog.addImage(image(1), one, 'a:1');
    await catalog.addImage(image(1), one, 'b:1');
    await catalog.addImage(image(2), two, 'c:1');
    await catalog.addBundle(bundle(7, 1));
    const contentsOf = new Map([
      [digest(1), one],
      [digest(2), two],
    ]);
    const probe = Buffer.concat([content(1), content(2), content(3), content(4)]);
    const used = async () => [...(await catalog.usedContents(probe))];
    t.deepEqual(await used(), [1, 1, 1, 0]);
    const none = { name: 'no:1', platform: undefined };
    t.deepEqual(await catalog.removeImages(none, contentsOf), {
      names: 0,
      images: [],
      bundles: [],
    });
    const first = await catalog.removeImages({ name: 'a:1', platform: undefined }, contentsOf);
    t.deepEqual(first, { names: 1, images: [], bundles: [] });
    t.deepEqual(await used(), [1, 1, 1, 0]);
    const last = await catalog.removeImages({ name: 'b:1', platform: 'linux/amd64' }, contentsOf);
    t.deepEqual(last, { names: 1, images: [digest(1)], bundles: [bundle(7, 1).id] });
    t.deepEqual(await used(), [0, 1, 1, 0]);
    t.is(await catalog.findByDigest(digest(1)), undefined);
    const second = await catalog.removeImages({ digest: digest(2) }, contentsOf);
    t.deepEqual(second, { names: 1, images: [digest(2)], bundles: [] });
    t.deepEqual(await used(), [0, 0, 0, 0]);
  });

  test(`${name}: a removal that does not know the contents changes nothing`, async (t) => {
    const catalog = await opened(t);
    await catalog.addImage(image(1), content(1), 'a:1');
    await t.throwsAsync(catalog.removeImages({ name: 'a:1', platform: undefined }, new Map()), {
      message: /try again/,
    });
    t.is((await catalog.findByName('a:1')).length, 1);
    t.deepEqual([...(await catalog.usedContents(content(1)))], [1]);
  });

  test(`${name}: bundles are found by key until they are retired, by id until dropped`, async (t) => {
    const catalog = await opened(t);
    t.false(await catalog.addBundle(bundle(1, 1)), 'no bundle of an image that is not there');
    await catalog.addImage(image(1), content(1), 'a:1');
    t.true(await catalog.addBundle(bundle(1, 1, { fresh: true })));
    t.true(await catalog.addBundle(bundle(2, 1)));
    t.deepEqual(await catalog.findBundle('key 1'), bundle(1, 1, { fresh: true }));
    t.deepEqual(await catalog.freshBundle(digest(1)), bundle(1, 1, { fresh: true }));
    await catalog.touchBundle(bundle(1, 1).id, 99);
    t.deepEqual(
      (await catalog.listBundles()).map((b) => b.usedAt),
      [2, 99],
    );
    const { id } = bundle(2, 1);
    t.false(await catalog.dropBundle(id), 'one that is in use is not dropped');
    await catalog.retireBundle(id);
    t.is(await catalog.findBundle('key 2'), undefined);
    t.is((await catalog.bundleById(id))?.bytes, 1000);
    t.deepEqual(await catalog.retiredBundles(), [id]);
    await catalog.addBundle(bundle(2, 1));
    t.false(await catalog.dropBundle(id), 'added again, it stays');
    await catalog.retireBundle(id);
    t.true(await catalog.dropBundle(id));
    t.is(await catalog.bundleById(id), undefined);
    t.deepEqual(await catalog.bundleIds(), [bundle(1, 1).id]);
  });

  test(`${name}: traces are kept within their bounds, the newest first, and note what they can order`, async (t) => {
    const catalog = await opened(t);
    await catalog.addImage(image(1), content(1), 'a:1');
    await catalog.addImage(image(2), content(2), 'a:2');
    const data = Buffer.alloc(100, 1);
    const bounds = { tracesPerImage: 2, tracesMaxBytes: 1000 };
    const names = [digest(2), digest(9), digest(1)];
    t.true(await catalog.addTrace(trace(1, 1), data, names, bounds));
    t.false(await catalog.addTrace(trace(1, 1, { files: 9 }), data, [], bounds));
    t.deepEqual(await catalog.listTraces(), [trace(1, 1)]);
    t.deepEqual(await catalog.nextReorder(), { image: digest(2), mark: 1 });
    await catalog.dropReorder({ image: digest(2), mark: 1 });
    t.false(await catalog.isReordering(digest(2)));
    t.false(await catalog.isReordering(digest(9)), 'there is no such image');
    t.true(await catalog.isReordering(digest(1)));
    const before = (await catalog.nextReorder())!;
    await catalog.noteReorders([digest(1)]);
    await catalog.dropReorder(before);
    t.true(await catalog.isReordering(digest(1)), 'a later note stays');
    const plain = { digest: undefined, platform: undefined, name: undefined };
    for (const n of [2, 3]) await catalog.addTrace(trace(n, 1), data, [], bounds);
    await catalog.addTrace(trace(4, 2, plain), data, [], bounds);
    const ids = async () => (await catalog.listTraces()).map((t) => Number(t.id));
    t.deepEqual(await ids(), [4, 3, 2], 'two of an image');
    await catalog.addTrace(trace(7, 1, { startedAt: 1 }), data, [], bounds);
    t.deepEqual(await ids(), [7, 4, 3], 'an old run that comes late puts out the oldest only');
    await catalog.addTrace(trace(8, 1, { startedAt: 2 ** 50 }), data, [], bounds);
    t.deepEqual(await ids(), [8, 4, 3]);
    await catalog.addTrace(trace(9, 1), data, [], bounds);
    t.deepEqual(await ids(), [9, 8, 4], 'a start in the future does not make a trace last');
    await catalog.addTrace(trace(10, 1), data, [], bounds);
    t.deepEqual(await ids(), [10, 9, 4]);
    t.deepEqual((await catalog.listTraces()).at(-1), trace(4, 2, plain));
    t.deepEqual(
      (await catalog.traceData([trace(10, 1).id, trace(1, 1).id])).map((d) => d?.length),
      [100, undefined],
    );
    await catalog.addTrace(trace(11, 2), Buffer.alloc(750), [], bounds);
    t.deepEqual(await ids(), [11, 10, 9], 'as many bytes as they may have in all');
    await catalog.addTrace(trace(12, 2), Buffer.alloc(2000), [], bounds);
    t.deepEqual(await ids(), [12], 'the one just added stays');
    t.false(await catalog.removeTrace(trace(11, 2).id, []));
    t.true(await catalog.removeTrace(trace(12, 2).id, [digest(2)]));
    t.true(await catalog.isReordering(digest(2)));
    t.deepEqual(await catalog.traceData([trace(12, 2).id]), [undefined]);
  });

  test(`${name}: an order goes with its image, traces with the last image that they can order`, async (t) => {
    const catalog = await opened(t);
    const ranks = { version: 'v', data: new Uint8Array([1, 2, 3]), count: 1, runs: 2 };
    await catalog.addImage(image(1), content(1), 'a:1', undefined, ranks);
    await catalog.addImage(image(2), content(2), 'a:2');
    await catalog.addImage(image(3), content(3), 'aa:1');
    t.deepEqual(await catalog.ranksOf(digest(1)), ranks);
    t.is(await catalog.orderOf(digest(1)), 'v');
    t.is(await catalog.orderOf(digest(2)), '');
    await catalog.setRanks(digest(9), ranks);
    t.is(await catalog.ranksOf(digest(9)), undefined, 'there is no such image');
    await catalog.setRanks(digest(2), { ...ranks, version: 'w' });
    await catalog.setRanks(digest(1), undefined);
    t.is(await catalog.ranksOf(digest(1)), undefined);
    const bounds = { tracesPerImage: 9, tracesMaxBytes: 1000 };
    await catalog.addTrace(trace(1, 1, { name: 'a:1' }), Buffer.alloc(1), [digest(1)], bounds);
    await catalog.addTrace(trace(2, 3, { name: undefined }), Buffer.alloc(1), [], bounds);
    const remove = (n: number) =>
      catalog.removeImages({ digest: digest(n) }, new Map([[digest(n), content(n)]]));
    const ids = async () => (await catalog.listTraces()).map((t) => Number(t.id));
    await remove(1);
    t.false(await catalog.isReordering(digest(1)));
    t.deepEqual(await ids(), [2, 1], 'a:2 is another version');
    await remove(2);
    t.is(await catalog.ranksOf(digest(2)), undefined);
    t.deepEqual(await ids(), [2], 'aa is another name');
    await remove(3);
    t.deepEqual(await ids(), []);
  });

  test(`${name}: of an image one bundle is the fresh one, of a family the newest answers`, async (t) => {
    const catalog = await opened(t);
    await catalog.addImage(image(1), content(1), 'a:1', bundle(1, 1, { fresh: true }));
    t.is((await catalog.newestOfFamily('family 1'))?.id, bundle(1, 1).id);
    await catalog.addBundle(bundle(2, 1, { fresh: true }));
    t.is((await catalog.bundleById(bundle(1, 1).id))?.fresh, false);
    t.is((await catalog.freshBundle(digest(1)))?.id, bundle(2, 1).id);
    t.is((await catalog.newestOfFamily('family 1'))?.id, bundle(2, 1).id);
    await catalog.addBundle(bundle(3, 1, { family: 'another' }));
    t.is((await catalog.freshBundle(digest(1)))?.id, bundle(2, 1).id);
    await catalog.retireBundle(bundle(2, 1).id);
    t.is((await catalog.newestOfFamily('family 1'))?.id, bundle(1, 1).id);
    t.is(await catalog.newestOfFamily('none'), undefined);
  });

  test(`${name}: notes of changes outlive the process`, async (t) => {
    const dataDir = await directory(t);
    const first = await open(dataDir);
    const done = await first.openChange();
    await first.openChange();
    await first.closeChange(done);
    await first.close();
    const second = await open(dataDir);
    t.teardown(() => second.close());
    t.is(await second.openChanges(), 1);
    await second.clearChanges();
    t.is(await second.openChanges(), 0);
  });
}

test('sqlite: a second opener is told who has the directory', async (t) => {
  const dataDir = await directory(t);
  const first = await SqliteCatalog.open(dataDir);
  await t.throwsAsync(SqliteCatalog.open(dataDir), {
    name: 'FirstlightError',
    message: `${dataDir} is in use by process ${process.pid}`,
  });
  await first.close();
  await (await SqliteCatalog.open(dataDir)).close();
});

test('sqlite: the lock holds between processes and ends with kill -9', async (t) => {
  const dataDir = await directory(t);
  const module = new URL('./catalog-sqlite.ts', import.meta.url).href;
  const script = `const { SqliteCatalog } = await import(${JSON.stringify(module)});
    await SqliteCatalog.open(${JSON.stringify(dataDir)});
    process.stdout.write('open'); setInterval(() => {}, 1000);`;
  const child = spawn(process.execPath, ['--input-type=module', '-e', script]);
  t.teardown(() => child.kill('SIGKILL'));
  await new Promise((resolve) => child.stdout.once('data', resolve));
  const error = await t.throwsAsync(SqliteCatalog.open(dataDir), { name: 'FirstlightError' });
  t.is(error?.message, `${dataDir} is in use by process ${child.pid}`);
  const gone = new Promise((resolve) => child.once('exit', resolve));
  child.kill('SIGKILL');
  await gone;
  await (await SqliteCatalog.open(dataDir)).close();
});

test('sqlite: a file that is no catalog is refused', async (t) => {
  const dataDir = await directory(t);
  await writeFile(
    join(dataDir, 'catalog.db'),
    'this is no database, but it is long enough to be read',
  );
  const error = await t.throwsAsync(SqliteCatalog.open(dataDir), { name: 'FirstlightError' });
  t.is((error as unknown as { kind: string }).kind, 'corrupt');
});
