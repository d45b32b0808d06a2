// Reports that are wrong or meant to harm: each is refused with what is wrong, nothing of it is
// stored, and the server goes on. And the token that a report wants where the server has one.
import { createHash } from 'node:crypto';
import { readdir, rm } from 'node:fs/promises';
import { join } from 'node:path';
import test, { type ExecutionContext } from 'ava';
import type { ErrorBody, ImageDetail, TraceReceipt } from '../delta/protocol.ts';
import { addRootfs, ask, makeTar, noise, serve } from './testkit.ts';
import { orderNow, report, reported, settled, traceOf } from './testkit-traces.ts';

const tar = () => makeTar({ a: 'a', b: 'b', z: 'z' });

async function untouched(t: ExecutionContext, url: string, dataDir: string): Promise<void> {
  t.is((await ask(`${url}/healthz`)).status, 200);
  t.deepEqual((await ask(`${url}/v1/traces`)).json(), []);
  t.is((await orderNow(url, 'app:1')).paths[0], 'a');
  for (let i = 0; i < 200 && (await readdir(join(dataDir, 'uploads'))).length > 0; i++) {
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
  t.deepEqual(await readdir(join(dataDir, 'uploads')), []);
}

const item = (more: string) => `{"image":"app:1","start":"2026-01-02T03:04:05Z","seq":[{${more}}]}`;

test('bodies that are no trace', async (t) => {
  const { url, dataDir } = await serve(t);
  await addRootfs(url, 'app:1', await tar());
  for (const [body, message] of [
    ['', /no body/],
    ['{', /not JSON/],
    ['null', /no JSON object/],
    ['[]', /no JSON object/],
    ['{"image":"app:1","start":"2026-01-02T03:04:05Z"}', /seq is missing/],
    ['{"image":"app:1","start":"2026-01-02T03:04:05Z","seq":[]}', /seq has no file/],
    ['{"image":"app:1","start":"soon","seq":[]}', /start/],
    [item('"f":"z","a":NaN'), /not JSON/],
    [item('"f":"z","a":-1'), /a is no whole number/],
    [item('"f":"z","a":1e300'), /a is no whole number/],
    [item('"f":"../../etc/shadow","a":1'), /'\.\.' as a name/],
    [item('"f":"/etc/shadow","a":1'), /absolute/],
    [item('"f":"a\\u0000b","a":1'), /NUL/],
    [item('"f":"z","a":1,"r":[[-5,1]]'), /offset or length/],
    [item('"f":"z","a":1,"r":[[9007199254740991,9007199254740991]]'), /offset or length/],
    ['['.repeat(1_000_000), /nests deeper/],
    [`{"a":[${'[],'.repeat(3_000_000)}[]]}`, /lists/],
    [Buffer.from([0x7b, 0xff, 0x7d]), /UTF-8/],
  ] as [string | Buffer, RegExp][]) {
    const answer = await report(url, body);
    const { error } = answer.json() as ErrorBody;
    t.true(answer.status === 400 || answer.status === 422, `${answer.status} ${answer.body}`);
    t.regex(error.message, message);
    t.true(error.message.length < 500 && !error.message.includes(dataDir), error.message);
  }
  t.is((await ask(`${url}/v1/traces?x=1`, { method: 'POST', body: '{}' })).status, 400);
  t.is((await ask(`${url}/v1/traces/..%2f..%2fcatalog.db`)).status, 400);
  await untouched(t, url, dataDir);
});

test('a body that is too large, claimed or sent', async (t) => {
  const { url, dataDir } = await serve(t, { limits: { traceMaxBytes: 100_000 } });
  await addRootfs(url, 'app:1', await tar());
  const large = Buffer.alloc(200_000, ' ');
  for (const headers of [{}, { 'transfer-encoding': 'chunked' }] as Record<string, string>[]) {
    const answer = await report(url, large, headers);
    t.is(answer.status, 400);
    t.regex((answer.json() as ErrorBody).error.message, /larger than 100000 bytes/);
  }
  await untouched(t, url, dataDir);
});

test('prototype keys, unknown keys and files that the image lacks do nothing', async (t) => {
  const { url } = await serve(t);
  await addRootfs(url, 'app:1', await tar());
  const body = `{"__proto__":{"image":"x"},"constructor":{"prototype":{"polluted":1}},"toString":1,
    "image":"app:1","start":"2026-01-02T03:04:05Z","seq":[
    {"f":"__proto__","a":1},{"f":"constructor","a":2},{"f":"no/such","a":3},{"f":"z","a":4,"__proto__":{"a":9}}]}`;
  const receipt = await reported(url, body);
  t.is(receipt.trace.files, 4);
  t.deepEqual((await orderNow(url, 'app:1')).paths, ['z', 'a', 'b']);
  const text = (await ask(`${url}/v1/traces/${receipt.trace.id}`)).body.toString();
  t.false(text.includes('polluted'), 'what is kept is what was understood');
});

test('a trace with very many files and ranges leaves the server responsive', async (t) => {
  const { url } = await serve(t);
  await addRootfs(url, 'app:1', await tar());
  const seq = Array.from({ length: 100_000 }, (_, i) => `{"f":"d${i % 100}/f${i}","a":${i},"w":0}`);
  seq.push('{"f":"z","a":1}');
  const body = `{"image":"app:1","start":"2026-01-02T03:04:05Z","seq":[${seq.join()}]}`;
  let slowestMs = 0;
  let going = true;
  const asking = (async () => {
    while (going) {
      const started = performance.now();
      t.is((await ask(`${url}/healthz`)).status, 200);
      slowestMs = Math.max(slowestMs, performance.now() - started);
    }
  })();
  const started = performance.now();
  const answer = await report(url, body);
  const tookMs = performance.now() - started;
  going = false;
  await asking;
  t.is(answer.status, 201);
  // Were it read on the thread that answers, one answer would wait for nearly all of it.
  t.true(slowestMs < tookMs / 2, `an answer took ${slowestMs} ms, the report ${tookMs} ms`);
  const { images } = answer.json() as TraceReceipt;
  await settled(url, images[0]!);
  t.is((await orderNow(url, 'app:1')).paths[0], 'z');
});

test('only so many traces of an image are kept', async (t) => {
  const { url } = await serve(t, { limits: { tracesPerImage: 3 } });
  await addRootfs(url, 'app:1', await tar());
  const ids: string[] = [];
  for (let i = 0; i < 5; i++) {
    const start = `2026-01-02T03:04:0${i}Z`;
    const answer = await report(url, traceOf('app:1', ['z'], { start, end: undefined }));
    ids.push((answer.json() as TraceReceipt).trace.id);
  }
  const list = (await ask(`${url}/v1/traces`)).json() as { id: string }[];
  t.deepEqual(
    list.map((trace) => trace.id),
    ids.slice(2).reverse(),
  );
});

test('an image that the store has lost a content of keeps its old order, and the server goes on', async (t) => {
  const { url, dataDir } = await serve(t);
  const lost = noise(80_000, 5);
  await addRootfs(url, 'app:1', await makeTar({ a: 'a', lost, z: 'z' }));
  await addRootfs(url, 'app:2', await makeTar({ a: 'a', z: 'z' }));
  const before = await orderNow(url, 'app:1');
  const hex = createHash('sha256').update(lost).digest('hex');
  await rm(join(dataDir, 'content', hex.slice(0, 2), hex.slice(2)));
  await reported(url, traceOf('app:1', ['z']));
  t.is((await orderNow(url, 'app:1')).id, before.id);
  t.is((await orderNow(url, 'app:2')).paths[0], 'z', 'the next image is looked at all the same');
  const metrics = (await ask(`${url}/metrics`)).body.toString();
  t.regex(metrics, /firstlight_orders_total\{result="failed"\} 1/);
  t.regex(metrics, /firstlight_orders_total\{result="changed"\} 1/);
});

test('with a token, whatever changes something wants it, and reading does not', async (t) => {
  const token = 'correct-horse.battery~staple';
  const { url } = await serve(t, { token });
  const bearer = (text: string) => ({ authorization: `Bearer ${text}` });
  const rootfs = `${url}/v1/images?kind=rootfs&name=app:1&platform=linux/amd64`;
  const add = async (headers: Record<string, string>) =>
    ask(rootfs, { method: 'POST', body: await tar(), headers });
  t.is((await add({})).status, 401);
  t.is((await add(bearer(token))).status, 200);
  const trace = traceOf('app:1', ['z']);
  for (const headers of [
    {},
    bearer('wrong-horse'),
    bearer(`${token}x`),
    bearer(token.slice(1)),
    { authorization: `Basic ${Buffer.from(`x:${token}`).toString('base64')}` },
  ] as Record<string, string>[]) {
    const answer = await report(url, trace, headers);
    t.is(answer.status, 401);
    t.is((answer.json() as ErrorBody).error.kind, 'unauthorized');
    t.is(answer.headers['www-authenticate'], 'Bearer realm="firstlight"');
  }
  const large = await report(url, Buffer.alloc(3_000_000, ' '));
  t.is(large.status, 401, 'one that is still sending gets its answer');
  const right = await report(url, trace, bearer(token));
  t.is(right.status, 201);
  const { id } = (right.json() as TraceReceipt).trace;
  t.is((await ask(`${url}/v1/traces/${id}`)).status, 200);
  t.is((await ask(`${url}/v1/traces/${id}`, { method: 'DELETE' })).status, 401);
  t.is((await ask(`${url}/v1/images/app:1`, { method: 'DELETE' })).status, 401);
  t.is(((await ask(`${url}/v1/images/app:1`)).json() as ImageDetail).name, 'app:1');
  t.is((await orderNow(url, 'app:1')).paths.length, 3);
  for (const bad of ['', 'short', 'with space in it', 'two\nlines here']) {
    await t.throwsAsync(serve(t, { token: bad }), { message: /no bearer token/ });
  }
});
