import { spawnSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { chmod, mkdir, readdir, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { basename, join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import test, { type ExecutionContext } from 'ava';
import fc from 'fast-check';
import {
  makeImage,
  noise,
  quietLog,
  scratch,
  sha256,
  someFiles,
  type TestImage,
} from '../../test/receive/fixture.ts';
import { FirstlightError } from '../errors/errors.ts';
import type { NewImage } from './image.ts';
import { diskIo, type StoreIo } from './io.ts';
import { LayerStore } from './layer-store.ts';
import { MetaDb } from './meta.ts';

async function openStore(t: ExecutionContext, root?: string, io: StoreIo = diskIo) {
  const directory = root ?? (await scratch(t));
  const { log, lines } = quietLog();
  const store = await LayerStore.open(directory, { log, io });
  t.teardown(() => store.close().catch(() => undefined));
  return { store, root: directory, lines };
}

function newImage(image: TestImage, name = '', complete = true): NewImage {
  return {
    digest: image.digest,
    manifest: image.manifest,
    config: image.config,
    toc: image.toc.bytes,
    contents: image.toc.contents,
    parts: image.toc.parts,
    digests: image.digests,
    frames: Buffer.from('frames'),
    state: {
      version: 1,
      name,
      platform: 'linux/amd64',
      server: 'http://127.0.0.1:1',
      bundlePath: '/v1/bundles/x',
      etag: '"x"',
      complete,
    },
  };
}

async function putAll(store: LayerStore, image: TestImage): Promise<void> {
  await store.contents.put([...image.contents].map(([hex, data]) => ({ hex, data })));
}

test('a content is readable at once, durable after the flush, read-only, and written once', async (t) => {
  const { store, root } = await openStore(t);
  const data = noise('a', 5000);
  const hex = sha256(data);
  await store.contents.put([
    { hex, data },
    { hex, data },
  ]);
  t.is(store.contents.path(hex), join(root, 'incoming', hex));
  t.true((await readFile(join(root, 'incoming', hex))).equals(data));
  t.is((await stat(join(root, 'incoming', hex))).mode & 0o777, 0o444);
  await store.contents.makeDurable();
  const durable = join(root, 'content', hex.slice(0, 2), hex.slice(2));
  t.is(store.contents.path(hex), durable);
  const before = await stat(durable);
  await store.contents.put([{ hex, data }]);
  t.is((await stat(durable)).ino, before.ino);
  t.deepEqual(await readdir(join(root, 'incoming')), []);
  t.is((await readdir(join(root, 'content'))).length, 256);
});

test('the same content put by two at once is written once, and both wait for it', async (t) => {
  const { store, root } = await openStore(t);
  const data = noise('big', 3_000_000);
  const hex = sha256(data);
  const one = store.contents.put([{ hex, data }]);
  const two = store.contents.put([{ hex, data: Buffer.from(data) }]);
  await two;
  t.is((await stat(join(root, 'incoming', hex))).size, data.length);
  await one;
  t.is(store.contents.count, 1);
});

test('one process owns a root; the error names it', async (t) => {
  const { store, root } = await openStore(t);
  const { log } = quietLog();
  const error = await t.throwsAsync(LayerStore.open(root, { log }), {
    instanceOf: FirstlightError,
  });
  t.is(error.kind, 'busy');
  t.true(error.message.includes(`process ${process.pid}`));
  const script = `
    import { LayerStore } from ${JSON.stringify(new URL('./layer-store.ts', import.meta.url).href)};
    import { makeLogger } from ${JSON.stringify(new URL('../log/log.ts', import.meta.url).href)};
    try { await LayerStore.open(process.argv[1], { log: makeLogger('x') }); console.log('opened'); }
    catch (error) { console.log(error.kind, error.line); }`;
  const other = spawnSync(process.execPath, ['--input-type=module', '-e', script, root]);
  t.regex(
    other.stdout.toString(),
    new RegExp(`^busy .*process ${process.pid}; stop that daemon`),
    other.stderr.toString(),
  );
  await store.close();
  await store.close();
  const again = await LayerStore.open(root, { log });
  await again.close();
  t.false(existsSync(join(root, 'owner')));
});

test('names, users and removal', async (t) => {
  const { store, root } = await openStore(t);
  const image = makeImage('one', someFiles('one', [10, 20]));
  await putAll(store, image);
  await store.registerImage(newImage(image, 'app:1'));
  store.setName('app:latest', 'linux/amd64', image.digest);
  t.is(store.findImage('app:1')?.digest, image.digest);
  t.is(store.findImage('app:1', 'linux/arm64'), undefined);
  t.is(store.findImage(image.digest)?.complete, true);
  t.deepEqual(await store.removeImage('app:1'), { digest: image.digest, removed: false });
  const release = store.use(image.digest);
  t.is(store.images()[0]?.users, 1);
  t.deepEqual(await store.removeImage('app:latest'), { digest: image.digest, removed: false });
  t.truthy(store.findImage(image.digest));
  t.deepEqual((await store.gc()).images, []);
  release();
  release();
  const report = await store.gc();
  t.deepEqual(report, { images: [image.digest], contents: 2, bytes: 30 });
  t.is(store.findImage(image.digest), undefined);
  t.deepEqual(await readdir(join(root, 'images')), []);
  t.deepEqual(await readdir(join(root, 'incoming')), []);
  await t.throwsAsync(store.removeImage('app:1'), { message: /has no image app:1/ });
});

test('a pinned image stays without a name; one name serves two platforms', async (t) => {
  const { store } = await openStore(t);
  const image = makeImage('pin', someFiles('pin', [10]));
  const arm = makeImage('arm', someFiles('arm', [11]));
  await store.registerImage(newImage(image));
  store.setPinned(image.digest, true);
  t.deepEqual((await store.gc()).images, []);
  store.setPinned(image.digest, false);
  await store.registerImage(newImage(arm, 'app:1'));
  store.setName('app:1', 'linux/arm64', arm.digest);
  store.setName('app:1', 'linux/amd64', image.digest);
  t.is(store.findImage('app:1', 'linux/arm64')?.digest, arm.digest);
  await store.removeImage(image.digest);
  t.is(store.findImage('app:1', 'linux/arm64')?.digest, arm.digest);
});

test('contents that two images share stay with the second', async (t) => {
  const { store } = await openStore(t);
  const one = makeImage('one', someFiles('both', [10, 20, 30]));
  const two = makeImage('two', { ...someFiles('both', [10, 20]), own: noise('own', 7) });
  await putAll(store, one);
  await putAll(store, two);
  await store.registerImage(newImage(one, 'one:1'));
  await store.registerImage(newImage(two, 'two:1'));
  await store.contents.makeDurable();
  t.deepEqual(await store.removeImage('one:1'), { digest: one.digest, removed: true });
  t.is((await store.gc()).contents, 1);
  for (const hex of two.contents.keys()) t.truthy(store.contents.path(hex));
});

test('a collection leaves what is put or claimed while it runs', async (t) => {
  const { store } = await openStore(t);
  const image = makeImage('live', someFiles('live', [10, 20, 30]));
  await putAll(store, image);
  // A change that has begun: contents are there, their image is not yet.
  let finish = () => {};
  const changed = store.guard(async () => {
    await new Promise<void>((resolve) => {
      finish = resolve;
    });
    await store.registerImage(newImage(image, 'live:1'));
  });
  const collecting = store.gc();
  // It has begun, and waits for the change.
  await sleep(30);
  const late = noise('late', 100);
  await store.contents.put([{ hex: sha256(late), data: late }]);
  finish();
  await changed;
  t.is((await collecting).contents, 0);
  t.is(store.contents.count, 4);
  t.is((await store.gc()).contents, 1);
});

test('a restart finds contents in incoming/, images without a row, and drops rows without an image', async (t) => {
  const { store, root } = await openStore(t);
  const image = makeImage('back', someFiles('back', [10, 20]));
  const other = makeImage('other', someFiles('other', [10]));
  await putAll(store, image);
  await store.registerImage(newImage(image, 'back:1'));
  await store.registerImage(newImage(other, 'other:1'));
  await store.close();
  // As after a power loss between a rename and its database row, and the other way round.
  await rm(join(root, 'meta.db'));
  await rm(join(root, 'meta.db-wal'), { force: true });
  const { store: second } = await openStore(t, root);
  t.is(second.findImage('back:1')?.digest, image.digest);
  await second.close();
  await rm(join(root, 'images', other.digest.slice(7)), { recursive: true });
  const hex = [...image.contents.keys()][0]!;
  const file = join(root, 'content', hex.slice(0, 2), hex.slice(2));
  await writeFile(join(root, 'incoming', hex), await readFile(file));
  await rm(file);
  const { store: third } = await openStore(t, root);
  t.deepEqual(
    third.images().map(({ names }) => names),
    [['back:1']],
  );
  t.is(third.contents.path(hex), join(root, 'incoming', hex));
  await third.contents.makeDurable();
  t.true(existsSync(file));
});

test('an image whose files are damaged is put aside, and the others open', async (t) => {
  const { store, root } = await openStore(t);
  const good = makeImage('good', someFiles('good', [10]));
  const bad = makeImage('bad', someFiles('bad', [10]));
  await store.registerImage(newImage(good, 'good:1'));
  await store.registerImage(newImage(bad, 'bad:1'));
  await store.close();
  await writeFile(join(root, 'images', bad.digest.slice(7), 'state'), '{');
  await mkdir(join(root, 'images', 'half.new'));
  const { store: second, lines } = await openStore(t, root);
  t.deepEqual(
    second.images().map(({ names }) => names),
    [['good:1']],
  );
  t.is((await readdir(join(root, 'quarantine'))).length, 1);
  t.true(lines.some(({ msg }) => String(msg).includes('is damaged')));
  t.false(existsSync(join(root, 'images', 'half.new')));
});

test('verify finds damage, puts it aside and makes its images incomplete', async (t) => {
  const { store, root } = await openStore(t);
  const image = makeImage('sound', someFiles('sound', [10, 20, 30]));
  const other = makeImage('other', someFiles('other', [40]));
  for (const each of [image, other]) {
    await putAll(store, each);
    await store.registerImage(newImage(each, `${each.digest.slice(7, 12)}:1`));
  }
  await store.contents.makeDurable();
  t.deepEqual((await store.verify()).damaged, []);
  const [damaged, missing, early] = [image.hex(0), image.hex(1), other.hex(0)];
  const place = (hex: string) => join(root, 'content', hex.slice(0, 2), hex.slice(2));
  await chmod(place(damaged), 0o644);
  await writeFile(place(damaged), 'rotten');
  await rm(place(missing));
  const told: string[] = [];
  store.onDamage(async (hexes) => void told.push(...hexes));
  let last: number[] = [];
  const report = await store.verify({ onProgress: (done, all) => (last = [done, all]) });
  t.deepEqual(report.damaged.sort(), [damaged, missing].sort());
  t.deepEqual(report.images, [image.digest]);
  t.deepEqual(told.sort(), [damaged, missing].sort());
  t.deepEqual(last, [4, 4]);
  t.is(store.findImage(image.digest)?.complete, false);
  t.is(store.findImage(other.digest)?.complete, true);
  t.is(await readFile(join(root, 'quarantine', damaged), 'utf8'), 'rotten');
  t.is(store.contents.count, 2);
  // Gone since the store was opened and not looked at again: named as missing.
  await store.contents.quarantine(early);
  const later = await store.verify();
  t.deepEqual([later.damaged, later.missing, later.images], [[], [early], [other.digest]]);
});

test('usage counts what is there', async (t) => {
  const { store } = await openStore(t);
  await putAll(store, makeImage('usage', someFiles('usage', [10, 20, 30])));
  const usage = await store.usage();
  t.is(usage.contents, 3);
  t.is(usage.bytes, 60);
  t.true(usage.freeBytes > 0);
});

test('any order of puts, images, removals, collections and restarts keeps what is needed', async (t) => {
  t.timeout(600_000);
  const images = [0, 1, 2].map((i) =>
    makeImage(`m${i}`, { ...someFiles('common', [10, 20]), ...someFiles(`own${i}`, [30, 5000]) }),
  );
  const step = fc.oneof(
    fc.record({
      op: fc.constant('add' as const),
      image: fc.nat(2),
      name: fc.constantFrom('a', 'b'),
    }),
    fc.record({
      op: fc.constant('remove' as const),
      image: fc.nat(2),
      name: fc.constantFrom('a', 'b'),
    }),
    fc.record({
      op: fc.constantFrom('gc', 'flush', 'restart'),
      image: fc.nat(2),
      name: fc.constant('a'),
    }),
  );
  await fc.assert(
    fc.asyncProperty(fc.array(step, { maxLength: 12 }), async (steps) => {
      const root = await scratch({ teardown: () => undefined });
      const { log } = quietLog();
      let store = await LayerStore.open(root, { log });
      const model = new Map<string, TestImage>();
      try {
        for (const { op, image: index, name } of steps) {
          const image = images[index]!;
          if (op === 'add') {
            await store.guard(async () => {
              await putAll(store, image);
              await store.registerImage(newImage(image, name));
            });
            model.set(name, image);
          } else if (op === 'remove') {
            if (model.delete(name)) await store.removeImage(name);
          } else if (op === 'gc') await store.gc();
          else if (op === 'flush') await store.contents.makeDurable();
          else {
            await store.close();
            store = await LayerStore.open(root, { log });
          }
          const named = new Map(
            store.images().flatMap(({ names, digest }) => names.map((n) => [n, digest] as const)),
          );
          if (named.size !== model.size) return false;
          const needed = new Set<string>();
          for (const [n, { digest, contents }] of model) {
            if (named.get(n) !== digest) return false;
            for (const [hex, data] of contents) {
              needed.add(hex);
              const path = store.contents.path(hex);
              if (path === undefined || !(await readFile(path)).equals(data)) return false;
            }
          }
          if (op === 'gc' && store.contents.count !== needed.size) return false;
        }
        return true;
      } finally {
        await store.close();
        await rm(root, { recursive: true, force: true });
      }
    }),
    { numRuns: 25 },
  );
  t.pass();
});

test('an image that comes back while it is being removed keeps its new files', async (t) => {
  let slow = false;
  const io: StoreIo = {
    ...diskIo,
    async remove(path) {
      if (slow && path.includes('image.')) await sleep(200);
      await diskIo.remove(path);
    },
  };
  const { store, root } = await openStore(t, undefined, io);
  const image = makeImage('back', someFiles('back', [2_500_000]));
  await store.registerImage(newImage(image, 'app:1', false));
  slow = true;
  const removal = store.removeImage('app:1');
  const back = await store.registerImage(newImage(image, 'app:1', false));
  const partial = join(root, 'incoming', `${image.digest.slice(7, 39)}.0`);
  await writeFile(partial, 'parts of the new transfer');
  t.deepEqual(await removal, { digest: image.digest, removed: true });
  t.true(existsSync(partial));
  t.is(store.findImage('app:1'), back);
  t.true(existsSync(back.path('toc')));
});

test('a use that cannot be noted is a warning, and the image is in use', async (t) => {
  const { store, lines } = await openStore(t);
  const image = makeImage('noted', someFiles('noted', [10]));
  await putAll(store, image);
  await store.registerImage(newImage(image, 'app:1'));
  const { touch } = MetaDb.prototype;
  MetaDb.prototype.touch = () => {
    throw Object.assign(new Error('database or disk is full'), { errcode: 13 });
  };
  let release = () => {};
  try {
    release = store.use(image.digest);
  } finally {
    MetaDb.prototype.touch = touch;
  }
  t.is(store.images()[0]?.users, 1);
  t.true(lines.some(({ level, msg }) => level === 40 && String(msg).includes('last used')));
  release();
  t.is(store.images()[0]?.users, 0);
});

test('the slots of an image last before it is called complete', async (t) => {
  const calls: string[] = [];
  const io: StoreIo = {
    ...diskIo,
    async syncFile(path) {
      calls.push(`sync ${basename(path)}`);
      await diskIo.syncFile(path);
    },
    async rename(from, to) {
      calls.push(`rename ${basename(to)}`);
      await diskIo.rename(from, to);
    },
  };
  const { store } = await openStore(t, undefined, io);
  const image = makeImage('slots', someFiles('slots', [10]));
  const stored = await store.registerImage(newImage(image, 'app:1', false));
  calls.length = 0;
  await stored.setComplete();
  t.deepEqual(calls, ['sync contents', 'rename state']);
  t.true(stored.complete);
});
