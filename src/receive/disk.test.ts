// Faults of the disk: every call that changes it fails once, and a disk that is full for a while.
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import test from 'ava';
import { encode, makeImage, someFiles } from '../../test/receive/fixture.ts';
import { assertWhole, makeStage } from '../../test/receive/stage.ts';
import { diskIo, type StoreIo } from '../store/io.ts';
import { Receiver } from './receiver.ts';

const SIZES = [5, 70_000, 20_000, 250_000, 2_500_000, 12];

function errno(code: string): NodeJS.ErrnoException {
  return Object.assign(new Error(`${code}: injected`), { code });
}

/** The disk, with `fail` asked before each call that changes it. */
function faulty(fail: (call: keyof StoreIo) => string | undefined): StoreIo {
  const wrapped = Object.entries(diskIo).map(([name, call]) => [
    name,
    async (...args: unknown[]) => {
      const code = fail(name as keyof StoreIo);
      if (code !== undefined) throw errno(code);
      return (call as (...args: unknown[]) => Promise<unknown>)(...args);
    },
  ]);
  return Object.fromEntries(wrapped) as StoreIo;
}

test('the Nth change to the disk fails, for every N: an error or a whole image, never a wrong one', async (t) => {
  const image = makeImage('nth', someFiles('nth', SIZES));
  const bundle = await encode(image);
  let n = 0;
  for (let untouched = false; !untouched; ) {
    n++;
    // What happens before the store is open is the store's own test.
    let armed = false;
    let calls = 0;
    const io = faulty((_) => (armed && ++calls === n ? 'EIO' : undefined));
    const { root, server, templates, store, openStore, options } = await makeStage(t, image, io);
    server.serve(image, bundle);
    armed = true;
    try {
      const receiver = await Receiver.open(store, options());
      await receiver.complete;
      await receiver.close();
      await store.close();
    } catch (error) {
      t.is((error as NodeJS.ErrnoException).code ?? 'EIO', 'EIO', `call ${n}: ${error}`);
      // The injected error may have hit the closing itself; the next open must cope.
      await store.close().catch(() => undefined);
    }
    untouched = calls < n;
    armed = false;
    for (const template of templates) t.deepEqual(template.violations, [], `call ${n}`);
    const again = await Receiver.open(await openStore(), options());
    await again.complete;
    t.deepEqual(templates.at(-1)!.violations, [], `call ${n}, again`);
    await assertWhole(t, root, image);
    await again.close();
  }
  t.true(n > 25, `${n} calls`);
});

for (const code of ['ENOSPC', 'EIO'] as const) {
  test(`${code}: readers fail at once, one line says why, and the transfer goes on when it is over`, async (t) => {
    const image = makeImage(code, someFiles(code, [...SIZES, ...SIZES.map((n) => n + 7)]));
    let full = false;
    const io = faulty((call) =>
      full && ['writeFiles', 'writeAt', 'openForParts'].includes(call) ? code : undefined,
    );
    const { root, templates, server, store, options, lines } = await makeStage(t, image, io);
    server.fault = (_, index) => (index === 0 ? { rate: 6_000_000 } : undefined);
    const receiver = await Receiver.open(store, options());
    const template = templates[0]!;
    await template.until(() => receiver.progress().framesDone >= 1);
    full = true;
    await template.until(() => template.states.every((state) => state === 2 || state === 4));
    const failed = [...template.states.keys()].filter((content) => template.states[content] === 4);
    t.true(failed.length > 0);
    for (const content of failed) t.is(template.errnos.get(content), code === 'EIO' ? 5 : 28);
    await template.until(() => receiver.progress().retries >= 3);
    t.is(receiver.progress().state, 'retrying');
    t.regex(receiver.progress().error ?? '', new RegExp(code));
    const complaints = lines.filter(({ level }) => Number(level) >= 50);
    t.is(complaints.length, 1);
    const requests = server.requests.length;
    await template.until(() => receiver.progress().retries >= 5);
    t.is(server.requests.length, requests, 'nothing is fetched that cannot be kept');
    full = false;
    await receiver.complete;
    t.true(template.states.every((state) => state === 2));
    t.deepEqual(template.violations, []);
    await assertWhole(t, root, image);
  });
}

test('a syncfs that fails keeps the image incomplete until one works', async (t) => {
  const image = makeImage('sync', someFiles('sync', SIZES));
  let failures = 3;
  const io = faulty((call) => (call === 'syncfs' && failures-- > 0 ? 'EIO' : undefined));
  const { root, store, options } = await makeStage(t, image, io);
  const receiver = await Receiver.open(store, options());
  await receiver.complete;
  t.true(receiver.progress().retries >= 3);
  t.true(store.findImage(image.digest)?.complete);
  await assertWhole(t, root, image);
  const state = JSON.parse(
    await readFile(join(store.findImage(image.digest)!.directory, 'state'), 'utf8'),
  );
  t.true(state.complete);
});
