// Opening and receiving without and with faults of the network. Faults of the disk: disk.test.ts;
// kill -9: kill.test.ts.
import { chmod, writeFile } from 'node:fs/promises';
import test from 'ava';
import { encode, FaultyServer, makeImage, noise, someFiles } from '../../test/receive/fixture.ts';
import { assertWhole, LARGE, makeStage, SMALL } from '../../test/receive/stage.ts';
import { PREAMBLE_BYTES } from '../delta/bundle.ts';
import { decodeHeader } from '../delta/bundle-decode.ts';
import { FirstlightError } from '../errors/errors.ts';
import { Receiver } from './receiver.ts';

test('an image arrives whole, in one request', async (t) => {
  const image = makeImage('whole', someFiles('whole', [...SMALL, ...LARGE]));
  const { root, server, templates, store, options } = await makeStage(t, image);
  const receiver = await Receiver.open(store, options());
  t.is(receiver.digest, image.digest);
  t.true(receiver.toc.bytes.equals(image.toc.bytes));
  await receiver.complete;
  t.deepEqual(templates[0]!.violations, []);
  t.true(templates[0]!.states.every((state) => state === 2));
  t.is(server.requests.length, 1);
  await assertWhole(t, root, image);
  const progress = receiver.progress();
  t.is(progress.state, 'complete');
  t.is(progress.framesDone, progress.frames);
  t.is(progress.bytesDone, progress.bytes);
  t.is(progress.receivedBytes, progress.bytes);
  t.true(progress.headerAt > 0 && progress.firstFrameAt >= progress.headerAt);
  await receiver.close();
  t.true(templates[0]!.closed);
  const [info] = store.images();
  t.is(info?.complete, true);
  t.deepEqual(info?.names, ['app:1']);
});

test('an answer cut at any byte is resumed: no frame that was whole is asked for again', async (t) => {
  const image = makeImage('cut', someFiles('cut', SMALL));
  const bundle = await encode(image);
  const cuts = [0, 1, 50, 95, 96, 97, bundle.headerBytes - 1, bundle.headerBytes];
  for (let at = bundle.headerBytes + 1; at < bundle.bytes.length; at += 60_007) cuts.push(at);
  cuts.push(bundle.bytes.length - 1);
  for (const cutAfter of cuts) {
    const { root, server, templates, store, options } = await makeStage(t, image);
    server.fault = (_, index) => (index === 0 ? { cutAfter } : undefined);
    const receiver = await Receiver.open(store, options());
    await receiver.complete;
    t.deepEqual(templates[0]!.violations, []);
    await assertWhole(t, root, image);
    const { frames } = decodeHeader(
      bundle.bytes.subarray(0, PREAMBLE_BYTES),
      bundle.bytes.subarray(PREAMBLE_BYTES, bundle.headerBytes),
    );
    const broken = frames.find((frame) => frame.offset + frame.bytes > cutAfter)!;
    if (cutAfter < bundle.headerBytes) t.is(server.requests[1]!.path, '/v1/delta');
    else t.is(server.requests[1]!.range?.from, broken.offset, `cut after ${cutAfter}`);
    await receiver.close();
  }
});

test('a connection that breaks again and again gets there in the end', async (t) => {
  const image = makeImage('breaks', someFiles('breaks', [...SMALL, ...LARGE]));
  const { root, server, templates, store, options } = await makeStage(t, image);
  server.fault = (_, index) => (index < 40 ? { cutAfter: 400_000 } : undefined);
  const receiver = await Receiver.open(store, options());
  await receiver.complete;
  t.deepEqual(templates[0]!.violations, []);
  t.true(receiver.progress().retries > 3);
  t.is(receiver.progress().error, undefined);
  await assertWhole(t, root, image);
});

test('a stalled answer is given up after the idle bound and resumed', async (t) => {
  const image = makeImage('stall', someFiles('stall', SMALL));
  const { root, server, store, options } = await makeStage(t, image);
  server.fault = (_, index) => (index === 0 ? { stallAfter: 300_000 } : undefined);
  const receiver = await Receiver.open(store, options());
  await receiver.complete;
  t.true(receiver.progress().retries >= 1);
  await assertWhole(t, root, image);
});

test('server errors are waited out', async (t) => {
  const image = makeImage('500', someFiles('500', SMALL));
  const { root, server, store, options } = await makeStage(t, image);
  server.fault = (_, index) =>
    index === 0 ? { cutAfter: 200_000 } : index < 6 ? { status: 503 } : undefined;
  const receiver = await Receiver.open(store, options());
  await receiver.complete;
  t.true(receiver.progress().retries >= 5);
  await assertWhole(t, root, image);
});

test('a server that restarts before the header is waited for a little', async (t) => {
  const image = makeImage('restart', someFiles('restart', [10]));
  const { server, store, options } = await makeStage(t, image);
  server.fault = (_, index) => (index < 2 ? { status: 502 } : undefined);
  const receiver = await Receiver.open(store, options());
  await receiver.complete;
  t.is(receiver.progress().state, 'complete');
});

test('damaged bytes are refused and asked for again, and are never stored', async (t) => {
  const image = makeImage('damage', someFiles('damage', [...SMALL, ...LARGE]));
  const { root, server, templates, store, options, lines } = await makeStage(t, image);
  server.fault = (_, index) => ({
    damage: (bytes, offset) => {
      // A byte every 300 kB of the first answer, behind its header.
      if (index === 0) for (let at = 5000; at < bytes.length; at += 300_000) bytes[at]! ^= 1;
      // And one of the second.
      else if (index === 1) bytes[Math.floor((offset + bytes.length) / 2) - offset]! ^= 0x80;
      return bytes;
    },
  });
  const receiver = await Receiver.open(store, options());
  await receiver.complete;
  t.deepEqual(templates[0]!.violations, []);
  t.true(lines.some(({ msg }) => String(msg).includes('came wrong')));
  await assertWhole(t, root, image);
});

test('a frame that is always wrong fails its readers and no others', async (t) => {
  const image = makeImage('hopeless', someFiles('hopeless', [...SMALL, 400_000, 400_000, 400_000]));
  const { server, templates, store, options } = await makeStage(t, image);
  const bundle = await encode(image);
  const bad = bundle.bytes.length - 10;
  server.fault = () => ({
    damage: (bytes, offset) => {
      if (bad >= offset && bad < offset + bytes.length) bytes[bad - offset]! ^= 1;
      return bytes;
    },
  });
  const receiver = await Receiver.open(store, options());
  const error = await t.throwsAsync(receiver.complete, { instanceOf: FirstlightError });
  t.is(error.kind, 'corrupt');
  t.is(receiver.progress().state, 'failed');
  const states = [...templates[0]!.states];
  t.true(states.includes(4));
  t.true(states.filter((state) => state === 2).length >= 8);
  t.true(states.every((state) => state === 2 || state === 4));
  t.is(store.findImage(image.digest)?.complete, false);
});

test('a damaged header is refused and leaves nothing', async (t) => {
  const image = makeImage('header', someFiles('header', SMALL));
  const { server, store, options } = await makeStage(t, image);
  server.fault = () => ({
    damage: (bytes) => {
      bytes[200]! ^= 1;
      return bytes;
    },
  });
  const error = await t.throwsAsync(Receiver.open(store, options()), {
    instanceOf: FirstlightError,
  });
  t.is(error.kind, 'corrupt');
  t.deepEqual(store.images(), []);
  t.is(store.contents.count, 0);
});

test('errors of opening say what to do', async (t) => {
  const image = makeImage('errors', someFiles('errors', [10]));
  const { server, store, options } = await makeStage(t, image);
  server.delta = async () => undefined;
  const kinds = async (more: Parameters<typeof options>[0]) => {
    const error = await t.throwsAsync(Receiver.open(store, options(more)), {
      instanceOf: FirstlightError,
    });
    return error.kind;
  };
  t.is(await kinds({}), 'not-found');
  t.is(await kinds({ server: undefined }), 'not-found');
  t.is(await kinds({ server: 'not a url' }), 'usage');
  t.is(await kinds({ bases: ['nothing:1'] }), 'not-found');
  await server.stop();
  t.is(await kinds({}), 'unreachable');
});

test('the server gets a new bundle of the same image: only missing frames are fetched', async (t) => {
  const image = makeImage('gone', someFiles('gone', [...SMALL, ...LARGE]));
  const { root, server, templates, store, options } = await makeStage(t, image);
  const first = await encode(image);
  const ranks = Array.from({ length: image.toc.contents }, (_, i) => ({ content: i, rank: -i }));
  const second = await encode(image, { ranks });
  t.not(first.id, second.id);
  const firstHeader = decodeHeader(
    first.bytes.subarray(0, PREAMBLE_BYTES),
    first.bytes.subarray(PREAMBLE_BYTES, first.headerBytes),
  );
  const half = firstHeader.frames[Math.floor(firstHeader.frames.length / 2)]!.offset;
  server.fault = (_, index) => {
    if (index > 0) return undefined;
    server.bundles.delete(first.id);
    return { cutAfter: half };
  };
  let asked = 0;
  server.delta = async (query) => {
    if (asked++ > 0) t.is(query.get('image'), image.digest);
    const bundle = asked === 1 ? first : second;
    if (asked > 1) server.bundles.set(second.id, second);
    return { image, bundle };
  };
  const receiver = await Receiver.open(store, options());
  await receiver.complete;
  t.is(asked, 2);
  t.deepEqual(templates[0]!.violations, []);
  await assertWhole(t, root, image);
});

test('the same with an entity tag that no longer matches', async (t) => {
  const image = makeImage('etag', someFiles('etag', SMALL));
  const { root, server, store, options } = await makeStage(t, image);
  server.fault = (_, index) =>
    index === 0 ? { cutAfter: 250_000 } : index === 1 ? { etag: '"other"' } : undefined;
  const receiver = await Receiver.open(store, options());
  await receiver.complete;
  t.deepEqual(server.requests.filter(({ path }) => path === '/v1/delta').length, 2);
  await assertWhole(t, root, image);
});

test('a name that moves on does not mix two images', async (t) => {
  const one = makeImage('one', someFiles('one', SMALL));
  const two = makeImage('two', {
    ...someFiles('one', SMALL.slice(0, 5)),
    ...someFiles('two', SMALL),
  });
  const { root, server, store, options } = await makeStage(t, one);
  const bundles = new Map([
    [one.digest, { image: one, bundle: await encode(one) }],
    [two.digest, { image: two, bundle: await encode(two) }],
  ]);
  let named = one;
  server.delta = async (query) => {
    const ref = query.get('image')!;
    const found = bundles.get(ref.startsWith('sha256:') ? ref : named.digest)!;
    server.bundles.set(found.bundle.id, found.bundle);
    return found;
  };
  server.fault = (_, index) => {
    if (index > 0) return undefined;
    // While the first image arrives, its bundle goes and the name moves.
    named = two;
    server.bundles.clear();
    return { cutAfter: 200_000 };
  };
  const first = await Receiver.open(store, options());
  // The fault is asked before the answer is made, so the first answer is the second image's.
  t.is(first.digest, two.digest);
  await first.complete;
  await assertWhole(t, root, two);
  named = one;
  const second = await Receiver.open(store, options());
  t.is(second.digest, one.digest);
  t.deepEqual(store.findImage('app:1')?.digest, one.digest);
  await second.complete;
  await assertWhole(t, root, one);
});

test('an image that is complete opens without a server', async (t) => {
  const image = makeImage('offline', someFiles('offline', SMALL));
  const { server, templates, store, options, lines } = await makeStage(t, image);
  const first = await Receiver.open(store, options());
  await first.complete;
  await first.close();
  await server.stop();
  const byName = await Receiver.open(store, options());
  t.true(lines.some(({ msg }) => String(msg).includes('was not asked what the name means')));
  t.is(byName.progress().state, 'complete');
  t.true(templates[1]!.states.every((state) => state === 2));
  t.deepEqual(templates[1]!.violations, []);
  const byDigest = await Receiver.open(store, options({ ref: image.digest, server: undefined }));
  t.is(templates.length, 2, 'both share one template');
  await byName.close();
  t.false(templates[1]!.closed);
  await byDigest.close();
  t.true(templates[1]!.closed);
});

test('opens at the same time share one transfer', async (t) => {
  const image = makeImage('shared', someFiles('shared', SMALL));
  const { root, server, templates, store, options } = await makeStage(t, image);
  const receivers = await Promise.all([
    Receiver.open(store, options()),
    Receiver.open(store, options()),
    Receiver.open(store, options({ ref: 'app:2' })),
    Receiver.open(store, options({ ref: image.digest })),
  ]);
  await Promise.all(receivers.map((receiver) => receiver.complete));
  t.is(templates.length, 1);
  await assertWhole(t, root, image);
  t.deepEqual(store.images()[0]?.names, ['app:1', 'app:2']);
  const whole = (await encode(image)).bytes.length;
  t.true(server.sentBytes < 3 * whole + 3_000_000);
  for (const receiver of receivers) await receiver.close();
  t.true(templates[0]!.closed);
});

test('closed in the middle and opened again: no header, and no frame twice', async (t) => {
  const image = makeImage(
    'again',
    someFiles('again', [...SMALL, ...SMALL.map((n) => n + 1), ...LARGE]),
  );
  const { root, server, templates, store, openStore, options } = await makeStage(t, image);
  server.fault = (_, index) => (index === 0 ? { rate: 8_000_000 } : undefined);
  const first = await Receiver.open(store, options());
  await templates[0]!.until(() => first.progress().framesDone >= 3);
  await first.close();
  await t.throwsAsync(first.complete);
  await store.close();
  const doneBefore = first.progress().framesDone;
  const again = await Receiver.open(await openStore(), options({ ref: image.digest }));
  t.is(again.progress().framesDone, doneBefore);
  await again.complete;
  t.deepEqual(templates[1]!.violations, []);
  t.is(server.requests.filter(({ path }) => path === '/v1/delta').length, 1);
  t.is(again.progress().receivedBytes, again.progress().bytes - first.progress().bytesDone);
  await assertWhole(t, root, image);
});

test('a bundle against a base brings only what is new, and base contents are ready at open', async (t) => {
  const old = makeImage('v1', { ...someFiles('both', SMALL), 'only/old': noise('old', 5000) });
  const now = makeImage('v2', { ...someFiles('both', SMALL), 'only/new': noise('new', 90_000) });
  const { root, server, templates, store, options } = await makeStage(t, old);
  const first = await Receiver.open(store, options({ ref: 'app:old' }));
  await first.complete;
  await first.close();
  const bundle = await encode(now, { bases: [old] });
  server.delta = async (query) => {
    t.deepEqual(query.getAll('base'), [old.digest]);
    return { image: now, bundle };
  };
  server.bundles.set(bundle.id, bundle);
  server.fault = () => ({ rate: 2_000_000 });
  const second = await Receiver.open(store, options());
  const readyAtOpen = [...templates[1]!.states].filter((state) => state === 2).length;
  t.true(readyAtOpen >= now.toc.contents - 1);
  await second.complete;
  t.is(second.progress().rawBytes < 200_000, true);
  t.deepEqual(templates[1]!.violations, []);
  await assertWhole(t, root, now);
});

test('a base that lacks contents is left out of the next request', async (t) => {
  const old = makeImage('v1', someFiles('both', SMALL));
  const now = makeImage('v2', { ...someFiles('both', SMALL), 'only/new': noise('new', 90_000) });
  const { root, server, templates, store, options } = await makeStage(t, old);
  const first = await Receiver.open(store, options({ ref: 'app:old' }));
  await first.complete;
  await first.close();
  await store.contents.quarantine(old.hex(3));
  const against = await encode(now, { bases: [old] });
  const alone = await encode(now);
  server.delta = async (query) => {
    const bundle = query.getAll('base').length > 0 ? against : alone;
    server.bundles.set(bundle.id, bundle);
    return { image: now, bundle };
  };
  const second = await Receiver.open(store, options());
  await second.complete;
  t.deepEqual(templates[1]!.violations, []);
  await assertWhole(t, root, now);
});

test('a base that loses contents between two runs: the rest comes from a bundle without it', async (t) => {
  const old = makeImage('v1', someFiles('both', SMALL));
  const now = makeImage('v2', { ...someFiles('both', SMALL), 'only/new': noise('new', 900_000) });
  const { root, server, templates, store, openStore, options } = await makeStage(t, old);
  const first = await Receiver.open(store, options({ ref: 'app:old' }));
  await first.complete;
  await first.close();
  const against = await encode(now, { bases: [old] });
  const alone = await encode(now);
  server.delta = async (query) => {
    const bundle = query.getAll('base').length > 0 ? against : alone;
    server.bundles.set(bundle.id, bundle);
    return { image: now, bundle };
  };
  const index = server.requests.length;
  server.fault = (_, i) => (i === index ? { stallAfter: against.headerBytes + 10 } : undefined);
  const second = await Receiver.open(store, options());
  await second.close();
  await store.contents.quarantine(old.hex(3));
  await store.close();
  const third = await Receiver.open(await openStore(), options({ ref: now.digest }));
  await third.complete;
  t.deepEqual(templates.at(-1)!.violations, []);
  await assertWhole(t, root, now);
});

test('an image without contents is complete at once', async (t) => {
  const image = makeImage('empty', { 'a/empty': Buffer.alloc(0) });
  const { store, options } = await makeStage(t, image);
  const receiver = await Receiver.open(store, options());
  await receiver.complete;
  t.is(receiver.progress().state, 'complete');
  t.true(store.findImage('app:1')?.complete);
});

test('a second server takes over an interrupted image', async (t) => {
  const image = makeImage('takeover', someFiles('takeover', [...SMALL, ...LARGE]));
  const { root, server, store, options } = await makeStage(t, image);
  server.fault = () => ({ stallAfter: 500_000 });
  const first = await Receiver.open(store, options());
  await first.close();
  await server.stop();
  const other = await FaultyServer.start(t);
  other.serve(image, await encode(image));
  const second = await Receiver.open(store, options({ server: other.url }));
  await second.complete;
  await assertWhole(t, root, image);
});

test('an image that was closed and removed is fetched anew by its name', async (t) => {
  const image = makeImage('anew', someFiles('anew', SMALL));
  const { root, server, store, options } = await makeStage(t, image);
  const first = await Receiver.open(store, options());
  await first.complete;
  await first.close();
  await store.removeImage('app:1');
  await store.gc();
  t.is(store.contents.count, 0);
  const second = await Receiver.open(store, options());
  await second.complete;
  t.is(server.requests.filter(({ path }) => path === '/v1/delta').length, 2);
  await assertWhole(t, root, image);
});

for (const when of ['complete', 'arriving'] as const) {
  test(`damage found while the image is open and ${when} is fetched again`, async (t) => {
    const image = makeImage(when, someFiles(when, [...SMALL, ...LARGE]));
    const { root, server, templates, store, options } = await makeStage(t, image);
    if (when === 'arriving') {
      server.fault = (_, index) => (index === 0 ? { rate: 4_000_000 } : undefined);
    }
    const receiver = await Receiver.open(store, options());
    const template = templates[0]!;
    const large = [...template.states.keys()].filter((c) => image.toc.partCount(c) > 1);
    const victims = when === 'complete' ? [3, large[0]!] : [0];
    if (when === 'complete') await receiver.complete;
    else await template.until(() => template.states[0] === 2);
    await store.contents.makeDurable();
    for (const victim of victims) {
      const path = store.contents.path(image.hex(victim))!;
      await chmod(path, 0o644);
      await writeFile(path, 'rotten');
    }
    const report = await store.verify();
    t.deepEqual(report.damaged.sort(), victims.map((v) => image.hex(v)).sort());
    await receiver.complete;
    for (const victim of victims) {
      t.is(template.errnos.get(victim), 5);
      t.is(template.states[victim], 2);
    }
    t.deepEqual(template.violations, []);
    t.is(receiver.progress().state, 'complete');
    t.true(store.findImage(image.digest)?.complete);
    await assertWhole(t, root, image);
  });
}
