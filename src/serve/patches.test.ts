// Bundles with patches on the server: computed behind everything, sent only to who can take them.
import { createHash } from 'node:crypto';
import { chmod, readdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import test from 'ava';
import { pino } from 'pino';
import { FRAME_KIND, PREAMBLE_BYTES } from '../delta/bundle.ts';
import { decodeHeader, parsePreamble } from '../delta/bundle-decode.ts';
import type { ImageDetail } from '../delta/protocol.ts';
import { ImageStore } from './image-store.ts';
import {
  type Answer,
  addRootfs,
  ask,
  makeDirectory,
  makeTar,
  noise,
  quiet,
  serve,
} from './testkit.ts';
import { reported, traceOf } from './testkit-traces.ts';

const PATCH = { 'firstlight-frames': 'patch' };
const HOUR = 3600 * 1000;

/** Version `n` of an image: two files that change a little with each, one that stays. */
function version(n: number): Promise<Buffer> {
  const edited = (seed: number) => {
    const bytes = noise(150_000, seed);
    bytes.write(`version ${n}`, 1000 * n);
    return bytes;
  };
  return makeTar({ app: edited(1), lib: edited(2), same: noise(20_000, 3) });
}

async function inspect(url: string, name: string): Promise<ImageDetail> {
  return (await ask(`${url}/v1/images/${name}`)).json() as ImageDetail;
}

/** Waits until nothing more is to be computed of an image. */
async function patched(url: string, name: string): Promise<ImageDetail> {
  for (let i = 0; i < 3000; i++) {
    const detail = await inspect(url, name);
    if (detail.order.settled && detail.patches.pending === 0) return detail;
    await sleep(20);
  }
  throw new Error(`the patches of ${name} do not come`);
}

function kindsOf(bundle: Buffer): number[] {
  const { headerBytes } = parsePreamble(bundle);
  const end = PREAMBLE_BYTES + headerBytes;
  const header = decodeHeader(
    bundle.subarray(0, PREAMBLE_BYTES),
    bundle.subarray(PREAMBLE_BYTES, end),
  );
  return header.frames.map(({ kind }) => kind);
}

const hasPatches = ({ body }: Answer) => kindsOf(body).includes(FRAME_KIND.patch);

const deltaUrl = (url: string, image: string, ...bases: string[]) =>
  `${url}/v1/delta?image=${image}${bases.map((base) => `&base=${base}`).join('')}`;

async function metric(url: string, name: string): Promise<number> {
  const text = (await ask(`${url}/metrics`)).body.toString();
  return Number(new RegExp(`^${name} (.*)$`, 'm').exec(text)![1]);
}

test('patches against the version before are there when the image is, for who can take them', async (t) => {
  const { url } = await serve(t);
  await addRootfs(url, 'app:1', await version(1));
  await addRootfs(url, 'app:2', await version(2));
  const { patches } = await patched(url, 'app:2');
  const { digest } = await inspect(url, 'app:1');
  t.deepEqual(
    patches.ready.map(({ from, name }) => [from, name]),
    [[digest, 'app:1']],
  );
  const plain = await ask(deltaUrl(url, 'app:2', digest));
  t.false(hasPatches(plain));
  t.true(plain.body.length > 250_000);
  const answer = await ask(deltaUrl(url, 'app:2', digest), { headers: PATCH });
  t.true(hasPatches(answer));
  t.true(answer.body.length < 5000, `${answer.body.length}`);
  t.is(answer.body.length, patches.ready[0]!.bundleBytes);
  // They are two bundles under one URL: a cache has to tell them apart, and a transfer goes on with its own.
  t.not(answer.headers.etag, plain.headers.etag);
  t.not(answer.headers['content-location'], plain.headers['content-location']);
  t.is(answer.headers.vary, 'firstlight-frames');
  t.is(plain.headers.vary, 'firstlight-frames');
  const range = { range: 'bytes=100-', 'if-range': answer.headers.etag! };
  const rest = await ask(url + answer.headers['content-location'], { headers: range });
  t.is(rest.status, 206);
  t.true(rest.body.equals(answer.body.subarray(100)));
  t.is(
    (
      await ask(url + answer.headers['content-location'], {
        headers: { ...range, 'if-range': plain.headers.etag! },
      })
    ).status,
    200,
  );
  const other = await ask(deltaUrl(url, 'app:2', digest), {
    headers: { 'firstlight-frames': 'later, Patch' },
  });
  t.is(other.headers.etag, answer.headers.etag);
  const unknown = await ask(deltaUrl(url, 'app:2', digest), {
    headers: { 'firstlight-frames': 'dispatch' },
  });
  t.is(unknown.headers.etag, plain.headers.etag);
  t.is(await metric(url, 'firstlight_patch_bundles_computed_total'), 1);
  t.is(await metric(url, 'firstlight_patch_bundles_pending'), 0);
  // A worker without any image has nothing to patch.
  t.false(hasPatches(await ask(deltaUrl(url, 'app:2'), { headers: PATCH })));
});

test('what nobody has computed ahead is computed behind the first answer, and kept', async (t) => {
  const dataDir = await makeDirectory(t);
  const first = await serve(t, { dataDir });
  await addRootfs(first.url, 'new:1', await version(2));
  await addRootfs(first.url, 'old:1', await version(1));
  const { digest } = await inspect(first.url, 'old:1');
  await first.close();
  const store = await ImageStore.open({ dataDir, log: quiet });
  let ready: string | undefined;
  try {
    const image = await store.find('new:1', undefined);
    const plain = await store.bundleFor(image, [digest], false);
    t.is((await store.bundleFor(image, [digest], true)).id, plain.id, 'the answer does not wait');
    for (let i = 0; i < 3000 && ready === undefined; i++) {
      await sleep(20);
      const { id } = await store.bundleFor(image, [digest], true);
      if (id !== plain.id) ready = id;
    }
    t.not(ready, undefined);
    t.is((await store.bundleFor(image, [digest], false)).id, plain.id);
  } finally {
    await store.close();
  }
  const again = await serve(t, { dataDir });
  const answer = await ask(deltaUrl(again.url, 'new:1', digest), { headers: PATCH });
  t.is(answer.headers.etag, `"${ready}"`);
  t.is(await metric(again.url, 'firstlight_patch_bundles_computed_total'), 0);
});

test('a server that was stopped before it had computed them does so after its start', async (t) => {
  const dataDir = await makeDirectory(t);
  // A command that has the store for a moment computes nothing ahead.
  const store = await ImageStore.open({ dataDir, log: quiet });
  await store.close();
  const first = await serve(t, { dataDir });
  await addRootfs(first.url, 'app:1', await version(1));
  await addRootfs(first.url, 'app:2', await version(2));
  await first.close();
  const again = await serve(t, { dataDir });
  const deadline = Date.now() + 60_000;
  let ready = 0;
  while (ready === 0 && Date.now() < deadline) {
    await sleep(20);
    ready = (await inspect(again.url, 'app:2')).patches.ready.length;
  }
  t.is(ready, 1);
});

test('a start with many images looks at one pair after the other', async (t) => {
  const dataDir = await makeDirectory(t);
  const first = await serve(t, { dataDir });
  for (let n = 1; n <= 4; n++) await addRootfs(first.url, `app:${n}`, await version(n));
  await first.close();
  const store = await ImageStore.open({ dataDir, log: quiet });
  try {
    const patched = store.bundles.patched.bind(store.bundles);
    let [calls, atOnce, most] = [0, 0, 0];
    store.bundles.patched = async (image, base, compute) => {
      if (!compute) return patched(image, base, compute);
      calls++;
      most = Math.max(most, ++atOnce);
      return patched(image, base, compute).finally(() => atOnce--);
    };
    store.patches.start();
    const last = await store.find('app:4', undefined);
    for (let i = 0; i < 3000 && (calls < 6 || atOnce > 0); i++) await sleep(20);
    t.is(calls, 6);
    t.is(most, 1);
    const { ready, pending } = await store.patches.statusOf(last.digest);
    t.deepEqual([ready.length, pending], [3, 0]);
  } finally {
    await store.close();
  }
});

test('where nothing is alike there are no patches, and they are looked for once', async (t) => {
  const { url } = await serve(t);
  const image = (seed: number) => makeTar({ app: noise(100_000, seed), same: noise(20_000, 99) });
  await addRootfs(url, 'app:1', await image(1));
  await addRootfs(url, 'app:2', await image(2));
  t.deepEqual((await patched(url, 'app:2')).patches.ready, []);
  const { digest } = await inspect(url, 'app:1');
  const plain = await ask(deltaUrl(url, 'app:2', digest));
  for (let i = 0; i < 3; i++) {
    const answer = await ask(deltaUrl(url, 'app:2', digest), { headers: PATCH });
    t.is(answer.headers.etag, plain.headers.etag);
  }
  t.is(await metric(url, 'firstlight_patch_bundles_computed_total'), 1);
  t.is(await metric(url, 'firstlight_bundles_computed_total'), 3);
});

test('an old content that is damaged at the server costs its own patches, and one line of the log', async (t) => {
  const lines: { content?: string }[] = [];
  const log = pino({ level: 'error' }, { write: (line: string) => lines.push(JSON.parse(line)) });
  const { url, dataDir } = await serve(t, { log });
  await addRootfs(url, 'app:1', await version(1));
  const old = noise(150_000, 1);
  old.write('version 1', 1000);
  const digest = createHash('sha256').update(old).digest('hex');
  const path = join(dataDir, 'content', digest.slice(0, 2), digest.slice(2));
  await chmod(path, 0o644);
  await writeFile(path, Buffer.alloc(old.length));
  await addRootfs(url, 'app:2', await version(2));
  t.is((await patched(url, 'app:2')).patches.ready.length, 1);
  const base = (await inspect(url, 'app:1')).digest;
  const answer = await ask(deltaUrl(url, 'app:2', base), { headers: PATCH });
  t.deepEqual(kindsOf(answer.body).toSorted(), [FRAME_KIND.zstd, FRAME_KIND.patch]);
  t.true(answer.body.length < 200_000, `${answer.body.length} bytes`);
  // Nothing is tried again, and the next version says no more of it than this one.
  await ask(deltaUrl(url, 'app:2', base), { headers: PATCH });
  await addRootfs(url, 'app:3', await version(3));
  t.is((await patched(url, 'app:3')).patches.ready.length, 2);
  t.is(await metric(url, 'firstlight_patch_bundles_computed_total'), 3);
  t.deepEqual(
    lines.map(({ content }) => content),
    [digest],
  );
});

test('beyond so many that wait, patches are not begun for who asks, and the answer is the plain bundle', async (t) => {
  const { url } = await serve(t, { limits: { patchesWaitingMost: 0 } });
  await addRootfs(url, 'app:1', await version(1));
  await addRootfs(url, 'app:2', await version(2));
  await addRootfs(url, 'other:1', await version(3));
  // What is computed ahead has its place.
  t.is((await patched(url, 'app:2')).patches.ready.length, 1);
  const { digest } = await inspect(url, 'other:1');
  for (const refused of [1, 2]) {
    const answer = await ask(deltaUrl(url, 'app:2', digest), { headers: PATCH });
    t.is(answer.status, 200);
    t.false(hasPatches(answer));
    t.is(await metric(url, 'firstlight_patch_bundles_refused_total'), refused);
  }
  t.is(await metric(url, 'firstlight_patch_bundles_pending'), 0);
});

test('a tag that moves: patches against the image that had it, and with its removal they go', async (t) => {
  const { url, dataDir } = await serve(t);
  await addRootfs(url, 'app', await version(1));
  const { digest } = await inspect(url, 'app');
  await addRootfs(url, 'app', await version(2));
  const now = (await patched(url, 'app')).digest;
  const answer = await ask(deltaUrl(url, 'app', digest), { headers: PATCH });
  t.true(hasPatches(answer));
  const id = String(answer.headers['content-location']).slice(-64);
  t.true((await readdir(join(dataDir, 'bundles'))).includes(id));
  t.is((await ask(`${url}/v1/images/${now}`, { method: 'DELETE' })).status, 204);
  t.false((await readdir(join(dataDir, 'bundles'))).includes(id));
});

test('a new order: patches in the older one answer until there are new ones', async (t) => {
  const { url } = await serve(t);
  await addRootfs(url, 'app:1', await version(1));
  await addRootfs(url, 'app:2', await version(2));
  await patched(url, 'app:2');
  const { digest } = await inspect(url, 'app:1');
  const before = await ask(deltaUrl(url, 'app:2', digest), { headers: PATCH });
  await reported(url, traceOf('app:2', ['lib']));
  const between = await ask(deltaUrl(url, 'app:2', digest), { headers: PATCH });
  t.true(hasPatches(between));
  const { patches } = await patched(url, 'app:2');
  t.is(patches.ready.length, 1);
  const after = await ask(deltaUrl(url, 'app:2', digest), { headers: PATCH });
  t.true(hasPatches(after));
  t.not(after.headers.etag, before.headers.etag);
  t.true([before.headers.etag, after.headers.etag].includes(between.headers.etag!));
});

test('a worker with further images gets patches against one of them until those against all are there', async (t) => {
  const { url } = await serve(t);
  await addRootfs(url, 'app:1', await version(1));
  await addRootfs(url, 'app:2', await version(2));
  await patched(url, 'app:2');
  const one = (await inspect(url, 'app:1')).digest;
  const alone = await ask(deltaUrl(url, 'app:2', one), { headers: PATCH });
  await addRootfs(url, 'other:1', await makeTar({ lib: version2Lib() }));
  const other = (await inspect(url, 'other:1')).digest;
  const first = await ask(deltaUrl(url, 'app:2', one, other), { headers: PATCH });
  t.is(first.headers.etag, alone.headers.etag);
  const deadline = Date.now() + 60_000;
  let now = first;
  while (now.headers.etag === first.headers.etag && Date.now() < deadline) {
    await sleep(20);
    now = await ask(deltaUrl(url, 'app:2', one, other), { headers: PATCH });
  }
  t.not(now.headers.etag, first.headers.etag);
  t.true(hasPatches(now));
});

test('what the other images of a worker give whole is not sent for the sake of patches against one', async (t) => {
  const { url } = await serve(t);
  const more = noise(900_000, 7);
  const file = (seed: number, edit: string) => {
    const bytes = noise(100_000, seed);
    bytes.write(edit);
    return bytes;
  };
  const same = noise(20_000, 3);
  await addRootfs(url, 'app:1', await makeTar({ app: file(1, 'old'), same }));
  await addRootfs(url, 'app:2', await makeTar({ app: file(1, 'new'), same, more }));
  await patched(url, 'app:2');
  await addRootfs(url, 'other:1', await makeTar({ more }));
  const [one, other] = [
    (await inspect(url, 'app:1')).digest,
    (await inspect(url, 'other:1')).digest,
  ];
  const alone = await ask(deltaUrl(url, 'app:2', one), { headers: PATCH });
  t.true(hasPatches(alone));
  const plain = await ask(deltaUrl(url, 'app:2', one, other));
  t.true(plain.body.length < alone.body.length / 2);
  const first = await ask(deltaUrl(url, 'app:2', one, other), { headers: PATCH });
  t.true(first.body.length <= plain.body.length, `${first.body.length} bytes`);
});

/** The file "lib" of version 2. */
function version2Lib(): Buffer {
  const bytes = noise(150_000, 2);
  bytes.write('version 2', 2000);
  return bytes;
}

test('what was computed ahead stays, however late a worker comes for it', async (t) => {
  const dataDir = await makeDirectory(t);
  const server = await serve(t, { dataDir });
  await addRootfs(server.url, 'app:1', await version(1));
  await addRootfs(server.url, 'app:2', await version(2));
  await patched(server.url, 'app:2');
  const { digest } = await inspect(server.url, 'app:1');
  const plain = await ask(deltaUrl(server.url, 'app:2', digest));
  await server.close();
  const store = await ImageStore.open({ dataDir, log: quiet });
  try {
    const bundles = await store.catalog.listBundles();
    for (const { id } of bundles) await store.catalog.touchBundle(id, Date.now() - 25 * HOUR);
    await store.clean();
    const left = (await store.catalog.listBundles()).map(({ id }) => `"${id}"`);
    t.is(left.length, bundles.length - 1);
    t.false(left.includes(plain.headers.etag!));
  } finally {
    await store.close();
  }
});
