// The token that a worker shows: with every request, to its own server alone, read again when it is refused; and what
// becomes of transfers and readers when there is no right one.
import { execFile } from 'node:child_process';
import { rename, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { promisify } from 'node:util';
import test, { type ExecutionContext } from 'ava';
import {
  type Fault,
  FaultyServer,
  makeImage,
  noise,
  type SeenRequest,
  scratch,
  someFiles,
} from '../../test/receive/fixture.ts';
import { assertWhole, LARGE, makeStage, SMALL } from '../../test/receive/stage.ts';
import { API } from '../delta/protocol.ts';
import { deltaClientOf, Receiver, useConnections, useTokenFile } from './receiver.ts';
import { WorkerToken } from './worker-token.ts';

const PATIENT = { connectMs: 60_000, deltaMs: 60_000, headMs: 60_000, idleMs: 60_000 };
const EIO = 5;
const IMAGE = makeImage('token', {
  ...someFiles('token', SMALL),
  ...someFiles('large', LARGE),
  big: noise('big', 6_000_000),
});

/** A server that takes one token, and a worker with a file for it. */
async function guarded(t: ExecutionContext, connections: number) {
  const stage = await makeStage(t, IMAGE);
  const { server, store } = stage;
  server.deltaRanges = true;
  const path = join(await scratch(t), 'token');
  const put = async (token: string) => {
    await writeFile(`${path}.new`, `${token}\n`);
    await rename(`${path}.new`, path);
  };
  const guard = { token: 'first-token', status: 401, fault: {} as Fault };
  server.fault = ({ path, authorization }) =>
    path === API.health || authorization === `Bearer ${guard.token}`
      ? guard.fault
      : { status: guard.status };
  useConnections(store, connections);
  const open = (more = {}) =>
    Receiver.open(store, stage.options({ timeouts: PATIENT, tokenFile: path, ...more }));
  return { ...stage, path, put, guard, open };
}

const refused = (requests: SeenRequest[], token: string) =>
  requests.filter(
    ({ authorization, path }) => path !== API.health && authorization !== `Bearer ${token}`,
  ).length;

for (const connections of [1, 8]) {
  test(`every request shows it, over ${connections} connections`, async (t) => {
    const { server, root, put, guard, open } = await guarded(t, connections);
    await put(guard.token);
    const receiver = await open();
    await receiver.complete;
    await assertWhole(t, root, IMAGE);
    t.is(refused(server.requests, guard.token), 0);
    t.is(receiver.progress().retries, 0);
    // To say that a connection lives takes no token.
    for (const { path, authorization } of server.requests) {
      if (path === API.health) t.is(authorization, undefined);
    }
    await receiver.close();
  });
}

// Over one alone the whole image is one answer, which no other token can disturb.
for (const connections of [2, 8]) {
  test(`one that is replaced under a transfer costs a request, over ${connections} connections`, async (t) => {
    const { server, root, templates, put, guard, open } = await guarded(t, connections);
    await put(guard.token);
    guard.fault = { rate: 3_000_000 };
    const receiver = await open();
    await templates[0]!.until(() => receiver.progress().framesDone >= 2, 20_000);
    // In this order: a server that refuses before there is another to show is the next test.
    await put('second-token');
    guard.token = 'second-token';
    await receiver.complete;
    await assertWhole(t, root, IMAGE);
    t.true(refused(server.requests, 'first-token') > 0, 'the new one came to be used');
    t.is(receiver.progress().retries, 0);
    t.deepEqual([...templates[0]!.errnos], [], 'no reader was failed');
    await receiver.close();
  });
}

test('without a right one nothing opens, and the error says what to do', async (t) => {
  const { server, path, put, guard, open } = await guarded(t, 4);
  const message = `there is no token to show: ENOENT: no such file or directory, open '${path}'`;
  await t.throwsAsync(open(), { message, instanceOf: Error });
  t.is(server.requests.length, 0, 'nothing is asked for without it');
  await put('s3cret-token');
  const error = await t.throwsAsync<Error & { kind: string; line: string }>(open());
  t.is(error!.kind, 'unauthorized');
  t.is(
    error!.line,
    `${server.url} does not take the token in ${path}; put one into it that the server has: it is read again`,
  );
  t.false(JSON.stringify(error).includes('s3cret'));
  // It was no different in the file: nothing is sent twice with it.
  t.true(server.requests.filter((seen) => seen.path === API.delta).length <= 8);
  await put(guard.token);
  await (await open()).close();
});

test('whoever opens what is refused has it tried at once', async (t) => {
  const { root, templates, put, guard, open } = await guarded(t, 2);
  await put(guard.token);
  guard.fault = { rate: 3_000_000 };
  // The first pause is longer than this test may take.
  const receiver = await open({ backoff: { firstMs: 600_000, mostMs: 600_000 } });
  await templates[0]!.until(() => receiver.progress().framesDone >= 2, 20_000);
  guard.token = 'second-token';
  await templates[0]!.until(() => receiver.progress().state === 'retrying');
  await put(guard.token);
  const again = await open();
  t.is(again.progress().errorKind, undefined, 'that it was refused before is no news');
  await again.complete;
  await assertWhole(t, root, IMAGE);
  await again.close();
  await receiver.close();
});

for (const status of [401, 403]) {
  test(`${status}: a refused transfer fails readers at once, says so once, and goes on with the right token`, async (t) => {
    const { root, lines, path, templates, put, guard, open } = await guarded(t, 2);
    await put(guard.token);
    guard.fault = { rate: 3_000_000 };
    const receiver = await open();
    const [template] = templates;
    await template!.until(() => receiver.progress().framesDone >= 2, 20_000);
    guard.token = 'second-token';
    guard.status = status;
    const ofContents = () => [...template!.states.keys()];
    await template!.until(() =>
      ofContents().every((content) => [2, 4].includes(template!.states[content]!)),
    );
    const failed = ofContents().filter((content) => template!.states[content] === 4);
    t.true(failed.length > 0);
    for (const content of failed) t.is(template!.errnos.get(content), EIO);
    await template!.until(() => receiver.progress().retries > 3);
    const { state, error, errorKind } = receiver.progress();
    t.is(state, 'retrying');
    t.is(errorKind, status === 401 ? 'unauthorized' : 'permission');
    t.regex(
      error!,
      status === 401 ? /does not take the token in .*; put one into/ : /HTTP status 403/,
    );
    t.is(
      lines.filter(({ msg }) => msg === 'the server refuses: what is missing cannot be read')
        .length,
      1,
    );
    // It goes, and there is none for a while: no better, and no worse.
    await rm(path);
    const before = receiver.progress().retries;
    await template!.until(() => receiver.progress().retries > before + 2);
    await put(guard.token);
    await receiver.complete;
    await assertWhole(t, root, IMAGE);
    t.true(ofContents().every((content) => template!.states[content] === 2));
    t.false(JSON.stringify(lines).includes('first-token'));
    t.false(JSON.stringify(lines).includes('second-token'));
    await receiver.close();
  });
}

test('a piece that is refused is told as that, and not tried as if the bundle were another', async (t) => {
  const { server, lines, templates, put, guard, open } = await guarded(t, 8);
  await put(guard.token);
  guard.fault = { rate: 3_000_000 };
  const { fault } = server;
  // By its name it is given, so that the header comes; what follows is asked for by the bundle.
  server.fault = ({ path }) => (path === API.delta ? guard.fault : { status: 401 });
  const receiver = await open();
  await templates[0]!.until(() => receiver.progress().errorKind !== undefined, 20_000);
  t.is(receiver.progress().errorKind, 'unauthorized');
  t.notRegex(JSON.stringify(lines), /another bundle/);
  server.fault = fault;
  await receiver.complete;
  await receiver.close();
});

test('an image that is there opens whatever the token is', async (t) => {
  const { put, guard, open, path } = await guarded(t, 2);
  await put(guard.token);
  const first = await open();
  await first.complete;
  await first.close();
  for (const spoil of [() => put('another-token'), () => rm(path)]) {
    await spoil();
    const again = await open();
    t.is(again.progress().state, 'complete');
    await again.close();
  }
});

test('what a daemon was told at its start counts for every opening', async (t) => {
  const { server, store, path, put, guard, open, log } = await guarded(t, 2);
  await put(guard.token);
  await t.throwsAsync(open({ tokenFile: undefined }), { message: /HTTP status 401/ });
  useTokenFile(store, server.url, path, log);
  const receiver = await open({ tokenFile: undefined });
  await receiver.complete;
  await receiver.close();
});

test('it goes to the server that it is for, and to no other', async (t) => {
  const { server, store, path, put, log, lines } = await guarded(t, 1);
  const other = await FaultyServer.start(t);
  await put('first-token');
  useTokenFile(store, server.url, path, log);
  const chain = `sha256:${'0'.repeat(64)}`;
  for (const { url } of [server, other]) {
    await t.throwsAsync(deltaClientOf(store, url).chains(chain, 10_000));
  }
  t.is(server.requests[0]!.authorization, 'Bearer first-token');
  t.is(other.requests[0]!.authorization, undefined);
  // The same server, written otherwise; and what stands beside it.
  useTokenFile(store, `${other.url}/delta`, path, log);
  for (const url of [`${server.url}/`, `${other.url}/other`, `${other.url}/delta/`]) {
    await t.throwsAsync(deltaClientOf(store, url).chains(chain, 10_000));
  }
  t.is(server.requests[1]!.authorization, 'Bearer first-token');
  t.is(other.requests[1]!.authorization, undefined);
  t.is(other.requests[2]!.authorization, 'Bearer first-token');

  for (const [url, warned] of [
    ['http://192.0.2.1:7070', 1],
    ['http://[::1]:7070', 0],
    ['https://192.0.2.1', 0],
  ] as const) {
    lines.length = 0;
    useTokenFile(store, url, path, log);
    useTokenFile(store, url, path, log);
    t.is(lines.filter(({ msg }) => /unencrypted/.test(String(msg))).length, warned, url);
  }
});

test('it is read once for all who ask meanwhile, and what is no token is not told', async (t) => {
  const path = join(await scratch(t), 'token');
  const token = new WorkerToken(path);
  await writeFile(path, ' one\n\n');
  const all = await Promise.all([token.read(), token.read(), token.read()]);
  t.deepEqual(all, ['Bearer one', 'Bearer one', 'Bearer one']);
  t.is(await token.renewed('Bearer one'), undefined);
  await writeFile(path, 'two');
  t.is(await token.renewed('Bearer one'), 'Bearer two');
  await rm(path);
  t.is(await token.renewed('Bearer one'), 'Bearer two', 'it has been read since');
  for (const bad of ['', 'two words', 'two\nlines', 'x'.repeat(5000)]) {
    await writeFile(path, bad);
    const error = await t.throwsAsync(token.read(), { message: /holds no token/ });
    t.false(error!.message.includes('two'));
  }
});

test('what is in the place of its file and is none is not waited for', async (t) => {
  const path = join(await scratch(t), 'token');
  await promisify(execFile)('mkfifo', [path]);
  for (const file of [path, '/dev/zero', '/']) {
    await t.throwsAsync(new WorkerToken(file).read(), { message: /there is no token to show: / });
  }
});
