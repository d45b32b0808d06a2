// What answers that are asked for ahead on a connection may take of the send rate. Counted in bytes, not in time.
import { once } from 'node:events';
import { connect, type Socket } from 'node:net';
import test from 'ava';
import { CHUNK_BYTES } from './rate.ts';
import { addRootfs, ask, makeTar, noise, serve } from './testkit.ts';

const PIECE = CHUNK_BYTES;

/** Sends requests for ranges of a bundle on one connection without waiting for answers. */
async function pipeline(url: string, path: string, pieces: number): Promise<Socket> {
  const { hostname, port } = new URL(url);
  const socket = connect({ host: hostname, port: Number(port) });
  await once(socket, 'connect');
  const requests = Array.from({ length: pieces }, (_, i) => {
    const range = `bytes=${i * PIECE}-${(i + 1) * PIECE - 1}`;
    return `GET ${path} HTTP/1.1\r\nhost: x\r\nrange: ${range}\r\n\r\n`;
  });
  socket.write(requests.join(''));
  return socket;
}

async function metric(url: string, name: string): Promise<number> {
  const text = (await ask(`${url}/metrics`)).body.toString();
  return Number(new RegExp(`^${name} (\\S+)$`, 'm').exec(text)![1]);
}

test('answers asked for ahead take no part of the rate before their turn', async (t) => {
  // A chunk in a quarter of a second.
  const { url } = await serve(t, { rateBitsPerSecond: CHUNK_BYTES * 8 * 4 });
  await addRootfs(url, 'a', await makeTar({ big: noise(1_000_000, 1) }));
  const { headers } = await ask(`${url}/v1/delta?image=a`, { method: 'HEAD' });
  const path = headers['content-location']!;
  const socket = await pipeline(url, path, 24);
  t.teardown(() => socket.destroy());
  let received = 0;
  socket.on('data', (data: Buffer) => {
    received += data.length;
  });
  await once(socket, 'data');
  const before = await metric(url, 'firstlight_bundle_sent_bytes_total');
  const other = await ask(url + path, { headers: { range: `bytes=0-${2 * PIECE - 1}` } });
  t.is(other.body.length, 2 * PIECE);
  const sent = (await metric(url, 'firstlight_bundle_sent_bytes_total')) - before - 2 * PIECE;
  // Two connections take turns: two or three chunks each. Behind all that was asked for it would be twenty.
  t.true(sent <= 5 * CHUNK_BYTES, `${sent / CHUNK_BYTES} chunks went to the other connection`);
  // And what was asked for comes in its order, whole.
  while (received < 5 * PIECE) await once(socket, 'data');
  t.pass();
});

test('a connection that closes takes its waiting answers with it', async (t) => {
  const { url } = await serve(t, { rateBitsPerSecond: CHUNK_BYTES * 8 * 4 });
  await addRootfs(url, 'a', await makeTar({ big: noise(1_000_000, 1) }));
  const { headers } = await ask(`${url}/v1/delta?image=a`, { method: 'HEAD' });
  const socket = await pipeline(url, headers['content-location']!, 8);
  await once(socket, 'data');
  t.true((await metric(url, 'firstlight_bundle_transfers')) > 1);
  socket.destroy();
  while ((await metric(url, 'firstlight_bundle_transfers')) > 0) {
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
  t.pass();
});
