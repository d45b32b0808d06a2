import { getEventListeners } from 'node:events';
import { setTimeout as sleep } from 'node:timers/promises';
import test from 'ava';
import { makeImage, noise, type SeenRequest, someFiles } from '../../test/receive/fixture.ts';
import { assertWhole, LARGE, makeStage, SMALL } from '../../test/receive/stage.ts';
import { deltaClientOf, Receiver, useConnections } from './receiver.ts';

/** A busy machine must not take a connection for a stalled one. */
const PATIENT = { connectMs: 60_000, deltaMs: 60_000, headMs: 60_000, idleMs: 60_000 };
const IMAGE = makeImage('striped', {
  ...someFiles('striped', SMALL),
  ...someFiles('large', LARGE),
  big: noise('big', 3_000_000),
});

test('an image comes over several connections, which stay for the next', async (t) => {
  const { store, server, root, options } = await makeStage(t, IMAGE);
  server.deltaRanges = true;
  useConnections(store, 8);
  const receiver = await Receiver.open(store, options({ timeouts: PATIENT }));
  await receiver.complete;
  await assertWhole(t, root, IMAGE);
  t.true(server.requests.length > 8);
  t.is(server.connections, 8);
  t.is(receiver.progress().retries, 0);
  await receiver.close();

  // The second image finds them.
  const other = makeImage('other', someFiles('other', SMALL));
  const { encode } = await import('../../test/receive/fixture.ts');
  server.serve(other, await encode(other));
  const second = await Receiver.open(store, options({ ref: 'other:1', timeouts: PATIENT }));
  await second.complete;
  t.is(server.connections, 8);
  await second.close();
});

test('what a reader has fetched out of order does not come again with the stream', async (t) => {
  const large = makeImage('once', {
    ...someFiles('once', [2_000_000, 2_000_001, 2_000_002]),
    zz: noise('zz', 12_000_000),
  });
  const { store, server, root, templates, options } = await makeStage(t, large);
  server.deltaRanges = true;
  // Of each answer: the stream alone would take five seconds.
  server.fault = () => ({ rate: 3_000_000 });
  useConnections(store, 4);
  const receiver = await Receiver.open(store, options({ timeouts: PATIENT }));
  const { toc } = receiver;
  const content = Array.from({ length: toc.contents }, (_, c) => c).find(
    (c) => toc.partCount(c) > 10,
  )!;
  // Reads here and there, behind the megabytes that come in pieces.
  const wants = [6, 8, 10];
  for (const index of wants) receiver.wanted(content, index, index);
  const first = toc.firstPart(content);
  await templates[0]!.until(
    () => wants.every((index) => templates[0]!.arrivedParts.has(first + index)),
    20_000,
  );
  await receiver.complete;
  await assertWhole(t, root, large);
  t.is(receiver.progress().outOfOrder, 3);
  // One frame where the machine was too busy for the stream to seem alive.
  const { bytes } = [...server.bundles.values()][0]!;
  t.true(
    server.sentBytes <= bytes.length + (1 << 20),
    `${server.sentBytes} bytes came of ${bytes.length}`,
  );
  await receiver.close();
});

test('beside what a reader waits for, a stream keeps to one connection', async (t) => {
  const large = makeImage('beside', { zz: noise('zz', 14_000_000) });
  const { store, server, templates, options } = await makeStage(t, large);
  server.deltaRanges = true;
  useConnections(store, 8);
  const { bytes } = [...server.bundles.values()][0]!;
  const isReaders = ({ range }: SeenRequest) => range !== undefined && range.to === bytes.length;
  // What is waited for does not come, as long as the stream brings the rest.
  server.fault = (request) => (isReaders(request) ? { stallAfter: 0 } : { rate: 5_000_000 });
  const receiver = await Receiver.open(store, options({ timeouts: PATIENT }));
  const { toc } = receiver;
  const content = Array.from({ length: toc.contents }, (_, c) => c)[0]!;
  const parts = toc.partCount(content);
  receiver.wanted(content, parts - 1, parts - 1);
  const [template] = templates;
  await template!.until(() => template!.arrivedParts.size === parts - 1, 120_000);
  // Behind what comes in pieces over all of them.
  const inStream = server.requests.filter(
    (request) => !isReaders(request) && (request.range?.from ?? 0) > 6_000_000,
  );
  t.true(inStream.length >= 6, `${inStream.length} requests`);
  t.is(new Set(inStream.map(({ connection }) => connection)).size, 1);
  await receiver.close();
});

test('a connection that falls silent under a stream stops nothing', async (t) => {
  const large = makeImage('silent', { zz: noise('zz', 14_000_000) });
  const { store, server, root, options } = await makeStage(t, large);
  server.deltaRanges = true;
  useConnections(store, 8);
  // From what follows the pieces on, the first connection of the stream brings nothing more, though it stays open.
  let dead: number | undefined;
  let unanswered = 0;
  server.fault = ({ connection, range }) => {
    if (range !== undefined && range.from > 6_000_000) dead ??= connection;
    if (connection !== dead) return { rate: 5_000_000 };
    unanswered++;
    return { stallAfter: 10_000 };
  };
  const timeouts = { ...PATIENT, silentMs: 500 };
  const receiver = await Receiver.open(store, options({ timeouts }));
  await receiver.complete;
  await assertWhole(t, root, large);
  t.true(unanswered >= 1);
  // No bound of PATIENT has ended anything.
  t.is(receiver.progress().retries, 0);
  await receiver.close();
});

test('a connection that was only silent for a while breaks nothing, though there is no other', async (t) => {
  // Several frames make a run.
  const sizes = Array.from({ length: 60 }, (_, i) => 150_000 + i);
  const large = makeImage('pause', someFiles('pause', sizes));
  const { store, server, root, options } = await makeStage(t, large);
  const ends = new Set<number>();
  let again = 0;
  server.fault = ({ range }) => {
    // What comes after the first answer is asked for by the stream.
    if (range === undefined) return { cutAfter: 2_000_000 };
    const isFirst = ends.size === 0;
    if (ends.has(range.to) && again++ === 0) return { stallAfter: 0 };
    ends.add(range.to);
    return isFirst ? { pause: { afterBytes: 64 << 10, ms: 3000 }, rate: 1_000_000 } : {};
  };
  const timeouts = { ...PATIENT, silentMs: 300 };
  const receiver = await Receiver.open(store, options({ timeouts }));
  await receiver.complete;
  await assertWhole(t, root, large);
  t.true(again > 0);
  // That of the answer that was cut.
  t.is(receiver.progress().retries, 1);
  await receiver.close();
});

test('a stream is not held to the pace of a connection that is slow', async (t) => {
  const large = makeImage('slow', { zz: noise('zz', 14_000_000) });
  const { store, server, root, options } = await makeStage(t, large);
  server.deltaRanges = true;
  // Whichever brings the first piece is the stream's own.
  const isSlow = (connection: number) => connection === server.requests[0]?.connection;
  server.fault = ({ connection }) => ({ rate: isSlow(connection) ? 500_000 : 5_000_000 });
  useConnections(store, 8);
  const receiver = await Receiver.open(store, options({ timeouts: PATIENT }));
  await receiver.complete;
  await assertWhole(t, root, large);
  t.is(receiver.progress().retries, 0);
  const runs = server.requests.filter(
    ({ path, range }) => path.startsWith('/v1/bundles/') && range !== undefined,
  );
  const bytesOf = (requests: typeof runs) =>
    requests.reduce((sum, { range }) => sum + range!.to - range!.from, 0);
  const slow = bytesOf(runs.filter(({ connection }) => isSlow(connection)));
  t.true(slow < bytesOf(runs) / 3, `${slow} of ${bytesOf(runs)} bytes over the slow one`);
  t.is(server.connections, 8);
  await receiver.close();
});

test('a server that knows no ranges by reference sends it over one connection', async (t) => {
  const { store, root, options } = await makeStage(t, IMAGE);
  useConnections(store, 8);
  const receiver = await Receiver.open(store, options());
  await receiver.complete;
  await assertWhole(t, root, IMAGE);
  await receiver.close();
});

test('connections that break, stall or bring damaged bytes cost time, and nothing else', async (t) => {
  const { store, server, root, options } = await makeStage(t, IMAGE);
  server.deltaRanges = true;
  server.fault = (_, index) => {
    if (index === 5 || index === 17) return { cutAfter: 1000 };
    if (index === 11) return { stallAfter: 500 };
    if (index !== 9) return undefined;
    return {
      damage: (bytes) => {
        bytes[bytes.length - 1]! ^= 1;
        return bytes;
      },
    };
  };
  useConnections(store, 4);
  const receiver = await Receiver.open(store, options());
  await receiver.complete;
  await assertWhole(t, root, IMAGE);
  await receiver.close();
});

test('an error of the server is told with its words', async (t) => {
  const { store, server, options } = await makeStage(t, IMAGE);
  server.deltaRanges = true;
  server.delta = async () => undefined;
  useConnections(store, 8);
  await t.throwsAsync(Receiver.open(store, options()), { message: 'no such image' });
});

test('an opening that is given up leaves no request behind', async (t) => {
  const { store, server, options } = await makeStage(t, IMAGE);
  server.deltaRanges = true;
  server.fault = () => ({ stallAfter: 0 });
  useConnections(store, 8);
  const stop = new AbortController();
  const opening = Receiver.open(store, options({ signal: stop.signal, timeouts: PATIENT }));
  while (server.requests.length < 8) await new Promise((resolve) => setTimeout(resolve, 5));
  t.is(server.connections, 8);
  stop.abort(new Error('enough'));
  await t.throwsAsync(opening);
});

test('connections are made before anything is asked for, and a server that is not there is no error', async (t) => {
  const { store, server } = await makeStage(t, IMAGE);
  useConnections(store, 3);
  const client = deltaClientOf(store, server.url);
  client.keepOpen();
  client.keepOpen();
  while (server.requests.length < 3) await new Promise((resolve) => setTimeout(resolve, 5));
  t.is(server.connections, 3);
  t.deepEqual(
    [...new Set(server.requests.map(({ method, path }) => `${method} ${path}`))],
    ['GET /healthz'],
  );
  deltaClientOf(store, 'http://127.0.0.1:9').keepOpen();
});

test('a request that has come to its end listens to its caller no more', async (t) => {
  const { store, server, options } = await makeStage(t, IMAGE);
  useConnections(store, 4);
  const client = deltaClientOf(store, server.url);
  const { signal } = new AbortController();
  const listeners = () => getEventListeners(signal, 'abort').length;
  const request = { image: 'app:1', platform: options().platform, bases: [], patches: true };
  const { delta } = server;
  for (const [ranges, found] of [
    [true, true],
    [false, true],
    [true, false],
    [false, false],
  ]) {
    server.deltaRanges = ranges!;
    server.delta = found ? delta : async () => undefined;
    for (let i = 0; i < 3; i++) {
      if (!found) {
        await t.throwsAsync(client.delta(request, signal), { message: 'no such image' });
        continue;
      }
      const { body } = await client.delta(request, signal);
      t.true(listeners() > 0, 'it can be given up');
      body.destroy();
    }
    for (let i = 0; i < 500 && listeners() > 0; i++) await sleep(10);
    t.is(listeners(), 0, `ranges: ${ranges}, found: ${found}`);
  }
});
