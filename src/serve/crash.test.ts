// kill -9 at every step of an intake, of a removal and of a report: after the next start an image is
// there whole or not at all, a report that was taken is worked off, and no file is left that no row
// names.
import { spawn } from 'node:child_process';
import { readdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import test, { type ExecutionContext } from 'ava';
import { ImageStore } from './image-store.ts';
import { addRootfs, ask, makeDirectory, makeTar, noise, quiet, serve } from './testkit.ts';
import { orderNow, settled, traceOf } from './testkit-traces.ts';

const module = (name: string) => JSON.stringify(new URL(name, import.meta.url).href);

/** A program that dies at the start or the end of one method, in the middle of `work`. */
function program(dataDir: string, step: string, when: 'before' | 'after', work: string): string {
  const [file, cls, method] = step.split(' ') as [string, string, string];
  return `
    const { ImageStore } = await import(${module('./image-store.ts')});
    const { makeTar, noise, quiet } = await import(${module('./testkit.ts')});
    const { openRootfs } = await import(${module('../image/rootfs.ts')});
    const { writeFile } = await import('node:fs/promises');
    const store = await ImageStore.open({ dataDir: ${JSON.stringify(dataDir)}, log: quiet });
    const { ${cls} } = await import(${module(file)});
    const real = ${cls}.prototype.${method};
    ${cls}.prototype.${method} = async function (...args) {
      if (${JSON.stringify(when)} === 'before') process.kill(process.pid, 'SIGKILL');
      await real.apply(this, args);
      process.kill(process.pid, 'SIGKILL');
    };
    ${work}
    await store.settled();
    await store.close();
  `;
}

const ADD = (file: string) => `
  await writeFile(${JSON.stringify(file)}, await makeTar({ big: noise(1_500_000, 1), new: 'new', old: 'old' }));
  await store.add({ name: 'new', open: () => openRootfs(${JSON.stringify(file)}, { platform: 'linux/amd64' }) });`;
const REMOVE = "await store.remove('old', undefined);";

/** Runs a program to its end; it must have been killed. */
async function killed(t: ExecutionContext, source: string): Promise<void> {
  const file = join(await makeDirectory(t), 'program.mjs');
  await writeFile(file, source);
  const child = spawn(process.execPath, [file], { stdio: ['ignore', 'ignore', 'pipe'] });
  let errors = '';
  child.stderr.on('data', (chunk) => {
    errors += chunk;
  });
  const [code, signal] = await new Promise<[number | null, string | null]>((resolve) =>
    child.once('close', (...end) => resolve(end)),
  );
  t.is(signal, 'SIGKILL', `ended with ${code}: ${errors}`);
}

/** All files of a data directory that belong to images, by kind. */
async function filesOf(dataDir: string): Promise<Record<string, number>> {
  const count = async (name: string) => (await readdir(join(dataDir, name))).length;
  let contents = 0;
  for (const shard of await readdir(join(dataDir, 'content'))) {
    contents += (await readdir(join(dataDir, 'content', shard))).length;
  }
  return {
    contents,
    images: await count('images'),
    bundles: await count('bundles'),
    uploads: await count('uploads'),
  };
}

const BEFORE = { contents: 2, images: 1, bundles: 1, uploads: 0 };
/** 'old' is in both images, and stored once. */
const WITH_NEW = { contents: 4, images: 2, bundles: 2, uploads: 0 };
const NONE = { contents: 0, images: 0, bundles: 0, uploads: 0 };

for (const [work, step, when, files, names] of [
  [ADD, './blobs-batch.ts DirectoryBatch put', 'after', BEFORE, ['old:latest']],
  [ADD, './blobs-batch.ts DirectoryBatch commit', 'before', BEFORE, ['old:latest']],
  [ADD, './blobs-directory.ts DirectoryBlobStore removeImage', 'before', BEFORE, ['old:latest']],
  [ADD, './blobs-batch.ts DirectoryBatch commit', 'after', BEFORE, ['old:latest']],
  [ADD, './blobs-directory.ts DirectoryBlobStore adoptBundle', 'before', BEFORE, ['old:latest']],
  [ADD, './blobs-directory.ts DirectoryBlobStore adoptBundle', 'after', BEFORE, ['old:latest']],
  [
    ADD,
    './catalog-sqlite.ts SqliteCatalog addImage',
    'after',
    WITH_NEW,
    ['new:latest', 'old:latest'],
  ],
  [REMOVE, './catalog-sqlite.ts SqliteCatalog removeImages', 'before', BEFORE, ['old:latest']],
  [REMOVE, './catalog-sqlite.ts SqliteCatalog removeImages', 'after', NONE, []],
  [REMOVE, './blobs-directory.ts DirectoryBlobStore removeImage', 'after', NONE, []],
  [REMOVE, './blobs-directory.ts DirectoryBlobStore removeContents', 'after', NONE, []],
] as const) {
  const what = work === REMOVE ? 'removal' : 'intake';
  test.serial(
    `killed in the middle of ${what}, ${when} ${step.split(' ').slice(1).join('.')}`,
    async (t) => {
      const dataDir = await makeDirectory(t);
      const first = await serve(t, { dataDir });
      await addRootfs(first.url, 'old', await makeTar({ old: 'old', other: noise(100_000, 2) }));
      await first.close();
      const source = work === REMOVE ? REMOVE : ADD(join(await makeDirectory(t), 'new.tar'));
      await killed(t, program(dataDir, step, when, source));
      const store = await ImageStore.open({ dataDir, log: quiet });
      t.deepEqual(
        (await store.list()).map((image) => image.name),
        [...names],
      );
      t.is(await store.catalog.openChanges(), 0);
      await store.close();
      t.deepEqual(await filesOf(dataDir), files);
      const again = await serve(t, { dataDir });
      for (const name of names) {
        t.is((await ask(`${again.url}/v1/delta?image=${name}`)).status, 200, name);
      }
      const added = await addRootfs(again.url, 'new', await makeTar({ new: 'new', old: 'old' }));
      t.is(added.at(-1)?.event, 'done');
    },
  );
}

const REPORT = (file: string) => `
  store.traces.start();
  await store.traces.add(${JSON.stringify(file)}, new AbortController().signal);
  await store.traces.settled();`;

for (const [step, when, taken] of [
  ['./catalog-sqlite.ts SqliteCatalog addTrace', 'before', false],
  ['./catalog-sqlite.ts SqliteCatalog addTrace', 'after', true],
  ['./catalog-sqlite.ts SqliteCatalog setRanks', 'after', true],
  ['./blobs-directory.ts DirectoryBlobStore adoptBundle', 'before', true],
  ['./blobs-directory.ts DirectoryBlobStore adoptBundle', 'after', true],
  ['./catalog-sqlite.ts SqliteCatalog addBundle', 'after', true],
  ['./catalog-sqlite.ts SqliteCatalog dropReorder', 'after', true],
] as const) {
  test.serial(
    `killed in the middle of a report, ${when} ${step.split(' ').slice(1).join('.')}`,
    async (t) => {
      const dataDir = await makeDirectory(t);
      const first = await serve(t, { dataDir });
      await addRootfs(first.url, 'app', await makeTar({ a: 'a', b: noise(100_000, 2), z: 'z' }));
      const tree = await orderNow(first.url, 'app');
      await first.close();
      const file = join(await makeDirectory(t), 'trace.json');
      await writeFile(file, traceOf('app', ['z']));
      await killed(t, program(dataDir, step, when, REPORT(file)));
      const again = await serve(t, { dataDir });
      await settled(again.url, 'app');
      const now = await orderNow(again.url, 'app');
      t.is(now.paths[0], taken ? 'z' : 'a');
      const old = await ask(`${again.url}/v1/bundles/${tree.id}`);
      t.is(old.status, 200, 'whoever is receiving it goes on');
      await again.close();
      const files = { contents: 3, images: 1, bundles: taken ? 2 : 1, uploads: 0 };
      t.deepEqual(await filesOf(dataDir), files);
    },
  );
}
