// The proxy that end-to-end tests put between a worker and its server (test/lib/fault-proxy.ts): what it holds stays
// held, to the byte, and comes whole afterwards.
import { once } from 'node:events';
import { type AddressInfo, connect, createServer } from 'node:net';
import test, { type ExecutionContext } from 'ava';
import { askedBytes, FaultProxy } from '../lib/fault-proxy.ts';
import { until } from '../lib/proc.ts';

const BODY = Buffer.from(Array.from({ length: 300_000 }, (_, i) => i % 251));

/** A server that says all of BODY to whoever says something, and a proxy before it. */
async function world(t: ExecutionContext, { ends = false } = {}) {
  const heard: string[] = [];
  const server = createServer((socket) => {
    socket.on('error', () => undefined);
    socket.on('data', (data) => {
      heard.push(data.toString());
      if (ends) socket.end(BODY);
      else socket.write(BODY);
    });
  }).listen(0, '127.0.0.1');
  await once(server, 'listening');
  const proxy = await FaultProxy.start(
    `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
  );
  t.teardown(async () => {
    await proxy.close();
    server.close();
  });
  const ask = (word = 'a word') => {
    const socket = connect(Number(new URL(proxy.url).port), '127.0.0.1');
    t.teardown(() => socket.destroy());
    const got: Buffer[] = [];
    socket.on('error', () => undefined);
    socket.on('data', (data) => got.push(data));
    socket.write(word);
    return { socket, got: () => Buffer.concat(got) };
  };
  return { proxy, heard, ask };
}

/** All that is under way in this process and the kernel has come: what was not sent is held. */
async function settled(bytes: () => number): Promise<void> {
  for (let seen = -1, turns = 0; turns < 20; turns++) {
    if (bytes() !== seen) turns = 0;
    seen = bytes();
    await new Promise((resolve) => setImmediate(resolve));
  }
}

const total = (asked: { got(): Buffer }[]) =>
  asked.reduce((sum, each) => sum + each.got().length, 0);

test('exactly so many bytes go down, over all connections, and the rest when it flows', async (t) => {
  const { proxy, ask } = await world(t);
  proxy.holdAfter(400_001);
  const asked = [ask(), ask(), ask()];
  await until('it holds', () => proxy.isHolding);
  await until('what may pass has come', () => total(asked) === 400_001);
  await settled(() => total(asked));
  t.is(total(asked), 400_001);
  t.is(proxy.bytesDown, 400_001);
  t.true(
    asked.every(({ socket }) => !socket.closed),
    'connections stay open',
  );
  proxy.flow();
  t.false(proxy.isHolding);
  await until('all of it', () => total(asked) === 3 * BODY.length);
  for (const { got } of asked) t.true(got().equals(BODY));
  t.is(proxy.bytesDown, 3 * BODY.length);
});

test('new connections are accepted and heard, and held, too; a further hold lets some more through', async (t) => {
  const { proxy, heard, ask } = await world(t);
  proxy.stall();
  t.true(proxy.isHolding);
  const late = ask('late');
  await until('it is heard', () => heard.includes('late'));
  t.is(proxy.connections, 1);
  await settled(() => proxy.bytesDown);
  t.is(late.got().length, 0);
  for (const bytes of [1, 70_000]) {
    const before = proxy.bytesDown;
    proxy.holdAfter(bytes);
    await until('so much has come', () => late.got().length === before + bytes);
    await settled(() => proxy.bytesDown);
    t.is(proxy.bytesDown, before + bytes);
    t.true(proxy.isHolding);
  }
  proxy.flow();
  await until('all of it', () => late.got().length === BODY.length);
  t.true(late.got().equals(BODY));
});

test('a client that leaves while it is held takes no bytes; a server that leaves is heard to its end', async (t) => {
  const { proxy, heard, ask } = await world(t, { ends: true });
  proxy.holdAfter(1000);
  const leaves = ask('leaves');
  await until('it holds', () => leaves.got().length === 1000);
  leaves.socket.destroy();
  const stays = ask('stays');
  await until('both are heard', () => heard.length === 2);
  await settled(() => proxy.bytesDown);
  proxy.cut();
  proxy.flow();
  await settled(() => proxy.bytesDown);
  t.is(proxy.bytesDown, 1000, 'cut while they were held: nothing more of them');
  t.is(stays.got().length, 0);
  proxy.stall();
  const last = ask('last');
  await until('it is heard', () => heard.includes('last'));
  const closed = once(last.socket, 'close');
  await settled(() => proxy.bytesDown);
  t.false(last.socket.closed);
  proxy.flow();
  await closed;
  t.true(last.got().equals(BODY), 'all of it, though the server has long gone');
});

test('what is asked for is told, in pieces and in line, and counted once', async (t) => {
  const { proxy, heard, ask } = await world(t);
  const request = (first: string, ...headers: string[]) =>
    `${[`${first} HTTP/1.1`, 'host: x', ...headers].join('\r\n')}\r\n\r\n`;
  const { socket } = ask(
    request('GET /a', 'Range: bytes=0-99', 'if-range: "x"') + request('HEAD /b').slice(0, 9),
  );
  await until('it is heard', () => heard.join('').length > 50);
  socket.write(request('HEAD /b').slice(9));
  socket.write(
    request('GET /a', 'range: bytes=50-149') + request('GET /a', 'range: bytes=400-499'),
  );
  await until('all are told', () => proxy.requests.length === 4);
  t.deepEqual(proxy.requests, [
    { method: 'GET', path: '/a', range: { from: 0, to: 100 } },
    { method: 'HEAD', path: '/b', range: undefined },
    { method: 'GET', path: '/a', range: { from: 50, to: 150 } },
    { method: 'GET', path: '/a', range: { from: 400, to: 500 } },
  ]);
  t.is(askedBytes(proxy.requests), 250);
});
