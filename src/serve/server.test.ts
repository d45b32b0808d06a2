// The server as clients see it: intake, deltas, ranges, conditional requests, removal.
import { createHash } from 'node:crypto';
import { readdir } from 'node:fs/promises';
import { join } from 'node:path';
import test from 'ava';
import { PREAMBLE_BYTES } from '../delta/bundle.ts';
import { decodeFrame, decodeHeader, parsePreamble } from '../delta/bundle-decode.ts';
import type { ImageDetail, ImageSummary } from '../delta/protocol.ts';
import { addRootfs, ask, makeTar, noise, serve } from './testkit.ts';

const v1 = () =>
  makeTar({ 'etc/os': 'one', 'bin/sh': noise(200_000, 1), 'lib/big': noise(2_500_000, 2) });
const v2 = () =>
  makeTar({ 'etc/os': 'two', 'bin/sh': noise(200_000, 1), 'lib/big': noise(2_500_000, 2) });

const sha256 = (data: Buffer) => createHash('sha256').update(data).digest('hex');

function decode(bundle: Buffer) {
  const preamble = bundle.subarray(0, PREAMBLE_BYTES);
  const { headerBytes } = parsePreamble(preamble);
  const header = decodeHeader(
    preamble,
    bundle.subarray(PREAMBLE_BYTES, PREAMBLE_BYTES + headerBytes),
  );
  const parts = header.frames.flatMap((frame) =>
    decodeFrame(header, frame, bundle.subarray(frame.offset, frame.offset + frame.bytes)),
  );
  return { header, parts };
}

/** sha256 of the files of a decoded bundle by path; contents that a base has are missing. */
function filesOf(bundle: Buffer): Record<string, string> {
  const { header, parts } = decode(bundle);
  const contents = new Map<number, Buffer[]>();
  for (const part of parts) {
    const list = contents.get(part.content) ?? [];
    list[part.index] = part.data;
    contents.set(part.content, list);
  }
  const files: Record<string, string> = {};
  for (let row = 0; row < header.toc.rows; row++) {
    const list = contents.get(header.toc.content(row));
    if (list !== undefined) files[header.toc.path(row)] = sha256(Buffer.concat(list));
  }
  return files;
}

test('an image comes in, with progress, and is listed and inspected', async (t) => {
  const { url, dataDir } = await serve(t);
  const events = await addRootfs(url, 'docker.io/library/demo', await v1());
  t.deepEqual(events[0]?.event === 'progress' || events[0]?.event === 'layer', true);
  t.true(events.some((e) => e.event === 'layer' && e.layers === 1));
  t.is(events.at(-2)?.event, 'encode');
  const done = events.at(-1);
  if (done?.event !== 'done') return t.fail(JSON.stringify(done));
  t.is(done.image.name, 'demo:latest');
  t.is(done.image.platform, 'linux/amd64');
  t.is(done.image.entries, 7);
  t.is(done.image.bytes, 2_700_003);
  const list = (await ask(`${url}/v1/images`)).json() as ImageSummary[];
  t.deepEqual(list, [done.image]);
  for (const ref of ['demo', 'demo:latest', 'library/demo', 'docker.io/demo', done.image.digest]) {
    const detail = (await ask(`${url}/v1/images/${ref}`)).json() as ImageDetail;
    t.is(detail.digest, done.image.digest, ref);
    t.is((detail.manifest as { schemaVersion: number }).schemaVersion, 2);
    t.is((detail.config as { architecture: string }).architecture, 'amd64');
    t.true(detail.bundleBytes! > 2_600_000 && detail.headerBytes! < 2_000);
  }
  t.deepEqual(await readdir(join(dataDir, 'uploads')), []);
});

test('a fresh worker gets everything, one with the old version only what differs', async (t) => {
  const { url } = await serve(t);
  const [one] = (await addRootfs(url, 'demo:1', await v1())).slice(-1);
  await addRootfs(url, 'demo:2', await v2());
  const fresh = await ask(`${url}/v1/delta?image=demo:2&platform=linux/amd64`);
  t.is(fresh.status, 200);
  t.is(fresh.headers['content-type'], 'application/vnd.firstlight.bundle.v1');
  t.is(Number(fresh.headers['content-length']), fresh.body.length);
  t.deepEqual(filesOf(fresh.body), {
    'etc/os': sha256(Buffer.from('two')),
    'bin/sh': sha256(noise(200_000, 1)),
    'lib/big': sha256(noise(2_500_000, 2)),
  });
  const base = one?.event === 'done' ? one.image.digest : '';
  const strange = `sha256:${'0'.repeat(64)}`;
  const update = await ask(
    `${url}/v1/delta?image=demo:2&platform=linux/amd64&base=${strange}&base=${base}&base=${base}`,
  );
  t.is(update.status, 200);
  t.true(update.body.length < 2_000, `${update.body.length}`);
  t.deepEqual(filesOf(update.body), { 'etc/os': sha256(Buffer.from('two')) });
  const { header } = decode(update.body);
  t.like(header.bases, [{ digest: base }]);
  t.like(update.headers, {
    'docker-content-digest': header.imageDigest,
    etag: `"${header.preamble.digest}"`,
    'content-location': `/v1/bundles/${header.preamble.digest}`,
  });
  const unknown = await ask(`${url}/v1/delta?image=demo:2&platform=linux/amd64&base=${strange}`);
  t.is(unknown.headers.etag, fresh.headers.etag, 'what the server does not know changes nothing');
});

test('ranges, conditions and HEAD, at both addresses', async (t) => {
  const { url } = await serve(t);
  await addRootfs(url, 'demo', await v1());
  const delta = '/v1/delta?image=demo&platform=linux/amd64';
  const whole = await ask(url + delta);
  const etag = String(whole.headers.etag);
  const location = String(whole.headers['content-location']);
  const size = whole.body.length;
  for (const path of [delta, location]) {
    const get = (headers: Record<string, string>, method = 'GET') =>
      ask(url + path, { headers, method });
    const all = await get({});
    t.true(all.body.equals(whole.body));
    t.is(all.headers.etag, etag);
    t.is(all.headers['accept-ranges'], 'bytes');
    t.is(
      all.headers['cache-control'],
      path === delta ? 'no-cache' : 'public, max-age=86400, immutable',
    );
    const middle = await get({ range: 'bytes=100-299', 'if-range': etag });
    t.is(middle.status, 206);
    t.is(middle.headers['content-range'], `bytes 100-299/${size}`);
    t.is(middle.headers['content-length'], '200');
    t.is(middle.headers.etag, etag);
    t.true(middle.body.equals(whole.body.subarray(100, 300)));
    const rest = await get({ range: `bytes=${size - 300_000}-` });
    t.is(rest.status, 206);
    t.true(rest.body.equals(whole.body.subarray(size - 300_000)));
    const suffix = await get({ range: 'bytes=-5' });
    t.true(suffix.body.equals(whole.body.subarray(size - 5)));
    const stale = await get({ range: 'bytes=100-299', 'if-range': '"other"' });
    t.is(stale.status, 200);
    t.true(stale.body.equals(whole.body));
    t.is((await get({ range: 'bytes=100-299', 'if-range': `W/${etag}` })).status, 200);
    const beyond = await get({ range: `bytes=${size}-` });
    t.is(beyond.status, 416);
    t.is(beyond.headers['content-range'], `bytes */${size}`);
    t.is(beyond.body.length, 0);
    t.is((await get({ range: 'bytes=0-1,5-6' })).status, 200);
    const unchanged = await get({ 'if-none-match': `"x", ${etag}` });
    t.is(unchanged.status, 304);
    t.is(unchanged.body.length, 0);
    t.is(unchanged.headers.etag, etag);
    t.is((await get({ 'if-none-match': '"x"' })).status, 200);
    const head = await get({ range: 'bytes=1-2' }, 'HEAD');
    t.is(head.status, 200);
    t.is(head.headers['content-length'], String(size));
    t.is(head.headers['docker-content-digest'], whole.headers['docker-content-digest']);
    t.is(head.headers.etag, etag);
  }
  for (const id of ['0'.repeat(64), 'x', '..%2f..%2fcatalog.db', `${location.slice(-64)}0`]) {
    const answer = await ask(`${url}/v1/bundles/${id}`);
    t.is(answer.status, 404, id);
    t.is((answer.json() as { error: { kind: string } }).error.kind, 'not-found');
  }
});

test('the same image gives the same bundle after a restart and on another server', async (t) => {
  const delta = '/v1/delta?image=demo:2&platform=linux/amd64';
  const first = await serve(t);
  const [one] = (await addRootfs(first.url, 'demo:1', await v1())).slice(-1);
  await addRootfs(first.url, 'demo:2', await v2());
  const base = one?.event === 'done' ? `&base=${one.image.digest}` : '';
  const ids = [await ask(first.url + delta), await ask(first.url + delta + base)].map(
    (a) => a.headers.etag,
  );
  t.not(ids[0], ids[1]);
  await first.close();
  const again = await serve(t, { dataDir: first.dataDir });
  const second = await serve(t);
  // In another order, and under other names.
  await addRootfs(second.url, 'demo:2', await v2());
  await addRootfs(second.url, 'other', await v1());
  for (const { url } of [again, second]) {
    t.deepEqual(
      [await ask(url + delta), await ask(url + delta + base)].map((a) => a.headers.etag),
      ids,
    );
  }
  await again.close();
  await second.close();
});

test('two names of one image share everything, and it goes with the last', async (t) => {
  const { url, dataDir } = await serve(t);
  await addRootfs(url, 'a:1', await v1());
  const second = await addRootfs(url, 'host.example:5000/b/c:1', await v1());
  t.deepEqual(
    second.map((e) => e.event),
    ['done'],
    'nothing is read or computed twice',
  );
  await addRootfs(url, 'other', await v2());
  const { headers } = await ask(`${url}/v1/delta?image=a:1`);
  t.is((await ask(`${url}/v1/images/a:1`, { method: 'DELETE' })).status, 204);
  t.is((await ask(`${url}/v1/images/a:1`)).status, 404);
  t.is((await ask(`${url}/v1/images/a:1`, { method: 'DELETE' })).status, 404);
  t.is((await ask(`${url}/v1/delta?image=host.example:5000/b/c:1`)).status, 200);
  t.is((await ask(`${url}/v1/images/host.example:5000/b/c:1`, { method: 'DELETE' })).status, 204);
  t.is((await ask(url + headers['content-location'])).status, 404);
  const contents = async () => {
    let n = 0;
    for (const shard of await readdir(join(dataDir, 'content'))) {
      n += (await readdir(join(dataDir, 'content', shard))).length;
    }
    return n;
  };
  while ((await contents()) !== 3) await new Promise((resolve) => setTimeout(resolve, 10));
  t.is((await readdir(join(dataDir, 'images'))).length, 1);
  t.is((await readdir(join(dataDir, 'bundles'))).length, 1);
  t.is((await ask(`${url}/v1/delta?image=other`)).status, 200);
});

test('a name that moves leaves the old image as a base, under its digest', async (t) => {
  const { url } = await serve(t);
  const [one] = (await addRootfs(url, 'demo', await v1())).slice(-1);
  await addRootfs(url, 'demo', await v2());
  const digest = one?.event === 'done' ? one.image.digest : '';
  const list = (await ask(`${url}/v1/images`)).json() as ImageSummary[];
  t.deepEqual(
    list.map((i) => i.name),
    ['demo:latest', digest],
  );
  const update = await ask(`${url}/v1/delta?image=demo&base=${digest}`);
  t.true(update.body.length < 2_000);
  t.is((await ask(`${url}/v1/delta?image=${digest}`)).status, 200);
  t.is((await ask(`${url}/v1/images/${digest}`, { method: 'DELETE' })).status, 204);
  t.is((await ask(`${url}/v1/delta?image=${digest}`)).status, 404);
});

test('platforms', async (t) => {
  const { url } = await serve(t);
  await addRootfs(url, 'demo', await v1());
  await addRootfs(url, 'demo', await v2(), '&platform=linux/arm64');
  const delta = (platform: string) => ask(`${url}/v1/delta?image=demo&platform=${platform}`);
  t.is((await delta('linux/amd64')).status, 200);
  t.is((await delta('linux/arm64/v8')).status, 200);
  const wrong = await delta('linux/s390x');
  t.is(wrong.status, 404);
  const { error } = wrong.json() as { error: { kind: string; message: string } };
  t.is(error.kind, 'platform');
  t.regex(error.message, /linux\/amd64, linux\/arm64/);
  const which = await ask(`${url}/v1/delta?image=demo`);
  t.is(which.status, 400);
  t.regex(which.body.toString(), /several platforms/);
  t.is((await ask(`${url}/v1/images/demo?platform=linux/arm64`, { method: 'DELETE' })).status, 204);
  t.is((await delta('linux/arm64')).status, 404);
  t.is((await delta('linux/amd64')).status, 200);
});
