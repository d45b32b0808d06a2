// Bundles with patches: an image is made from an older one, and arrives whatever has become of that.
import { chmod, readFile, writeFile } from 'node:fs/promises';
import type { ExecutionContext } from 'ava';
import test from 'ava';
import {
  type EncodedImage,
  encode,
  type FaultyServer,
  makeImage,
  noise,
  someFiles,
  type TestImage,
} from '../../test/receive/fixture.ts';
import { assertWhole, LARGE, makeStage, SMALL } from '../../test/receive/stage.ts';
import { FRAME_KIND, PREAMBLE_BYTES } from '../delta/bundle.ts';
import { decodeHeader } from '../delta/bundle-decode.ts';
import { PatchBases } from './patch-bases.ts';
import { Receiver } from './receiver.ts';

/** The same bytes with some replaced, here and there. */
function changed(bytes: Buffer): Buffer {
  const copy = Buffer.from(bytes);
  for (let at = bytes.length >> 1; at < copy.length; at += 60_000) copy.write('new', at);
  return copy;
}

const FILES = someFiles('patched', [...SMALL, ...LARGE]);
const OLD = makeImage('v1', { ...FILES, same: noise('same', 1000) });
const NOW = makeImage('v2', {
  ...Object.fromEntries(Object.entries(FILES).map(([path, data]) => [path, changed(data)])),
  same: noise('same', 1000),
});
const RANKS = [{ content: NOW.toc.contents - 2, rank: 1 }];
const PATCHED = await encode(NOW, { bases: [OLD], patches: true, ranks: RANKS });
const PLAIN = await encode(NOW, { bases: [OLD], ranks: RANKS });

const headerOf = ({ bytes, headerBytes }: EncodedImage) =>
  decodeHeader(bytes.subarray(0, PREAMBLE_BYTES), bytes.subarray(PREAMBLE_BYTES, headerBytes));

/** A store that has the old image, and a server that has both bundles of the new one. */
async function staged(t: ExecutionContext, old: TestImage = OLD) {
  const stage = await makeStage(t, old);
  const first = await Receiver.open(stage.store, stage.options());
  await first.complete;
  await first.close();
  const { server } = stage;
  for (const bundle of [PATCHED, PLAIN]) server.bundles.set(bundle.id, bundle);
  server.delta = async (query, { frames }) => {
    t.deepEqual(query.getAll('base'), [old.digest]);
    return { image: NOW, bundle: frames === 'patch' ? PATCHED : PLAIN };
  };
  const before = server.requests.length;
  /** What was asked for since: with patches or without. */
  const asked = () =>
    server.requests
      .slice(before)
      .filter(({ method, path }) => method === 'GET' && path === '/v1/delta')
      .map(({ frames }) => frames);
  /** For tests that count requests: a busy machine must not look like a server that has stalled. */
  const patient = () => {
    const options = stage.options();
    return { ...options, timeouts: { ...options.timeouts!, idleMs: 60_000, headMs: 60_000 } };
  };
  return { ...stage, asked, before, patient };
}

/** Lets no more of the bundle through than its first bytes, until the answer is called. */
function hold(server: FaultyServer, bytes: number): () => void {
  let held = true;
  server.fault = ({ method, range }) =>
    held && method === 'GET' ? { stallAfter: range === undefined ? bytes : 0 } : undefined;
  return () => {
    held = false;
  };
}

/** Changes bytes of a content that the store has, as a bad disk does. */
async function damage(root: string, hex: string): Promise<void> {
  const path = `${root}/content/${hex.slice(0, 2)}/${hex.slice(2)}`;
  const bytes = await readFile(path);
  await chmod(path, 0o644);
  await writeFile(path, Buffer.from(bytes.map((byte) => byte ^ 0x55)));
}

const contentAt = (image: TestImage, path: string) => image.toc.content(image.toc.resolve(path));

test('the bundles are what the other tests need', (t) => {
  const { frames } = headerOf(PATCHED);
  t.true(frames.filter(({ kind }) => kind === FRAME_KIND.patch).length > 5);
  t.true(PATCHED.bytes.length < PLAIN.bytes.length / 20);
});

test('an update arrives whole from patches, in one request', async (t) => {
  const { root, store, server, templates, patient, asked, before } = await staged(t);
  const receiver = await Receiver.open(store, patient());
  await receiver.complete;
  t.deepEqual(asked(), ['patch']);
  // The store's own image of that name had to be asked about first.
  t.is(server.requests.slice(before).filter(({ method }) => method === 'GET').length, 1);
  t.deepEqual(templates[1]!.violations, []);
  const progress = receiver.progress();
  t.is(progress.receivedBytes, PATCHED.bytes.length - PATCHED.headerBytes);
  t.is(progress.bytesDone, progress.bytes);
  t.is(progress.error, undefined);
  await receiver.close();
  await assertWhole(t, root, NOW);
});

test('a patch whose base is damaged on the disk: the rest comes without patches', async (t) => {
  const { root, store, templates, lines, patient, asked } = await staged(t);
  await damage(root, OLD.hex(contentAt(OLD, 'd0/f8')));
  const receiver = await Receiver.open(store, patient());
  await receiver.complete;
  t.deepEqual(asked(), ['patch', undefined]);
  t.deepEqual(templates[1]!.violations, []);
  t.true(lines.some(({ msg }) => String(msg).includes('firstlight verify')));
  await receiver.close();
  for (const [hex, data] of NOW.contents) {
    const stored = await readFile(`${root}/content/${hex.slice(0, 2)}/${hex.slice(2)}`);
    t.true(stored.equals(data));
  }
});

test('a patch whose base has lost a content: the rest comes without patches', async (t) => {
  const { root, store, templates, patient, asked } = await staged(t);
  await store.contents.quarantine(OLD.hex(contentAt(OLD, 'd0/f8')));
  const receiver = await Receiver.open(store, patient());
  await receiver.complete;
  t.deepEqual(asked(), ['patch', undefined]);
  t.deepEqual(templates[1]!.violations, []);
  await receiver.close();
  await assertWhole(t, root, NOW);
});

test('readers who wait get what damaged patches would have brought', async (t) => {
  const { root, store, server, templates, options, before } = await staged(t);
  const wanted = contentAt(NOW, 'd1/f10');
  await damage(root, OLD.hex(contentAt(OLD, 'd1/f10')));
  // Only what is fetched for the reader comes at all: first the patches, then a bundle's header.
  const first = headerOf(PATCHED).frames[0]!;
  server.fault = ({ path }, index) =>
    path === '/v1/delta' && index <= before + 1 ? { stallAfter: first.offset } : undefined;
  const receiver = await Receiver.open(store, options());
  receiver.wanted(wanted, 0, NOW.toc.partCount(wanted) - 1);
  await templates[1]!.until(() => templates[1]!.states[wanted] === 2);
  await receiver.complete;
  t.deepEqual(templates[1]!.violations, []);
  await receiver.close();
});

test('a wanted content comes out of order from patch frames of its own', async (t) => {
  const { store, server, templates, patient, before } = await staged(t);
  server.fault = (_, index) =>
    index <= before + 1 ? { stallAfter: PATCHED.headerBytes } : undefined;
  const receiver = await Receiver.open(store, patient());
  const wanted = contentAt(NOW, 'd0/f7');
  receiver.wanted(wanted, 0, 0);
  await templates[1]!.until(() => templates[1]!.states[wanted] === 2);
  const ranges = server.requests.filter(({ path }) => path === `/v1/bundles/${PATCHED.id}`);
  t.true(ranges.length >= 1);
  t.true(receiver.progress().outOfOrder >= 1);
  t.deepEqual(templates[1]!.violations, []);
  await receiver.close();
});

test('what patches stand on is kept from a collection until they have come', async (t) => {
  const { root, store, server, options } = await staged(t);
  const letGo = hold(server, PATCHED.headerBytes);
  const receiver = await Receiver.open(store, options());
  // The name is the new image's now: nothing but the transfer holds the old one.
  t.deepEqual(store.findImage('app:1')?.digest, NOW.digest);
  t.deepEqual((await store.gc()).images, []);
  letGo();
  await receiver.complete;
  t.deepEqual((await store.gc()).images, [OLD.digest]);
  t.is(receiver.progress().receivedBytes, PATCHED.bytes.length - PATCHED.headerBytes);
  await receiver.close();
  await assertWhole(t, root, NOW);
});

test('nothing of what patches stand on is kept once it has been let go', async (t) => {
  const { store } = await staged(t);
  const header = headerOf(PATCHED);
  const bases = new PatchBases(store, header);
  const frame = header.frames.find(({ kind }) => kind === FRAME_KIND.patch)!;
  await bases.read(frame);
  await store.removeImage(OLD.digest);
  t.deepEqual((await store.gc()).images, []);
  bases.release();
  t.deepEqual((await store.gc()).images, [OLD.digest]);
  await t.throwsAsync(bases.read(frame), { message: /image .* has been removed meanwhile/ });
});

test('a transfer of patches goes on after a restart, also where the old image has gone', async (t) => {
  const { root, store, server, templates, openStore, options, asked } = await staged(t);
  const letGo = hold(server, headerOf(PATCHED).frames[3]!.offset);
  const receiver = await Receiver.open(store, options());
  await templates[1]!.until(() => receiver.progress().framesDone >= 3);
  await receiver.close();
  letGo();
  await store.gc();
  await store.close();
  const again = await openStore();
  t.is(again.findImage(OLD.digest), undefined);
  server.delta = async (query, { frames }) => {
    t.deepEqual(query.getAll('base'), []);
    t.is(frames, undefined);
    const bundle = await encode(NOW);
    server.bundles.set(bundle.id, bundle);
    return { image: NOW, bundle };
  };
  const second = await Receiver.open(again, options({ ref: NOW.digest }));
  await second.complete;
  t.deepEqual(asked(), ['patch', undefined]);
  t.deepEqual(templates[2]!.violations, []);
  await second.close();
  await assertWhole(t, root, NOW);
});

test('a server that sends patches to who asked for none is not believed', async (t) => {
  const { root, store, server, lines, options, asked } = await staged(t);
  await damage(root, OLD.hex(contentAt(OLD, 'd0/f8')));
  let stubborn = true;
  server.delta = async (_, { frames }) => ({
    image: NOW,
    bundle: stubborn || frames === 'patch' ? PATCHED : PLAIN,
  });
  const receiver = await Receiver.open(store, options());
  while (!lines.some(({ err }) => /sends patches/.test(JSON.stringify(err ?? ''))))
    await new Promise((resolve) => setTimeout(resolve, 10));
  t.is(receiver.progress().state, 'retrying');
  t.regex(receiver.progress().error ?? '', /sends patches/);
  stubborn = false;
  await receiver.complete;
  t.true(asked().length >= 3);
  await receiver.close();
});
