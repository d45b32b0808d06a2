import { once } from 'node:events';
import { mkdtemp, rm, stat, writeFile } from 'node:fs/promises';
import { connect, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test, { type ExecutionContext } from 'ava';
import { FirstlightError } from '../errors/errors.ts';
import { makeLogger } from '../log/log.ts';
import { ControlServer, type Exchange, type Handler } from './control-server.ts';
import { parseRequest } from './requests.ts';

process.env.FIRSTLIGHT_LOG = 'silent';

async function listen(
  t: ExecutionContext,
  handler: Handler,
): Promise<{ path: string; server: ControlServer }> {
  const dir = await mkdtemp(join(tmpdir(), 'firstlight-control-'));
  const path = join(dir, 'deep', 'control.sock');
  const server = await ControlServer.listen(path, handler, makeLogger('test'));
  t.teardown(async () => {
    await server.close();
    await rm(dir, { recursive: true });
  });
  return { path, server };
}

async function linesOf(socket: Socket): Promise<unknown[]> {
  let text = '';
  socket.on('data', (chunk: Buffer) => {
    text += chunk.toString();
  });
  await once(socket, 'close');
  return text
    .split('\n')
    .filter((line) => line !== '')
    .map((line) => JSON.parse(line));
}

async function ask(path: string, text: string): Promise<unknown[]> {
  const socket = connect(path);
  socket.write(text);
  return linesOf(socket);
}

test('events come before the answer, and the connection ends', async (t) => {
  const { path } = await listen(t, async (request, { send }) => {
    send({ event: 'progress', done: 1, total: 2 });
    return { got: request };
  });
  t.deepEqual(await ask(path, '{"op":"x"}\n'), [
    { event: 'progress', done: 1, total: 2 },
    { result: { got: { op: 'x' } } },
  ]);
});

test('an error travels with kind and hint', async (t) => {
  const { path } = await listen(t, async () => {
    throw new FirstlightError('busy', 'in use', { hint: 'wait' });
  });
  t.deepEqual(await ask(path, '{}\n'), [
    { error: { kind: 'busy', message: 'in use', hint: 'wait' } },
  ]);
});

test('what is no JSON is answered by an error', async (t) => {
  const { path } = await listen(t, async () => 1);
  const [line] = (await ask(path, 'hello\n')) as [{ error: { kind: string } }];
  t.is(line.error.kind, 'internal');
});

test('a request without end is cut off', async (t) => {
  const { path, server } = await listen(t, async () => 1);
  const socket = connect(path);
  const closed = new Promise((resolve) => socket.once('close', resolve));
  // The rest of what is written meets a closed connection.
  socket.on('error', () => {});
  socket.write('x'.repeat(1_100_000));
  await closed;
  t.is(server.connections, 0);
});

test('only its owner may connect', async (t) => {
  const { path } = await listen(t, async () => 1);
  t.is((await stat(path)).mode & 0o777, 0o600);
});

test('a socket file that nobody listens on is replaced', async (t) => {
  const dir = await mkdtemp(join(tmpdir(), 'firstlight-control-'));
  t.teardown(() => rm(dir, { recursive: true }));
  const path = join(dir, 'control.sock');
  await writeFile(path, 'stale');
  const server = await ControlServer.listen(path, async () => 'new', makeLogger('test'));
  t.deepEqual(await ask(path, '{}\n'), [{ result: 'new' }]);
  await server.close();
  await t.throwsAsync(stat(path), { code: 'ENOENT' });
});

for (const way of ['destroy', 'end'] as const) {
  test(`the handler hears that its client has gone (${way})`, async (t) => {
    let exchange: Exchange | undefined;
    const { path } = await listen(t, async (_request, ex) => {
      exchange = ex;
      ex.send({ event: 'progress', done: 0, total: 0 });
      await once(ex.gone, 'abort');
      return 'gone';
    });
    const socket = connect(path);
    socket.write('{}\n');
    await once(socket, 'data');
    t.false(exchange?.gone.aborted);
    socket[way]();
    if (way === 'end') {
      // The other half is open still: the answer says that the work is over.
      t.deepEqual(await linesOf(socket), [{ result: 'gone' }]);
    } else await once(exchange!.gone, 'abort');
    t.true(exchange?.gone.aborted);
  });
}

test('an answered client does not count as gone', async (t) => {
  let exchange: Exchange | undefined;
  const { path } = await listen(t, async (_request, ex) => {
    exchange = ex;
    return 1;
  });
  await ask(path, '{}\n');
  t.false(exchange?.gone.aborted);
});

test('close lets answers out and takes the name away first', async (t) => {
  const asked = Promise.withResolvers<void>();
  const answers = Promise.withResolvers<string>();
  const { path, server } = await listen(t, () => {
    asked.resolve();
    return answers.promise;
  });
  const socket = connect(path);
  socket.write('{}\n');
  const lines = linesOf(socket);
  await asked.promise;
  const closing = server.close();
  answers.resolve('late');
  t.deepEqual(await lines, [{ result: 'late' }]);
  await closing;
  const late = connect(path);
  const [error] = (await once(late, 'error')) as [NodeJS.ErrnoException];
  t.is(error.code, 'ENOENT');
});

test('a request of the wrong shape names the field', (t) => {
  const error = t.throws(() => parseRequest({ op: 'umount', directory: 'relative', lazy: true }), {
    instanceOf: FirstlightError,
  });
  t.is(error.kind, 'usage');
  t.regex(error.message, /directory/);
  t.throws(() => parseRequest({ op: 'nonsense' }), { instanceOf: FirstlightError });
  t.throws(() => parseRequest(null), { instanceOf: FirstlightError });
  t.deepEqual(parseRequest({ op: 'gc' }), { op: 'gc' });
});
