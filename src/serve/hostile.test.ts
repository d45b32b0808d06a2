// What a server says to requests that are wrong, and that it is none the worse for them.
import { readdir, writeFile } from 'node:fs/promises';
import { connect } from 'node:net';
import { join } from 'node:path';
import { gzipSync } from 'node:zlib';
import test, { type ExecutionContext } from 'ava';
import type { ErrorBody, ImageSummary } from '../delta/protocol.ts';
import { addRootfs, ask, makeTar, noise, serve } from './testkit.ts';

const tar = () => makeTar({ a: 'a', b: noise(100_000, 1) });

/** Nothing of a failed intake is left, and the server goes on. */
async function unharmed(t: ExecutionContext, url: string, dataDir: string): Promise<void> {
  t.is((await ask(`${url}/healthz`)).status, 200);
  t.deepEqual((await ask(`${url}/v1/images`)).json(), []);
  // Scratch directories go when their request is over, a moment after its answer.
  const left = async () => [
    ...(await readdir(join(dataDir, 'uploads'))),
    ...(await readdir(join(dataDir, 'images'))),
    ...(await readdir(join(dataDir, 'bundles'))),
  ];
  for (let i = 0; i < 200 && (await left()).length > 0; i++) {
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
  t.deepEqual(await left(), []);
}

/** Sends bytes as they are, and gives what comes back until the server closes. */
function raw(url: string, bytes: string): Promise<string> {
  const { hostname, port } = new URL(url);
  return new Promise((resolve, reject) => {
    const socket = connect(Number(port), hostname, () => socket.write(bytes));
    let got = '';
    socket.on('data', (chunk) => {
      got += chunk.toString('latin1');
    });
    socket.on('error', reject);
    socket.on('close', () => resolve(got));
  });
}

test('bad queries are refused by name', async (t) => {
  const { url } = await serve(t);
  const good = `sha256:${'0'.repeat(64)}`;
  for (const [path, status, message] of [
    ['/v1/delta', 400, /"image" is missing/],
    ['/v1/delta?image=', 400, /"image" is empty/],
    ['/v1/delta?image=a&image=b', 400, /"image" is given more than once/],
    ['/v1/delta?image=a&platfrom=x', 400, /"platfrom" is not known/],
    ['/v1/delta?image=a&__proto__=x', 400, /not known/],
    ['/v1/delta?image=a&base=x', 400, /"base" is no digest/],
    ['/v1/delta?image=a&base=', 400, /"base" is no digest/],
    [`/v1/delta?image=a&base=${good.toUpperCase()}`, 400, /"base" is no digest/],
    [`/v1/delta?image=a${`&base=${good}`.repeat(65)}`, 400, /more than 64/],
    [`/v1/delta?image=a${`&base=${good}`.repeat(64)}`, 404, /no image a:latest/],
    ['/v1/delta?image=UPPER', 400, /UPPER/],
    ['/v1/delta?image=../../etc/passwd', 400, /is not/],
    ['/v1/delta?image=a%00b', 400, /is not/],
    [`/v1/delta?image=${'a'.repeat(600)}`, 400, /too long/],
    ['/v1/delta?image=a&platform=a/b/c/d', 400, /not a platform/],
    [`/v1/delta?image=${good}`, 404, /no image sha256/],
    ['/v1/images?x=1', 400, /"x" is not known/],
    ['/v1/images/', 400, /is not/],
    ['/v1/images/%2e%2e%2fcatalog.db', 400, /is not/],
    ['/v1/images/a%', 400, /./],
    ['/v1/images/no/such:image', 404, /no image no\/such:image/],
    ['/v2/', 404, /no GET/],
    ['/', 404, /no GET/],
  ] as const) {
    const answer = await ask(url + path);
    t.is(answer.status, status, path);
    const { error } = answer.json() as ErrorBody;
    t.regex(error.message, message, path);
    t.is(answer.headers['content-type'], 'application/json; charset=utf-8', path);
  }
  t.is((await ask(`${url}/v1/delta?image=a`, { method: 'PUT' })).status, 404);
  t.is((await ask(`${url}/healthz`)).status, 200);
});

test('bad intakes are refused, and leave nothing', async (t) => {
  const { url, dataDir } = await serve(t, { limits: { uploadMaxBytes: 1_000_000 } });
  const body = await tar();
  const cut = body.subarray(0, 50_000);
  for (const [query, sent, status, kind] of [
    ['', body, 400, 'usage'],
    ['?kind=zip', body, 400, 'usage'],
    ['?kind=rootfs', body, 400, 'usage'],
    ['?kind=rootfs&name=BAD', body, 400, 'usage'],
    ['?kind=rootfs&name=a&platform=%2f', body, 400, 'usage'],
    ['?kind=docker', '', 400, 'usage'],
    ['?kind=docker&source=%00', '', 400, 'usage'],
    ['?kind=docker&source=127.0.0.1:1/a', '', 502, 'unreachable'],
    ['?kind=rootfs&name=a', '', 400, 'usage'],
    ['?kind=rootfs&name=a', noise(2000, 3), 422, 'corrupt'],
    ['?kind=rootfs&name=a', cut, 422, 'corrupt'],
    ['?kind=rootfs&name=a', gzipSync(body).subarray(0, 500), 422, 'corrupt'],
    ['?kind=rootfs&name=a', noise(1_000_001, 3), 400, 'usage'],
    ['?kind=docker-archive', body, 422, 'corrupt'],
    ['?kind=oci&source=a', body, 404, 'not-found'],
  ] as const) {
    const answer = await ask(`${url}/v1/images${query}`, { method: 'POST', body: sent as Buffer });
    const lines = answer.body.toString().trimEnd().split('\n');
    const { error } = JSON.parse(lines.at(-1)!) as ErrorBody;
    // What shows only after progress began is an event of a 200; what shows before has its own status.
    if (answer.status !== 200) t.is(answer.status, status, `${query} ${answer.body}`);
    t.is(error.kind, kind, `${query} ${answer.body}`);
    t.false(answer.body.toString().includes(dataDir), "a client does not see the server's paths");
  }
  await unharmed(t, url, dataDir);
});

/**
 * Sends a head and `mib` MiB of a body that never ends, all of it before it reads a byte, as simple clients do. What
 * has come back then, or comes within a minute: the head of the answer, or the error that took it away.
 */
function sendWithoutReading(url: string, head: string, mib: number): Promise<string> {
  const { hostname, port } = new URL(url);
  const chunk = noise(1 << 20, 1);
  return new Promise((resolve) => {
    let got = '';
    const socket = connect(Number(port), hostname).pause();
    const finish = (why: string) => {
      clearTimeout(timer);
      socket.destroy();
      resolve(got === '' ? why : got);
    };
    const timer = setTimeout(() => finish('no answer'), 60_000);
    socket.on('error', (error) => finish(`the connection failed: ${error.message}`));
    socket.on('close', () => finish('the connection was closed'));
    socket.on('data', (bytes) => {
      got += bytes.toString('latin1');
      if (got.includes('\r\n\r\n')) finish('');
    });
    socket.write(head);
    for (let i = 1; i <= mib; i++) {
      socket.write(`${chunk.length.toString(16)}\r\n`);
      socket.write(chunk);
      // Handlers of an end of the connection settle what this one would wait for.
      socket.write('\r\n', () => i === mib && socket.resume());
    }
  });
}

test('a client that is still sending gets its answer', async (t) => {
  const { url, dataDir } = await serve(t, { limits: { uploadMaxBytes: 1_000_000 } });
  for (const query of ['?kind=rootfs&name=a', '?kind=nonsense', '?kind=rootfs']) {
    const head = `POST /v1/images${query} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n`;
    // More than the kernel holds between the two, so that a server that does not read on is found out.
    t.regex(await sendWithoutReading(url, head, 24), /^HTTP\/1.1 400 /, query);
  }
  await unharmed(t, url, dataDir);
});

test('an upload that stands still, or whose client goes, is dropped', async (t) => {
  const { url, dataDir } = await serve(t, { limits: { stallMs: 300 } });
  const head =
    'POST /v1/images?kind=rootfs&name=a HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n';
  const answer = await raw(url, `${head}some bytes, and then nothing`);
  t.regex(answer, /^HTTP\/1.1 504 /);
  t.regex(answer, /"kind":"timeout"/);
  const { hostname, port } = new URL(url);
  await new Promise<void>((resolve) => {
    const socket = connect(Number(port), hostname, () =>
      socket.write(`${head}some bytes`, () => setTimeout(() => socket.destroy(), 50)),
    );
    socket.on('close', () => resolve());
  });
  await unharmed(t, url, dataDir);
});

test('a login that cannot be read is refused without repeating it', async (t) => {
  const { url } = await serve(t);
  const secret = Buffer.from('{"username":"u","password":"hunter2","x":1}').toString('base64');
  for (const header of [secret, 'e', '{}', Buffer.from('[]').toString('base64')]) {
    const answer = await ask(`${url}/v1/images?kind=docker&source=127.0.0.1:1/a`, {
      method: 'POST',
      headers: { 'x-registry-auth': header },
    });
    t.is(answer.status, 400, header);
    t.regex(answer.body.toString(), /login in the request cannot be read/);
    t.notRegex(answer.body.toString(), /hunter2/);
  }
});

test('malformed HTTP and oversized headers cost one connection', async (t) => {
  const { url, dataDir } = await serve(t, { limits: { headersMs: 500 } });
  t.regex(await raw(url, 'GARBAGE\r\n\r\n'), /^HTTP\/1.1 400 /);
  t.regex(
    await raw(url, `GET / HTTP/1.1\r\nHost: x\r\nX: ${'x'.repeat(20_000)}\r\n\r\n`),
    /^HTTP\/1.1 431 /,
  );
  t.regex(
    await raw(
      url,
      'POST /v1/images?kind=rootfs&name=a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\nzz\r\n',
    ),
    /^HTTP\/1.1 4/,
  );
  await unharmed(t, url, dataDir);
});

test('a content that rotted on disk is not sent', async (t) => {
  const { url, dataDir } = await serve(t);
  await addRootfs(url, 'a', await tar());
  await addRootfs(url, 'base', await makeTar({ a: 'a' }));
  for (const shard of await readdir(join(dataDir, 'content'))) {
    for (const name of await readdir(join(dataDir, 'content', shard))) {
      await writeFile(join(dataDir, 'content', shard, name), noise(100_000, 9));
    }
  }
  const list = (await ask(`${url}/v1/images`)).json() as ImageSummary[];
  const base = list.find((image) => image.name === 'base:latest')!.digest;
  const answer = await ask(`${url}/v1/delta?image=a&base=${base}`);
  t.is(answer.status, 422);
  t.is((answer.json() as ErrorBody).error.kind, 'corrupt');
  t.deepEqual(await readdir(join(dataDir, 'uploads')), []);
});
