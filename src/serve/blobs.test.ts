// The tests of the BlobStore interface, run against every implementation.
import { createHash, randomBytes } from 'node:crypto';
import { mkdtemp, readdir, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Readable } from 'node:stream';
import test, { type ExecutionContext } from 'ava';
import type { BlobStore } from './blobs.ts';
import { DirectoryBlobStore } from './blobs-directory.ts';
import { chooseSync, syncEach } from './durable.ts';

const digest = `sha256:${'12'.repeat(32)}`;
const documents = {
  'manifest.json': Buffer.from('{}'),
  'config.json': Buffer.from('{"a":1}'),
  toc: Buffer.from('toc'),
  contents: Buffer.alloc(64, 3),
};
const sha256 = (data: Buffer) => createHash('sha256').update(data).digest('hex');
const chunked = (data: Buffer) =>
  Readable.from(
    (function* () {
      for (let at = 0; at < data.length; at += 60_000) yield data.subarray(at, at + 60_000);
    })(),
    { objectMode: false },
  );

async function directory(t: ExecutionContext): Promise<string> {
  const path = await mkdtemp(join(tmpdir(), 'firstlight-blobs-'));
  t.teardown(() => rm(path, { recursive: true }));
  return path;
}

async function all(store: BlobStore): Promise<string[]> {
  const found: string[] = [];
  for await (const hex of store.listContents()) found.push(hex);
  return found.sort();
}

const IMPLEMENTATIONS: Record<string, (root: string) => Promise<BlobStore>> = {
  'directory, best sync': (root) => DirectoryBlobStore.open(root, chooseSync()),
  'directory, fsync': (root) => DirectoryBlobStore.open(root, syncEach),
};

for (const [name, open] of Object.entries(IMPLEMENTATIONS)) {
  test(`${name}: contents and documents are there after commit, not before`, async (t) => {
    const store = await open(await directory(t));
    const [small, large] = [randomBytes(1000), randomBytes(3 << 20)];
    const batch = await store.openBatch();
    t.is(await batch.put(chunked(small), small.length), sha256(small));
    t.is(await batch.put(chunked(large), large.length), sha256(large));
    t.is(await batch.put(chunked(large), large.length), sha256(large), 'twice is once');
    t.is(await batch.put(chunked(small), small.length), sha256(small));
    t.deepEqual(await all(store), []);
    t.deepEqual(await store.listImages(), []);
    await batch.commit(digest, documents);
    await batch.abort();
    t.deepEqual(await all(store), [sha256(small), sha256(large)].sort());
    t.deepEqual(await store.listImages(), [digest]);
    t.deepEqual(await store.readDocument(digest, 'toc'), documents.toc);
    const hex = sha256(large);
    t.true((await readFile(join(store.contentDir, hex.slice(0, 2), hex.slice(2)))).equals(large));

    const again = await store.openBatch();
    await again.put(chunked(large), large.length);
    await again.commit(digest, documents);
    await again.abort();
    t.is((await all(store)).length, 2);
    await store.removeContents([hex, 'ff'.repeat(32)]);
    t.deepEqual(await all(store), [sha256(small)]);
    await store.removeImage(digest);
    await store.removeImage(digest);
    t.deepEqual(await store.listImages(), []);
  });

  test(`${name}: an aborted batch leaves nothing`, async (t) => {
    const root = await directory(t);
    const store = await open(root);
    const batch = await store.openBatch();
    for (let i = 0; i < 50; i++) await batch.put(chunked(randomBytes(5000)), 5000);
    await batch.put(chunked(randomBytes(2 << 20)), 2 << 20);
    await batch.abort();
    t.deepEqual(await all(store), []);
    t.deepEqual(await readdir(join(root, 'uploads')), []);
  });

  test(`${name}: a content of another length is refused`, async (t) => {
    const store = await open(await directory(t));
    for (const [has, said] of [
      [10, 11],
      [11, 10],
      [2 << 20, (2 << 20) + 1],
      [2 << 20, (2 << 20) - 1],
    ] as const) {
      const batch = await store.openBatch();
      await t.throwsAsync(batch.put(chunked(Buffer.alloc(has)), said), {
        message: /a content ends/,
      });
      await batch.abort();
    }
    t.deepEqual(await all(store), []);
  });

  test(`${name}: a source that fails fails the put`, async (t) => {
    const store = await open(await directory(t));
    for (const bytes of [100, 5 << 20]) {
      const batch = await store.openBatch();
      const broken = new Readable({
        read() {
          this.destroy(new Error('cut'));
        },
      });
      await t.throwsAsync(batch.put(broken, bytes), { message: 'cut' });
      await batch.abort();
    }
  });

  test(`${name}: bundles are adopted whole and can be read after removal`, async (t) => {
    const store = await open(await directory(t));
    const data = randomBytes(300_000);
    const scratch = await store.makeScratch();
    await writeFile(join(scratch, 'b'), data);
    const id = 'ab'.repeat(32);
    t.is(await store.openBundle(id), undefined);
    await store.adoptBundle(id, join(scratch, 'b'));
    await store.dropScratch(scratch);
    t.deepEqual(await store.listBundles(), [id]);
    const reader = (await store.openBundle(id))!;
    t.is(reader.bytes, data.length);
    await store.removeBundle(id);
    await store.removeBundle(id);
    t.deepEqual(await reader.read(1000, 5000), data.subarray(1000, 6000));
    t.deepEqual(await reader.read(299_000, 5000), data.subarray(299_000));
    t.is((await reader.read(400_000, 10)).length, 0);
    await reader.close();
    t.is(await store.openBundle(id), undefined);
  });
}

test('directory: a start empties uploads/, contents are read-only', async (t) => {
  const root = await directory(t);
  const store = await DirectoryBlobStore.open(root);
  const batch = await store.openBatch();
  const hex = await batch.put(chunked(Buffer.from('x')), 1);
  await batch.commit(digest, documents);
  t.is((await stat(store.contentPath(hex))).mode & 0o777, 0o444);
  await store.makeScratch();
  await store.check();
  await DirectoryBlobStore.open(root);
  t.deepEqual(await readdir(join(root, 'uploads')), []);
  t.true(await store.hasContent(hex));
});
