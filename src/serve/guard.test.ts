// A server with a file of tokens: what each is for, what is asked without one, how the file is read, and read again.
import { execFile } from 'node:child_process';
import { createHash } from 'node:crypto';
import { chmod, readFile, rename, rm, writeFile } from 'node:fs/promises';
import { connect } from 'node:net';
import { join } from 'node:path';
import { promisify } from 'node:util';
import test, { type ExecutionContext } from 'ava';
import { pino } from 'pino';
import { API, type ErrorBody } from '../delta/protocol.ts';
import { scopeOf } from './guard.ts';
import { ask, makeDirectory, makeTar, quiet, serve } from './testkit.ts';
import { traceOf } from './testkit-traces.ts';
import { entryOf, makeToken, parseTokens, type Scope, TokenList } from './token.ts';
import { TokenFile } from './token-file.ts';

const run = promisify(execFile);
const bearer = (token: string) => ({ authorization: `Bearer ${token}` });
const kindOf = (answer: { json(): unknown }) => (answer.json() as ErrorBody).error.kind;
const sha256 = (text: string) => createHash('sha256').update(text).digest('hex');

/** A server with a token of each scope, and one of a worker. */
async function guarded(t: ExecutionContext) {
  const path = join(await makeDirectory(t), 'tokens');
  const lines: string[] = ['# who may do what'];
  const make = (name: string, ...scopes: Scope[]) => {
    const { token, line } = makeToken(name, scopes.length === 0 ? undefined : new Set(scopes));
    lines.push(line);
    return token;
  };
  const tokens = {
    worker: make('worker'),
    fetch: make('fetch', 'fetch'),
    report: make('report', 'report'),
    change: make('change', 'change'),
    metrics: make('metrics', 'metrics'),
  };
  await writeFile(path, `${lines.join('\n')}\n`, { mode: 0o600 });
  const written: string[] = [];
  const log = pino({ level: 'trace' }, { write: (line) => written.push(line) });
  const server = await serve(t, { tokensFile: path, log });
  const image = await ask(
    `${server.url}${API.images}?kind=rootfs&name=app:1&platform=linux/amd64`,
    {
      method: 'POST',
      headers: bearer(tokens.change),
      body: await makeTar({ a: 'a', z: 'z' }),
    },
  );
  t.is(image.status, 200, image.body.toString());
  return { ...server, path, tokens, written };
}

test('a file of tokens is read as it is written, and a wrong one is named by its line alone', (t) => {
  const hex = sha256('one');
  const list = parseTokens(
    `# workers\n\nnode-1\tsha256:${hex}   # the first\r\nci sha256:${sha256('two')} may=change,metrics\n`,
    'F',
  );
  t.is(list.size, 2);
  t.deepEqual([...list.find('one')!.scopes], ['fetch', 'report']);
  t.is(list.find('one')!.name, 'node-1');
  t.deepEqual([...list.find('two')!.scopes], ['change', 'metrics']);
  for (const other of ['', 'on', 'one ', 'One', hex, `sha256:${hex}`]) {
    t.is(list.find(other), undefined, other);
  }
  for (const [text, what] of [
    ['', /^F names no token/],
    ['# nothing\n', /^F names no token/],
    ['node-1', /^F, line 1: the second word/],
    ['node-1 s3cret-token', /^F, line 1: the second word/],
    [`node-1 sha256:${hex.slice(1)}`, /^F, line 1: the second word/],
    [`node-1 sha256:${hex.toUpperCase()}`, /^F, line 1: the second word/],
    [`\nno/de sha256:${hex}`, /^F, line 2: the first word/],
    [`a sha256:${hex} s3cret`, /^F, line 1: what follows the digest/],
    [`a sha256:${hex} may=`, /^F, line 1: what follows the digest/],
    [`a sha256:${hex} may=fetch,s3cret`, /^F, line 1: may= must be some of fetch,report/],
    [`a sha256:${hex} may=fetch may=report`, /^F, line 1: may= stands there twice/],
    [`a sha256:${hex}\nb sha256:${hex}`, /^F, line 2: the token stands there already/],
  ] as const) {
    const error = t.throws(() => parseTokens(text, 'F'), { message: what });
    t.false(error.message.includes('s3cret'));
  }
});

test('a made token is 256 random bits, and its line is one that a server takes', (t) => {
  const made = Array.from({ length: 100 }, () => makeToken('node-1'));
  t.is(new Set(made.map(({ token }) => token)).size, 100);
  for (const { token, line } of made) {
    t.is(Buffer.from(token, 'base64url').length, 32);
    t.false(line.includes(token));
    t.is(parseTokens(line, 'F').find(token)?.name, 'node-1');
  }
  for (const bad of ['', 'two words', 'a\nb', '#a', '-a']) {
    t.throws(() => makeToken(bad), { message: /cannot be the name of a token/ });
  }
});

test('every token of the list is compared, whichever fits', (t) => {
  const entries = ['token-one', 'token-two', 'token-three'].map((token) => entryOf(token, token));
  const compared: string[] = [];
  const watched = entries.map(({ name, digest, scopes }) => ({
    ...{ name, scopes },
    get digest() {
      compared.push(name);
      return digest;
    },
  }));
  const list = new TokenList(watched);
  for (const given of ['token-one', 'token-three', 'none']) {
    compared.length = 0;
    list.find(given);
    t.deepEqual(compared, ['token-one', 'token-two', 'token-three'], given);
  }
});

test('without a token nothing is told but health, and each token is for its own', async (t) => {
  const { url, tokens, written } = await guarded(t);
  const delta = await ask(`${url}${API.delta}?image=app:1`, { headers: bearer(tokens.fetch) });
  t.is(delta.status, 200);
  const bundle = delta.headers['content-location']!;
  const trace = traceOf('app:1', ['z']);
  const asks: [Scope | 'open', string, string, (string | Buffer)?][] = [
    ['open', 'GET', API.health],
    ['fetch', 'GET', `${API.delta}?image=app:1`],
    ['fetch', 'HEAD', `${API.delta}?image=app:1`],
    ['fetch', 'GET', bundle],
    ['fetch', 'HEAD', bundle],
    ['fetch', 'GET', API.images],
    ['fetch', 'HEAD', API.images],
    ['fetch', 'GET', `${API.images}/app:1`],
    ['fetch', 'GET', `${API.chains}/sha256:${'0'.repeat(64)}`],
    ['metrics', 'GET', API.metrics],
    ['report', 'POST', API.traces, trace],
    ['report', 'GET', API.traces],
    ['report', 'GET', `${API.traces}/${'0'.repeat(64)}`],
    ['change', 'POST', `${API.images}?kind=rootfs&name=app:2`, Buffer.alloc(3_000_000)],
    ['change', 'DELETE', `${API.traces}/${'0'.repeat(64)}`],
    ['change', 'DELETE', `${API.images}/none:1`],
  ];
  for (const [scope, method, path, body] of asks) {
    const what = `${method} ${path}`;
    const send = (headers: Record<string, string>) =>
      ask(url + path, { method, headers, ...(body === undefined ? {} : { body }) });
    const bare = await send({});
    if (scope === 'open') {
      t.is(bare.status, 200, what);
      continue;
    }
    t.is(bare.status, 401, what);
    t.is(bare.headers['www-authenticate'], 'Bearer realm="firstlight"');
    if (method !== 'HEAD') t.is(kindOf(bare), 'unauthorized');
    for (const wrong of [bearer(`${tokens.fetch}x`), bearer(sha256(tokens.fetch))]) {
      const answer = await send(wrong);
      t.is(answer.status, 401, what);
      t.is(answer.headers['www-authenticate'], 'Bearer realm="firstlight"');
    }
    t.is((await send({ authorization: `Basic ${btoa(`x:${tokens.fetch}`)}` })).status, 401);
    for (const [name, token] of Object.entries(tokens)) {
      const may = name === scope || (name === 'worker' && ['fetch', 'report'].includes(scope));
      const answer = await send(bearer(token));
      if (may) {
        t.notRegex(String(answer.status), /^(401|403|5..)$/, `${name}: ${what}`);
        continue;
      }
      t.is(answer.status, 403, `${name}: ${what}`);
      if (method !== 'HEAD') t.is(kindOf(answer), 'permission');
    }
  }
  const metrics = await ask(url + API.metrics, { headers: bearer(tokens.metrics) });
  const count = (reason: string) =>
    new RegExp(`firstlight_refused_requests_total\\{reason="${reason}"\\} (\\d+)`).exec(
      metrics.body.toString(),
    )?.[1];
  // Without a token and with another scheme; two wrong ones.
  t.deepEqual([count('missing'), count('unknown')], ['30', '30']);
  // One line, and not one a refusal.
  t.is(written.filter((line) => line.includes('requests are refused')).length, 1);
  for (const token of Object.values(tokens)) {
    t.false(
      written.some((line) => line.includes(token)),
      'no token is logged',
    );
  }
});

test('a path that the table does not know is a change, and so wants most', (t) => {
  t.is(scopeOf('GET', '/v1/anything'), 'change');
  t.is(scopeOf('PUT', API.traces), 'change');
  t.is(scopeOf('POST', API.health), 'change');
});

test('no shared cache keeps what wants a token', async (t) => {
  const { url, tokens } = await guarded(t);
  const headers = bearer(tokens.worker);
  const delta = await ask(`${url}${API.delta}?image=app:1`, { headers });
  t.is(delta.headers['cache-control'], 'no-cache');
  const bundle = await ask(url + delta.headers['content-location']!, { headers });
  t.is(bundle.headers['cache-control'], 'private, max-age=86400, immutable');
  const open = await serve(t);
  await ask(`${open.url}${API.images}?kind=rootfs&name=app:1`, {
    method: 'POST',
    body: await makeTar({ a: 'a' }),
  });
  const first = await ask(`${open.url}${API.delta}?image=app:1`);
  const again = await ask(open.url + first.headers['content-location']!);
  t.is(again.headers['cache-control'], 'public, max-age=86400, immutable');
});

test('the file is read again when it changes; while it is wrong, it is as it was', async (t) => {
  const path = join(await makeDirectory(t), 'tokens');
  const [one, two] = [makeToken('one'), makeToken('two')];
  const put = async (text: string, mode = 0o600) => {
    await writeFile(`${path}.new`, text);
    await chmod(`${path}.new`, mode);
    await rename(`${path}.new`, path);
  };
  const errors: string[] = [];
  const log = pino({ level: 'error' }, { write: (line) => errors.push(line) });
  await put(`${one.line}\n`);
  const file = await TokenFile.open(path, log, 0);
  const knows = async () => {
    const list = await file.list();
    return [list.find(one.token)?.name, list.find(two.token)?.name];
  };
  t.deepEqual(await knows(), ['one', undefined]);
  await put(`${one.line}\n${two.line}\n`);
  t.deepEqual(await knows(), ['one', 'two'], 'one that is new');
  await put(`${two.line}\n`);
  t.deepEqual(await knows(), [undefined, 'two'], 'one that is taken out');
  for (const spoil of [
    () => put(`${one.line}\nnode s3cret\n`),
    () => put(''),
    () => put(`${one.line}\n`, 0o620),
    () => put(`${one.line}\n`, 0o602),
    () => rm(path),
  ]) {
    await spoil();
    t.deepEqual(await knows(), [undefined, 'two']);
    t.deepEqual(await knows(), [undefined, 'two']);
  }
  t.is(errors.length, 5, 'each told once');
  t.regex(errors[0]!, /line 2: the second word/);
  t.regex(errors[2]!, /can be written by others/);
  t.false(errors.some((line) => line.includes('s3cret')));
  await put(`${one.line}\n`);
  t.deepEqual(await knows(), ['one', undefined]);
});

test('a server does not start with a file that cannot be used', async (t) => {
  const path = join(await makeDirectory(t), 'tokens');
  const start = () => serve(t, { tokensFile: path });
  await t.throwsAsync(start(), { message: /ENOENT/ });
  await writeFile(path, `${makeToken('a').line}\n`);
  for (const mode of [0o660, 0o606, 0o777]) {
    await chmod(path, mode);
    await t.throwsAsync(start(), { message: /can be written by others than its owner/ });
  }
  await chmod(path, 0o644);
  t.truthy((await start()).url);
  await writeFile(path, `a ${(await readFile(path, 'utf8')).split(' ')[1]!.slice(0, -2)}`);
  await t.throwsAsync(start(), { message: /line 1: the second word/ });
});

test('a server that others reach says so when it is open, and only then', async (t) => {
  const path = join(await makeDirectory(t), 'tokens');
  await writeFile(path, `${makeToken('a').line}\n`, { mode: 0o600 });
  const warned = async (options: { listen: string; tokensFile?: string }) => {
    const lines: string[] = [];
    const log = pino({ level: 'warn' }, { write: (line) => lines.push(line) });
    await serve(t, { ...options, log });
    return lines.filter((line) => line.includes('whoever reaches this address')).length;
  };
  t.is(await warned({ listen: '0.0.0.0:0' }), 1);
  t.is(await warned({ listen: '127.0.0.1:0' }), 0);
  t.is(await warned({ listen: 'localhost:0' }), 0);
  t.is(await warned({ listen: '0.0.0.0:0', tokensFile: path }), 0);
});

test('the file is looked at, and not read, while it stays as it is', async (t) => {
  const path = join(await makeDirectory(t), 'tokens');
  await writeFile(path, `${makeToken('a').line}\n`, { mode: 0o600 });
  const file = await TokenFile.open(path, quiet, 0);
  t.is(await file.list(), await file.list(), 'the very same list');
});

test('what is in the place of the file and is none is not waited for', async (t) => {
  const path = join(await makeDirectory(t), 'tokens');
  const one = makeToken('one');
  await writeFile(path, `${one.line}\n`, { mode: 0o600 });
  const errors: string[] = [];
  const log = pino({ level: 'error' }, { write: (line) => errors.push(line) });
  const file = await TokenFile.open(path, log, 0);
  await run('mkfifo', ['-m', '600', `${path}.new`]);
  await rename(`${path}.new`, path);
  t.is((await file.list()).find(one.token)?.name, 'one', 'as it was');
  t.regex(errors.join(), /is not a file/);
});

/** In a process of few descriptors: a file that changes while there are none is read when there are again. */
const OUT_OF_DESCRIPTORS = `
  import { closeSync, openSync, renameSync, writeFileSync } from 'node:fs';
  import { pino } from 'pino';
  import { makeToken } from '${new URL('token.ts', import.meta.url).pathname}';
  import { TokenFile } from '${new URL('token-file.ts', import.meta.url).pathname}';
  const path = process.argv[1];
  const [one, two] = [makeToken('one'), makeToken('two')];
  writeFileSync(path, one.line, { mode: 0o600 });
  const errors = [];
  const log = pino({ level: 'error' }, { write: (line) => errors.push(line) });
  const file = await TokenFile.open(path, log, 0);
  writeFileSync(path + '.new', two.line, { mode: 0o600 });
  renameSync(path + '.new', path);
  const taken = [];
  try {
    for (;;) taken.push(openSync('/dev/null'));
  } catch {}
  const names = [];
  const look = async () => {
    const tokens = await file.list();
    names.push([one, two].map(({ token }) => tokens.find(token)?.name ?? '-').join());
  };
  for (let i = 0; i < 3; i++) await look();
  for (const fd of taken) closeSync(fd);
  await look();
  console.log(JSON.stringify({ names, errors: errors.map((line) => JSON.parse(line).error) }));
`;

test('a file that could not be read for want of descriptors is read again', async (t) => {
  const path = join(await makeDirectory(t), 'tokens');
  const { stdout } = await run(
    'sh',
    [
      ...['-c', 'ulimit -n 64; exec "$@"', 'sh', process.execPath],
      ...['--input-type=module', '--eval', OUT_OF_DESCRIPTORS, path],
    ],
    { cwd: new URL('.', import.meta.url).pathname },
  );
  const { names, errors } = JSON.parse(stdout) as { names: string[]; errors: string[] };
  t.deepEqual(names, ['one,-', 'one,-', 'one,-', '-,two']);
  t.is(errors.length, 1, 'told once');
  t.regex(errors[0]!, /EMFILE/);
});

test('whoever has no token cannot keep a connection by sending without end', async (t) => {
  const path = join(await makeDirectory(t), 'tokens');
  await writeFile(path, `${makeToken('a').line}\n`, { mode: 0o600 });
  const { url } = await serve(t, { tokensFile: path, limits: { stallMs: 300 } });
  const { port } = new URL(url);
  const statusOf = (line: string) =>
    new Promise<number>((resolve) => {
      const socket = connect(Number(port), '127.0.0.1');
      let answer = '';
      socket.on('data', (data) => {
        answer += data;
      });
      socket.on('error', () => undefined);
      socket.write(`${line} HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n`);
      const drip = setInterval(() => socket.write('1\r\na\r\n'), 50);
      t.teardown(() => socket.destroy());
      socket.on('close', () => {
        clearInterval(drip);
        resolve(Number(answer.split(' ')[1]));
      });
    });
  const lines: [string, number][] = [
    ['GET /v1/images', 401],
    ['POST /v1/images?kind=rootfs', 401],
    ['POST /none', 404],
    ['GET /none', 404],
    ['GET /healthz', 200],
  ];
  const statuses = await Promise.all(lines.map(([line]) => statusOf(line)));
  t.deepEqual(
    statuses,
    lines.map(([, status]) => status),
  );
});
