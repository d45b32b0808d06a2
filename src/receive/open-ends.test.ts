// Who opens an image may go at any moment; who shares the opening or the transfer goes on.
import { setTimeout as sleep } from 'node:timers/promises';
import test from 'ava';
import { encode, makeImage, someFiles } from '../../test/receive/fixture.ts';
import { assertWhole, LARGE, makeStage, SMALL } from '../../test/receive/stage.ts';
import { diskIo } from '../store/io.ts';
import { Receiver } from './receiver.ts';

/** The promise, or an error where it takes longer than a test may. */
async function soon<T>(promise: Promise<T>): Promise<T> {
  const late = new AbortController();
  try {
    const bound = sleep(8000, undefined, { signal: late.signal }).then(() => {
      throw new Error('it did not end');
    });
    return await Promise.race([promise, bound]);
  } finally {
    late.abort();
  }
}

test('a caller who goes while the image is taken in leaves a transfer that others can join', async (t) => {
  const image = makeImage('gone caller', someFiles('gone caller', [...SMALL, ...LARGE]));
  const caller = new AbortController();
  const io = {
    ...diskIo,
    async createFile(path: string, data: Uint8Array) {
      if (path.endsWith('/toc')) caller.abort();
      await diskIo.createFile(path, data);
    },
  };
  const { root, templates, store, options } = await makeStage(t, image, io);
  const first = await Receiver.open(store, options({ signal: caller.signal }));
  t.true(caller.signal.aborted);
  const second = await Receiver.open(store, options());
  await soon(second.complete);
  t.is(first.progress().state, 'complete');
  t.deepEqual(templates[0]!.violations, []);
  await assertWhole(t, root, image);
});

test('a caller who goes before the header does not end the opening of another', async (t) => {
  const image = makeImage('gone before', someFiles('gone before', SMALL));
  const { root, server, store, options } = await makeStage(t, image);
  const bundle = await encode(image);
  const asked = Promise.withResolvers<void>();
  const answer = Promise.withResolvers<void>();
  server.delta = async () => {
    asked.resolve();
    await answer.promise;
    return { image, bundle };
  };
  const caller = new AbortController();
  const first = Receiver.open(store, options({ signal: caller.signal }));
  const second = Receiver.open(store, options());
  await asked.promise;
  caller.abort();
  await t.throwsAsync(first);
  answer.resolve();
  await soon((await soon(second)).complete);
  await assertWhole(t, root, image);
});

test('a transfer that has failed begins again with the next open', async (t) => {
  const image = makeImage('again', someFiles('again', [...SMALL, ...LARGE, 400_000, 400_000]));
  const { root, server, templates, store, options } = await makeStage(t, image);
  const bad = (await encode(image)).bytes.length - 10;
  server.fault = () => ({
    damage: (bytes, offset) => {
      if (bad >= offset && bad < offset + bytes.length) bytes[bad - offset]! ^= 1;
      return bytes;
    },
  });
  const first = await Receiver.open(store, options());
  await t.throwsAsync(soon(first.complete));
  t.is(first.progress().state, 'failed');
  server.fault = () => undefined;
  const second = await Receiver.open(store, options());
  await soon(second.complete);
  await soon(first.complete);
  t.is(templates.length, 1);
  t.true(templates[0]!.states.every((state) => state === 2));
  t.deepEqual(templates[0]!.violations, []);
  t.is(first.progress().error, undefined);
  await assertWhole(t, root, image);
});

test('a frame that comes wrong again and again is asked for at growing intervals', async (t) => {
  const image = makeImage('intervals', someFiles('intervals', SMALL));
  const { server, store, options } = await makeStage(t, image);
  const bad = (await encode(image)).bytes.length - 10;
  server.fault = () => ({
    damage: (bytes, offset) => {
      if (bad >= offset && bad < offset + bytes.length) bytes[bad - offset]! ^= 1;
      return bytes;
    },
  });
  const backoff = { firstMs: 40, mostMs: 10_000 };
  const receiver = await Receiver.open(store, options({ backoff }));
  await t.throwsAsync(soon(receiver.complete));
  const tries = server.requests.slice(1).map(({ at }) => at);
  const waits = tries.slice(1).map((at, i) => at - tries[i]!);
  // Each wait is at least half of its bound, which doubles: the last one is 160 ms or more.
  t.true(waits.at(-1)! >= 150, waits.join(' '));
});

/** A stage on which every header breaks off, and the next attempt is far away. */
async function brokenHeaders(t: Parameters<typeof makeStage>[0]) {
  const stage = await makeStage(t, makeImage('broken header', someFiles('broken header', SMALL)));
  const { server, options } = stage;
  server.fault = () => ({ cutAfter: 20 });
  const waiting = Promise.withResolvers<void>();
  const log = stage.log.child({});
  log.warn = (() => waiting.resolve()) as typeof log.warn;
  const slow = options({ log, backoff: { firstMs: 60_000, mostMs: 60_000 } });
  return { ...stage, slow, waiting: waiting.promise };
}

test('a caller who goes while the next attempt is waited for is let go', async (t) => {
  const { store, slow, waiting } = await brokenHeaders(t);
  const caller = new AbortController();
  const opening = Receiver.open(store, { ...slow, signal: caller.signal });
  await waiting;
  caller.abort(new Error('enough'));
  await t.throwsAsync(soon(opening), { message: 'enough' });
});

test('an opening ends with its store, at once', async (t) => {
  const image = makeImage('closing', someFiles('closing', SMALL));
  const { server, store, options } = await makeStage(t, image);
  const asked = Promise.withResolvers<void>();
  server.delta = async () => {
    asked.resolve();
    return new Promise(() => undefined);
  };
  const opening = Receiver.open(store, options({ backoff: { firstMs: 60_000, mostMs: 60_000 } }));
  const refused = t.throwsAsync(soon(opening), { message: /cannot be reached/ });
  await asked.promise;
  await store.close();
  await refused;
});
