// The tests of the Catalog interface, run against every implementation, and the lock of the SQLite one.
import { spawn } from 'node:child_process';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test, { type ExecutionContext } from 'ava';
import type { BundleRecord, Catalog, ImageRecord } from './catalog.ts';
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
