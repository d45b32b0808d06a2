// The kinds of source over HTTP: an OCI layout, a docker-archive, a pull by the server; and several
// intakes at the same time.
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { Writable } from 'node:stream';
import test from 'ava';
import { pino } from 'pino';
import type { ErrorBody, ImageSummary, IntakeEvent } from '../delta/protocol.ts';
import { ImageStore, withStore } from './image-store.ts';
import { addRootfs, ask, makeDirectory, makeTar, noise, quiet, serve } from './testkit.ts';
import { dockerArchive, layoutTar, registry, smallImage } from './testkit-images.ts';

const events = (body: Buffer) =>
  body
    .toString()
    .trimEnd()
    .split('\n')
    .map((line) => JSON.parse(line) as IntakeEvent);

function doneOf(body: Buffer): ImageSummary {
  const last = events(body).at(-1);
  if (last?.event !== 'done') throw new Error(body.toString());
  return last.image;
}

test('an OCI layout as a tar, by its tag', async (t) => {
  const { url } = await serve(t);
  const image = await smallImage({ 'etc/a': 'a' });
  const add = (query: string, body: Buffer) =>
    ask(`${url}/v1/images?kind=oci&platform=linux/amd64${query}`, { method: 'POST', body });
  const tar = await layoutTar(image, 'demo:1');
  const done = doneOf((await add('&source=demo:1', tar)).body);
  t.is(done.name, 'demo:1');
  t.is(done.digest, image.digest, "the digest is the source's own");
  const named = doneOf((await add('&name=other', tar)).body);
  t.is(named.name, 'other:latest');
  const missing = await add('&source=nope', tar);
  t.is(missing.status, 404);
  t.regex((missing.json() as ErrorBody).error.message, /nope/);
  const wrong = await ask(`${url}/v1/images?kind=oci&platform=linux/s390x`, {
    method: 'POST',
    body: tar,
  });
  t.is((wrong.json() as ErrorBody).error.kind, 'platform');
});

test('a docker-archive, by the name that is in it', async (t) => {
  const { url } = await serve(t);
  const image = await smallImage({ 'etc/a': 'a' });
  const body = await dockerArchive(image, 'docker.io/library/demo:7');
  const answer = await ask(`${url}/v1/images?kind=docker-archive&platform=linux/amd64`, {
    method: 'POST',
    body,
  });
  t.is(doneOf(answer.body).name, 'demo:7');
});

test('the server pulls with the login of the request, which nobody else sees', async (t) => {
  let log = '';
  const sink = new Writable({
    write(chunk, _encoding, done) {
      log += chunk;
      done();
    },
  });
  const { url } = await serve(t, { log: pino({ level: 'trace' }, sink) });
  const image = await smallImage({ 'etc/a': 'a' });
  const where = { repository: 'team/demo', tag: '1', login: 'me:correct horse' };
  const { host } = await registry(t, image, where);
  const pull = (password: string | undefined) =>
    ask(`${url}/v1/images?kind=docker&source=${host}/team/demo:1&platform=linux/amd64`, {
      method: 'POST',
      headers:
        password === undefined
          ? {}
          : {
              'x-registry-auth': Buffer.from(JSON.stringify({ username: 'me', password })).toString(
                'base64',
              ),
            },
    });
  const wrong = await pull('battery staple');
  t.is(wrong.status, 401);
  t.is((wrong.json() as ErrorBody).error.kind, 'unauthorized');
  const right = await pull('correct horse');
  t.is(doneOf(right.body).name, `${host}/team/demo:1`);
  t.is(doneOf(right.body).digest, image.digest);
  const said = log + wrong.body + right.body;
  for (const secret of ['correct horse', 'battery staple']) {
    t.false(said.includes(secret));
    t.false(said.includes(Buffer.from(`me:${secret}`).toString('base64')));
  }
  t.true(log.includes('image added'));
});

test("the server's own login is lent only where its operator says so", async (t) => {
  const image = await smallImage({ 'etc/a': 'a' });
  const where = { repository: 'team/demo', tag: '1', login: 'me:correct horse' };
  const { host } = await registry(t, image, where);
  const docker = await makeDirectory(t);
  const auth = Buffer.from(where.login).toString('base64');
  await writeFile(join(docker, 'config.json'), JSON.stringify({ auths: { [host]: { auth } } }));
  const before = process.env.DOCKER_CONFIG;
  t.teardown(() => {
    if (before === undefined) delete process.env.DOCKER_CONFIG;
    else process.env.DOCKER_CONFIG = before;
  });
  process.env.DOCKER_CONFIG = docker;
  const pull = (url: string, headers = {}) =>
    ask(`${url}/v1/images?kind=docker&source=${host}/team/demo:1&platform=linux/amd64`, {
      method: 'POST',
      headers,
    });
  const { url } = await serve(t);
  const refused = await pull(url);
  t.is(refused.status, 401);
  t.is((refused.json() as ErrorBody).error.kind, 'unauthorized');
  const lending = await serve(t, { registryLogin: true });
  t.is(doneOf((await pull(lending.url)).body).digest, image.digest);
  const other = Buffer.from('{"username":"me","password":"battery staple"}').toString('base64');
  const own = await pull((await serve(t, { registryLogin: true })).url, {
    'x-registry-auth': other,
  });
  t.is(own.status, 401, "the request's own login is the one that counts");
});

test('an image that is there already is named without reading its layers', async (t) => {
  const { url } = await serve(t);
  const image = await smallImage({ 'etc/a': 'a' });
  const login = {
    'x-registry-auth': Buffer.from('{"username":"u","password":"p"}').toString('base64'),
  };
  const where = { repository: 'demo', tag: '1', login: 'u:p' };
  const { host } = await registry(t, image, where);
  const pull = (name: string) =>
    ask(`${url}/v1/images?kind=docker&source=${host}/demo:1&platform=linux/amd64&name=${name}`, {
      method: 'POST',
      headers: login,
    });
  t.true(events((await pull('a')).body).length > 2);
  image.blobs.delete([...image.blobs.keys()][1]!);
  t.deepEqual(
    events((await pull('b')).body).map((e) => e.event),
    ['done'],
  );
});

test('equal and overlapping images at the same time', async (t) => {
  const { url } = await serve(t, { limits: { intakesAtOnce: 4 } });
  const shared = noise(300_000, 1);
  const tars = await Promise.all(
    [0, 0, 1, 2, 3].map((n) => makeTar({ shared, own: `${n}`, 'd/again': shared })),
  );
  const answers = await Promise.all(tars.map((tar, i) => addRootfs(url, `n:${i}`, tar)));
  t.true(answers.every((a) => a.at(-1)?.event === 'done'));
  const list = (await ask(`${url}/v1/images`)).json() as ImageSummary[];
  t.is(list.length, 5);
  t.is(new Set(list.map((i) => i.digest)).size, 4);
  for (const image of list) {
    t.is((await ask(`${url}/v1/delta?image=${image.name}`)).status, 200);
  }
});

test('without a server: add, list, inspect and remove on the directory', async (t) => {
  const dataDir = await makeDirectory(t);
  const image = await smallImage({ 'etc/a': 'a' });
  const archive = join(await makeDirectory(t), 'x.tar');
  await writeFile(archive, await dockerArchive(image, 'demo:7'));
  const { openDockerArchive } = await import('../image/docker-archive.ts');
  const open = () => openDockerArchive(archive, undefined, { platform: 'linux/amd64' });
  const added = await withStore({ dataDir, log: quiet }, (store) => store.add({ open }));
  t.is(added.name, 'demo:7');
  await withStore({ dataDir, log: quiet }, async (store) => {
    t.deepEqual(await store.list(), [added]);
    t.true((await store.inspect('demo:7', undefined)).bundleBytes! > 0);
    await t.throwsAsync(ImageStore.open({ dataDir, log: quiet }), { message: /is in use by/ });
    await store.remove('demo:7', undefined);
    await t.throwsAsync(store.remove('demo:7', undefined), { message: /no image demo:7/ });
  });
  const { url } = await serve(t, { dataDir });
  t.deepEqual((await ask(`${url}/v1/images`)).json(), []);
});
