// Where commands send what is secret: below the URL of the server and nowhere else, with a word where it goes in plain.
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import test from 'ava';
import { API } from '../delta/protocol.ts';
import type { Context } from './context.ts';
import { askServer, imagePath } from './server-client.ts';
import { Settings } from './settings.ts';
import { warnOfPlainText } from './token.ts';

test('a server below a path is asked there, and what stands beside it is not', async (t) => {
  const seen: (string | undefined)[] = [];
  const server = createServer((request, response) => {
    seen.push(request.url);
    response.end('{}');
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  t.teardown(() => server.closeAllConnections());
  t.teardown(() => server.close());
  const origin = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
  const { signal } = new AbortController();
  for (const [prefix, expected] of [
    ['', ''],
    ['/', ''],
    ['/delta', '/delta'],
    ['/a/delta/', '/a/delta'],
  ]) {
    seen.length = 0;
    const path = imagePath(API.images, 'host:5000/app:1');
    const body = await askServer(origin + prefix, path, { query: { platform: 'a/b' }, signal });
    await body.dump();
    t.deepEqual(seen, [`${expected}/v1/images/host:5000/app:1?platform=a%2Fb`], prefix);
  }
});

test('a secret that leaves the machine unencrypted is told of, whatever the name begins with', async (t) => {
  for (const [server, told] of [
    ['http://localhost:7070', 0],
    ['http://127.0.0.1:7070', 0],
    ['http://[::1]:7070', 0],
    ['https://delta.example.com', 0],
    ['http://delta.example.com', 1],
    ['http://localhost.example.com:7070', 1],
    ['http://127.example.com', 1],
  ] as const) {
    const notes: string[] = [];
    const settings = await Settings.load({ server }, { HOME: '/nonexistent' });
    const context = { settings, note: (line: string) => notes.push(line) } as unknown as Context;
    // Each secret is told of once: here it is another one each time.
    warnOfPlainText(context, `the token for ${server}`);
    warnOfPlainText(context, `the token for ${server}`);
    t.is(notes.length, told, server);
  }
});
