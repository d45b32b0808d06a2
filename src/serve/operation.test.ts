// A server under way: many clients at once, removal during a transfer, clean-up, health,
// metrics, and its end.
import { once } from 'node:events';
import { readdir, rm } from 'node:fs/promises';
import { type IncomingMessage, request } from 'node:http';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import test from 'ava';
import type { ImageSummary } from '../delta/protocol.ts';
import { ImageStore } from './image-store.ts';
import { startServer } from './server.ts';
import { addRootfs, ask, makeDirectory, makeTar, noise, quiet, serve } from './testkit.ts';

const MB = 1_000_000;
const image = (bytes: number, seed = 1) => makeTar({ big: noise(bytes, seed), small: `${seed}` });

/** The beginning of an answer, whose body is still to be read. */
function begin(url: string): Promise<IncomingMessage> {
  return new Promise((resolve, reject) => {
    request(url, { agent: false }, resolve).on('error', reject).end();
  });
}

async function drain(answer: IncomingMessage): Promise<Buffer> {
  const chunks: Buffer[] = [];
  for await (const chunk of answer) chunks.push(chunk as Buffer);
  return Buffer.concat(chunks);
}

async function metric(url: string, name: string): Promise<number> {
  const text = (await ask(`${url}/metrics`)).body.toString();
  const lines = text
    .split('\n')
    .filter((l) => l.startsWith(`${name} `) || l.startsWith(`${name}{`));
  return lines.reduce((sum, line) => sum + Number(line.split(' ').at(-1)), 0);
}

test('twenty clients that want the same new bundle cause one computation', async (t) => {
  const { url } = await serve(t);
  const [one] = (await addRootfs(url, 'a:1', await image(MB, 1))).slice(-1);
  await addRootfs(url, 'a:2', await makeTar({ big: noise(MB, 1), other: noise(MB, 2) }));
  t.is(await metric(url, 'firstlight_bundles_computed_total'), 2);
  const base = one?.event === 'done' ? one.image.digest : '';
  const answers = await Promise.all(
    Array.from({ length: 20 }, () => ask(`${url}/v1/delta?image=a:2&base=${base}`)),
  );
  t.is(new Set(answers.map((a) => a.headers.etag)).size, 1);
  t.true(answers.every((a) => a.status === 200 && a.body.equals(answers[0]!.body)));
  t.is(await metric(url, 'firstlight_bundles_computed_total'), 3);
});

test('an image removed during a transfer: the transfer ends well, then all is gone', async (t) => {
  const { url, dataDir } = await serve(t, { rateBitsPerSecond: 40e6 });
  await addRootfs(url, 'a', await image(2 * MB));
  const answer = await begin(`${url}/v1/delta?image=a`);
  const location = url + answer.headers['content-location'];
  t.is((await ask(`${url}/v1/images/a`, { method: 'DELETE' })).status, 204);
  t.is((await ask(`${url}/v1/delta?image=a`)).status, 404);
  // A worker that fetches out of order goes on for as long as its stream does.
  t.is((await ask(location, { headers: { range: 'bytes=0-9' } })).status, 206);
  t.is((await drain(answer)).length, Number(answer.headers['content-length']));
  const left = async () =>
    (await readdir(join(dataDir, 'bundles'))).length +
    (await readdir(join(dataDir, 'images'))).length;
  while ((await left()) > 0) await sleep(10);
  t.is((await ask(location)).status, 404);
});

test('unused bundles go: the old ones, then the least recently used; fresh ones last', async (t) => {
  const dataDir = await makeDirectory(t);
  const first = await serve(t, { dataDir });
  for (const n of [1, 2, 3]) {
    await addRootfs(
      first.url,
      `a:${n}`,
      await makeTar({ big: noise(MB, 1), own: noise(MB / 2, n) }),
    );
  }
  const list = (await ask(`${first.url}/v1/images`)).json() as ImageSummary[];
  const bases = list.map((i) => `&base=${i.digest}`);
  const ids = [];
  for (const [n, b] of [
    [2, bases[0]],
    [3, bases[0]],
  ] as const) {
    const { headers } = await ask(`${first.url}/v1/delta?image=a:${n}${b}`);
    ids.push(String(headers['content-location']).slice(-64));
  }
  await first.close();
  const HOUR = 3600 * 1000;
  const limits = { bundlesMaxBytes: 20 * MB };
  const store = await ImageStore.open({ dataDir, log: quiet, limits });
  t.deepEqual(await store.bundles.shelf.clean(Date.now() + 23 * HOUR), [], 'a day is a promise');
  const reader = (await store.bundles.shelf.open(ids[1]!))!;
  t.deepEqual(
    await store.bundles.shelf.clean(Date.now() + 25 * HOUR),
    [ids[0]],
    'not the one that is being read, not the fresh ones',
  );
  await reader.close();
  await store.close();
  const tight = await ImageStore.open({ dataDir, log: quiet, limits: { bundlesMaxBytes: 4 * MB } });
  const going = await tight.bundles.shelf.clean();
  t.is(going[0], ids[1]);
  t.is(going.length, 2, 'and one fresh one');
  t.is((await readdir(join(dataDir, 'bundles'))).length, 2);
  await tight.close();
  const again = await serve(t, { dataDir });
  for (const n of [1, 2, 3]) {
    t.is((await ask(`${again.url}/v1/delta?image=a:${n}`)).status, 200, 'it is computed again');
  }
});

test('a bundle file that has gone is computed again', async (t) => {
  const { url, dataDir } = await serve(t);
  await addRootfs(url, 'a', await image(MB));
  const before = await ask(`${url}/v1/delta?image=a`);
  for (const id of await readdir(join(dataDir, 'bundles'))) await rm(join(dataDir, 'bundles', id));
  const after = await ask(`${url}/v1/delta?image=a`);
  t.is(after.status, 200);
  t.is(after.headers.etag, before.headers.etag);
});

test('health and metrics', async (t) => {
  const { url, dataDir } = await serve(t);
  t.deepEqual((await ask(`${url}/healthz`)).json(), { status: 'ok' });
  await addRootfs(url, 'a', await image(MB));
  const { body } = await ask(`${url}/v1/delta?image=a`);
  await ask(`${url}/v1/delta?image=none`);
  t.is(await metric(url, 'firstlight_bundle_sent_bytes_total'), body.length);
  t.is(await metric(url, 'firstlight_intakes_total{kind="rootfs",result="ok"}'), 1);
  t.is(await metric(url, 'firstlight_errors_total{kind="not-found"}'), 1);
  const answered = 'firstlight_http_requests_total{method="GET",route="/v1/delta",status="404"}';
  t.is(await metric(url, answered), 1);
  t.is(await metric(url, 'firstlight_bundle_transfers'), 0);
  await rm(join(dataDir, 'uploads'), { recursive: true });
  const sick = await ask(`${url}/healthz`);
  t.is(sick.status, 503);
  t.false(sick.body.toString().includes(dataDir));
});

test('close lets transfers end, refuses new ones, and frees the directory', async (t) => {
  const dataDir = await makeDirectory(t);
  const server = await serve(t, { dataDir, rateBitsPerSecond: 40e6 });
  await addRootfs(server.url, 'a', await image(2 * MB));
  const answer = await begin(`${server.url}/v1/delta?image=a`);
  const all = drain(answer);
  const closed = server.close();
  await t.throwsAsync(ask(`${server.url}/healthz`), { code: 'ECONNREFUSED' });
  t.is((await all).length, Number(answer.headers['content-length']));
  await closed;
  const again = await serve(t, { dataDir });
  t.is((await ask(`${again.url}/v1/delta?image=a`)).status, 200);
});

test('close cuts what takes longer than its bound', async (t) => {
  const server = await serve(t, { rateBitsPerSecond: 1e6, limits: { shutdownMs: 200 } });
  await addRootfs(server.url, 'a', await image(2 * MB));
  const answer = await begin(`${server.url}/v1/delta?image=a`);
  const cut = t.throwsAsync(drain(answer), { code: 'ECONNRESET' });
  const started = performance.now();
  await server.close();
  t.true(performance.now() - started < 3000);
  await cut;
});

test('a client that stops reading is cut off, and costs nothing more', async (t) => {
  const { url } = await serve(t, { limits: { stallMs: 500 } });
  await addRootfs(url, 'a', await image(30 * MB));
  const answer = await begin(`${url}/v1/delta?image=a`);
  answer.pause();
  while ((await metric(url, 'firstlight_bundle_transfers')) > 0) await sleep(50);
  answer.resume();
  const [error] = (await once(answer, 'error')) as [NodeJS.ErrnoException];
  t.is(error.code, 'ECONNRESET');
});

test('a second server on the directory, or on the address, is told', async (t) => {
  const { url, dataDir } = await serve(t);
  const busy = { name: 'FirstlightError' };
  const second = await t.throwsAsync(
    startServer({ dataDir, listen: '127.0.0.1:0', log: quiet }),
    busy,
  );
  t.regex(second!.message, new RegExp(`in use by process ${process.pid}`));
  const other = await makeDirectory(t);
  const listen = new URL(url).host;
  const error = await t.throwsAsync(startServer({ dataDir: other, listen, log: quiet }), busy);
  t.is(error!.message, `${listen} is in use`);
  const third = await startServer({ dataDir: other, listen: '127.0.0.1:0', log: quiet });
  await third.close();
  for (const bad of ['', 'nonsense', '1.2.3.4', 'a:b', 'h:99999', 'http://x:1']) {
    await t.throwsAsync(startServer({ dataDir: other, listen: bad, log: quiet }), {
      message: /no address to listen on/,
    });
  }
});
