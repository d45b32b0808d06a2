// A server that sends damaged bundles: the worker says what is wrong, and its store stays as it was.
// The decoder itself is tested beside its code, byte by byte; here it is the whole way to the mount.
import { createHash } from 'node:crypto';
import { once } from 'node:events';
import { readFile } from 'node:fs/promises';
import { createServer, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { join } from 'node:path';
import test, { type ExecutionContext } from 'ava';
import { must, run, until } from '../lib/proc.ts';
import { type SmallImage, smallImage } from '../lib/small-image.ts';
import { Stage } from '../lib/stage.ts';

/** A bundle as a server sent it: body and headers. */
interface Captured {
  body: Buffer;
  headers: Record<string, string>;
  /** Preamble and header: what comes before the frames. */
  headBytes: number;
}

interface World {
  stage: Stage;
  image: SmallImage;
  good: Captured;
  /** What the hostile server sends from now on. */
  send(body: Buffer): void;
}

async function world(t: ExecutionContext<unknown>): Promise<World> {
  const stage = await Stage.open(t);
  const image = await smallImage(stage.dir);
  const server = await stage.serve();
  await stage.addImage(`rootfs:${image.tar}`, 'small:1');
  const good = await capture(server.url);
  let body = good.body;
  const hostile = createServer((request, response) => {
    const range = /^bytes=(\d+)-(\d*)$/.exec(request.headers.range ?? '');
    const { headers } = good;
    if (range === null) {
      response.writeHead(200, { ...headers, 'content-length': body.length }).end(body);
      return;
    }
    const first = Number(range[1]);
    const last = range[2] === '' ? body.length - 1 : Math.min(Number(range[2]), body.length - 1);
    response.writeHead(206, {
      ...headers,
      'content-length': last - first + 1,
      'content-range': `bytes ${first}-${last}/${body.length}`,
    });
    response.end(body.subarray(first, last + 1));
  });
  stage.env.FIRSTLIGHT_SERVER = await listen(stage, hostile);
  return {
    stage,
    image,
    good,
    send: (next) => {
      body = next;
    },
  };
}

async function capture(url: string): Promise<Captured> {
  const response = await fetch(`${url}/v1/delta?image=small:1&platform=linux/amd64`);
  if (!response.ok) throw new Error(`${response.status}: ${await response.text()}`);
  const body = Buffer.from(await response.arrayBuffer());
  const headers: Record<string, string> = {};
  for (const name of [
    'content-type',
    'content-location',
    'etag',
    'accept-ranges',
    'docker-content-digest',
  ]) {
    const value = response.headers.get(name);
    if (value !== null) headers[name] = value;
  }
  const { parsePreamble } = await import('../../src/delta/bundle-decode.ts');
  const { PREAMBLE_BYTES } = await import('../../src/delta/bundle.ts');
  const { headerBytes } = parsePreamble(body.subarray(0, PREAMBLE_BYTES));
  return { body, headers, headBytes: PREAMBLE_BYTES + headerBytes };
}

async function listen(stage: Stage, server: Server): Promise<string> {
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  stage.onClose(async () => {
    server.closeAllConnections();
    server.close();
  });
  return `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
}

/** Every file of the store that holds images or contents. */
async function storeFiles(stage: Stage): Promise<string> {
  const script =
    'for d in content images incoming; do [ ! -d "$d" ] || find "$d" -type f; done | sort';
  return must('sh', ['-c', script], { cwd: stage.root });
}

test('a bundle whose head is damaged or cut is refused, and the store stays as it was', async (t) => {
  const { stage, good, send } = await world(t);
  const dir = await stage.mountPoint();
  // The daemon runs and its directories are made before the store is looked at.
  await stage.run(['gc']);
  const before = await storeFiles(stage);
  const damaged: [string, Buffer][] = [];
  for (const at of [0, 8, 10, 12, 20, 40, 60, 95, 96, 200, good.headBytes - 1]) {
    const body = Buffer.from(good.body);
    body[at]! ^= 0x40;
    damaged.push([`byte ${at} changed`, body]);
  }
  for (const length of [0, 1, 95, 96, 500, good.headBytes - 1]) {
    damaged.push([`cut to ${length} bytes`, good.body.subarray(0, length)]);
  }
  damaged.push(['no bundle at all', Buffer.from('<html>captive portal</html>'.repeat(100))]);
  for (const [what, body] of damaged) {
    send(body);
    const ended = await stage.run(['mount', 'small:1', dir]);
    // Damaged; of a version that this release does not know; or ended before its end.
    const clear: Record<number, RegExp> = {
      9: /bundle|answer/,
      12: /version|flag/,
      4: /too early/,
    };
    t.regex(ended.stderr, clear[ended.code ?? -1] ?? /^$/, `${what}: exit code ${ended.code}`);
    t.is(ended.stderr.trim().split('\n').length, 1, `${what}: one line, not ${ended.stderr}`);
    t.deepEqual((await stage.status()).mounts, [], what);
  }
  t.is(await storeFiles(stage), before);
  send(good.body);
  await stage.must(['mount', 'small:1', dir, '--wait']);
});

test('a frame that is damaged gives no wrong byte, and is fetched again when the server is mended', async (t) => {
  const { stage, image, good, send } = await world(t);
  const body = Buffer.from(good.body);
  // One byte in each hundred thousand: hardly a frame is whole.
  for (let at = good.headBytes + 5000; at < body.length; at += 100_000) body[at]! ^= 1;
  send(body);
  const dir = await stage.mount('small:1', ['--rw', 'off', '--wait-timeout', '2s']);
  for (const path of [image.large, image.medium, image.small[50]!]) {
    const read = await run('cat', [join(dir, path)], { timeoutMs: 120_000 });
    const sha256 = createHash('sha256').update(read.stdout).digest('hex');
    t.true(read.code !== 0 || sha256 === image.files.get(path)!.sha256, path);
  }
  const log = await readFile(join(stage.root, 'daemon.log'), 'utf8');
  t.regex(log, /frame/, 'the log names what is damaged');
  const { transfer } = await until('the transfer is given up', async () => {
    const status = await stage.mountStatus(dir);
    return status.transfer.state === 'failed' ? status : undefined;
  });
  t.true(transfer.bytesDone < transfer.bytes);
  t.truthy(transfer.error);

  send(good.body);
  await stage.must(['umount', dir]);
  await stage.must(['mount', 'small:1', dir, '--rw', 'off', '--wait']);
  const whole = await run('cat', [join(dir, image.large)]);
  t.is(
    createHash('sha256').update(whole.stdout).digest('hex'),
    image.files.get(image.large)!.sha256,
  );
  t.deepEqual((await stage.json<{ damaged: string[] }>(['verify'])).damaged, []);
});
