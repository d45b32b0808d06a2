// Frames that readers wait for, fetched beside the stream.
import { setTimeout as sleep } from 'node:timers/promises';
import test from 'ava';
import { encode, makeImage, noise, someFiles } from '../../test/receive/fixture.ts';
import { assertWhole, makeStage } from '../../test/receive/stage.ts';
import { PREAMBLE_BYTES } from '../delta/bundle.ts';
import { decodeHeader } from '../delta/bundle-decode.ts';
import { Receiver } from './receiver.ts';

const MANY = Array.from({ length: 40 }, (_, i) => 150_000 + i);
const FEW_LARGER = Array.from({ length: 24 }, (_, i) => 600_000 + i);
const READY = 2;

/** The header of an image's bundle. */
async function headerOf(image: Parameters<typeof encode>[0]) {
  const { bytes, headerBytes } = await encode(image);
  return decodeHeader(
    bytes.subarray(0, PREAMBLE_BYTES),
    bytes.subarray(PREAMBLE_BYTES, headerBytes),
  );
}

test('a wanted content far ahead in a slow stream comes out of order, once', async (t) => {
  const image = makeImage('far', someFiles('far', MANY));
  const { root, server, templates, store, options } = await makeStage(t, image);
  // 6 MB at 3 MB/s: two seconds for the stream alone.
  server.fault = (request) => (request.path === '/v1/delta' ? { rate: 3_000_000 } : undefined);
  const receiver = await Receiver.open(store, options());
  const last = image.toc.contents - 1;
  const at = performance.now();
  receiver.wanted(last, 0, 0);
  receiver.wanted(last, 0, 0);
  await templates[0]!.until(() => templates[0]!.states[last] === READY);
  t.true(performance.now() - at < 800, `${performance.now() - at} ms`);
  t.is(receiver.progress().outOfOrder, 1);
  await receiver.complete;
  t.is(receiver.progress().outOfOrder, 1);
  t.deepEqual(templates[0]!.violations, []);
  await assertWhole(t, root, image);
});

test('what the stream brings soon anyway is left to it', async (t) => {
  const image = makeImage('near', someFiles('near', MANY));
  const { templates, server, store, options } = await makeStage(t, image);
  server.fault = () => ({ rate: 8_000_000 });
  const receiver = await Receiver.open(store, options());
  const { frames, order, toc } = await headerOf(image);
  const soon = toc.contentOfPart(order[frames[1]!.firstPart]!);
  receiver.wanted(soon, 0, 0);
  await templates[0]!.until(() => templates[0]!.states[soon] === READY);
  t.is(receiver.progress().outOfOrder, 0);
});

test('a stream that stalls after it was trusted does not hold a reader up', async (t) => {
  const image = makeImage('trust', someFiles('trust', MANY));
  const { templates, server, store, options } = await makeStage(t, image);
  const { frames, order, toc } = await headerOf(image);
  const stallAfter = frames[1]!.offset + 10;
  server.fault = (_, index) => (index === 0 ? { stallAfter } : undefined);
  const base = options();
  const receiver = await Receiver.open(store, {
    ...base,
    timeouts: { ...base.timeouts!, idleMs: 30_000 },
  });
  const second = toc.contentOfPart(order[frames[1]!.firstPart]!);
  receiver.wanted(second, 0, 0);
  await templates[0]!.until(() => templates[0]!.states[second] === READY, 5000);
  t.is(receiver.progress().outOfOrder, 1);
  await receiver.close();
});

test('the content wanted last comes first', async (t) => {
  const image = makeImage('lifo', someFiles('lifo', FEW_LARGER));
  const { templates, server, store, options } = await makeStage(t, image);
  server.fault = (request) =>
    request.path === '/v1/delta' ? { stallAfter: 100_000 } : { rate: 2_000_000 };
  const base = options();
  const receiver = await Receiver.open(store, {
    ...base,
    timeouts: { ...base.timeouts!, idleMs: 30_000 },
  });
  const template = templates[0]!;
  // A content of every second frame, so that no two share a request: the first four start at once.
  const { frames, order, toc } = await headerOf(image);
  const wants = Array.from({ length: 12 }, (_, i) =>
    toc.contentOfPart(order[frames[frames.length - 2 * i - 1]!.firstPart]!),
  );
  for (const want of wants) receiver.wanted(want, 0, 0);
  await template.until(() => wants.every((want) => template.states[want] === READY));
  // How soon the first four get through is the machine's affair; the order of the rest is ours, but
  // for those that are on their way together: four connections bring them in any order.
  const asked = server.requests.flatMap(({ range }) => {
    const frame = frames.find(({ offset }) => offset === range?.from);
    return frame === undefined ? [] : [toc.contentOfPart(order[frame.firstPart]!)];
  });
  const rest = wants.slice(4).reverse();
  const came = asked.filter((content) => rest.includes(content));
  t.deepEqual([...came].sort(), [...rest].sort());
  for (const [place, content] of rest.entries()) {
    t.true(Math.abs(came.indexOf(content) - place) < 4, `wanted ${rest}, asked for ${came}`);
  }
  await receiver.close();
});

test('a reader who goes through a large content is read ahead for', async (t) => {
  const large = makeImage('ahead', {
    ...someFiles('ahead', MANY.slice(0, 20)),
    zz: noise('zz', 9_000_000),
  });
  const { root, templates, server, store, options } = await makeStage(t, large);
  server.fault = (request) => (request.path === '/v1/delta' ? { rate: 2_500_000 } : undefined);
  const receiver = await Receiver.open(store, options());
  const { toc } = receiver;
  const content = Array.from({ length: toc.contents }, (_, c) => c).find(
    (c) => toc.partCount(c) > 1,
  )!;
  const template = templates[0]!;
  const first = toc.firstPart(content);
  for (let index = 0; index < toc.partCount(content); index++) {
    const there = () =>
      template.arrivedParts.has(first + index) || template.states[content] === READY;
    if (!there()) receiver.wanted(content, index, index);
    await template.until(there);
  }
  // 9 parts; without reading ahead each would be a request of its own.
  t.true(receiver.progress().outOfOrder <= 6, `${receiver.progress().outOfOrder} requests`);
  await template.until(() => template.states[content] === READY);
  t.deepEqual(template.violations, []);
  t.true(template.read(content).equals(large.contents.get(large.hex(content))!));
  await receiver.complete;
  await assertWhole(t, root, large);
});

test('frames wanted out of order survive server errors and a bundle that is gone', async (t) => {
  const image = makeImage('errors', someFiles('errors', MANY));
  const { root, templates, server, store, options } = await makeStage(t, image);
  const first = await encode(image);
  const ranks = Array.from({ length: image.toc.contents }, (_, i) => ({
    content: i,
    rank: (i * 7) % 40,
  }));
  const second = await encode(image, { ranks });
  let ranges = 0;
  server.fault = (request) => {
    if (request.path === '/v1/delta') return { rate: 1_500_000 };
    if (ranges++ < 3) return { status: 500 };
    if (server.bundles.delete(first.id)) {
      server.bundles.set(second.id, second);
      server.delta = async () => ({ image, bundle: second });
    }
    return undefined;
  };
  const receiver = await Receiver.open(store, options());
  for (const want of [39, 30, 20]) receiver.wanted(want, 0, 0);
  await templates[0]!.until(() => [39, 30, 20].every((c) => templates[0]!.states[c] === READY));
  await receiver.complete;
  t.deepEqual(templates[0]!.violations, []);
  await assertWhole(t, root, image);
});

test('wants at any time, for anything, do no harm', async (t) => {
  const image = makeImage('random', someFiles('random', [...MANY.slice(0, 15), 3_300_000]));
  const { root, templates, server, store, options } = await makeStage(t, image);
  server.fault = (_, index) => (index % 3 === 0 ? { cutAfter: 900_000 } : { rate: 20_000_000 });
  const receiver = await Receiver.open(store, options());
  let seed = 7;
  const random = (n: number) => {
    seed = (seed * 1103515245 + 12345) % 2 ** 31;
    return seed % n;
  };
  const wanting = (async () => {
    while (receiver.progress().state !== 'complete') {
      const content = random(image.toc.contents);
      const last = image.toc.partCount(content) - 1;
      receiver.wanted(content, random(last + 1), last);
      await sleep(5);
    }
  })();
  await receiver.complete;
  await wanting;
  t.deepEqual(templates[0]!.violations, []);
  await assertWhole(t, root, image);
});
