// kill -9 of a process that receives, at moments that nobody chose, and damage to what it left.
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { appendFile, chmod, open, readdir, readFile, truncate, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import test, { type ExecutionContext } from 'ava';
import {
  type EncodedImage,
  encode,
  FaultyServer,
  makeImage,
  noise,
  scratch,
  someFiles,
} from '../../test/receive/fixture.ts';
import { assertWhole } from '../../test/receive/stage.ts';
import { PREAMBLE_BYTES } from '../delta/bundle.ts';
import { decodeHeader } from '../delta/bundle-decode.ts';

const CHILD = new URL('../../test/receive/child.ts', import.meta.url).pathname;
const HEX64 = /^[0-9a-f]{64}$/;
const PARTIAL = /^[0-9a-f]{32}\.\d+$/;
/** What may be fetched twice after a kill: read but not stored (16 MiB bound), far less here. */
const IN_FLIGHT_BYTES = 4 << 20;
const SIZES = [5, 70_000, 20_000, 250_000, 1_300_000, 12, 5_000_000, 3000, 900_000];
const FILES = {
  ...someFiles('kill', [...SIZES, ...SIZES.map((n) => n + 1)]),
  ...Object.fromEntries(
    Array.from({ length: 300 }, (_, i) => [`many/${i}`, noise(`many ${i}`, 8000)]),
  ),
};

function start(t: ExecutionContext, root: string, server: string, ref: string) {
  const child = spawn(process.execPath, [CHILD, root, server, ref], {
    stdio: ['ignore', 'pipe', 'pipe'],
    env: { ...process.env, FIRSTLIGHT_LOG: 'warn' },
  });
  let out = '';
  let err = '';
  child.stdout.on('data', (chunk) => (out += chunk));
  child.stderr.on('data', (chunk) => (err += chunk));
  t.teardown(() => child.kill('SIGKILL'));
  const exited = once(child, 'exit');
  return { child, exited, out: () => out, err: () => err };
}

async function said(process: { child: ChildProcess; out(): string; err(): string }, word: string) {
  for (let i = 0; i < 3000 && !process.out().includes(word); i++) {
    if (process.child.exitCode !== null) throw new Error(`child ended: ${process.err()}`);
    await sleep(5);
  }
  if (!process.out().includes(word)) throw new Error(`no "${word}": ${process.err()}`);
}

test('twenty times kill -9, anywhere in a transfer', async (t) => {
  t.timeout(120_000);
  const image = makeImage('kill', FILES);
  const bundle = await encode(image);
  const root = await scratch(t);
  const server = await FaultyServer.start(t);
  server.serve(image, bundle);
  // Six seconds for the whole: no round gets to the end.
  server.fault = () => ({ rate: 3_000_000 });
  const done: number[] = [];
  for (let kills = 0; kills < 20; kills++) {
    const run = start(t, root, server.url, image.digest);
    // Every fourth one dies while it starts, the others while frames come.
    if (kills % 4 === 3) await sleep(50 + ((kills * 389) % 500));
    else {
      await said(run, 'frames');
      done.push(Number(/open (\d+)/.exec(run.out())?.[1]));
      await sleep((kills * 37) % 150);
    }
    run.child.kill('SIGKILL');
    await run.exited;
    t.is(run.child.signalCode, 'SIGKILL', run.err());
  }
  server.fault = () => undefined;
  const last = start(t, root, server.url, image.digest);
  await last.exited;
  t.is(last.child.exitCode, 0, last.err());
  await assertWhole(t, root, image);
  t.deepEqual(
    done,
    [...done].sort((a, b) => a - b),
    'no round knows less than the one before',
  );
  t.true(done.at(-1)! >= done.length - 1);
  const headers = server.requests.filter(({ path }) => path === '/v1/delta').length;
  t.true(headers <= 2, 'a header is asked for until it is stored, and never again');
  t.log(
    `frames done at each start: ${done.join(' ')}; ${server.sentBytes} of ${bundle.bytes.length} bytes`,
  );
});

test('after a kill the header is not asked for again, and of the frames only those in flight', async (t) => {
  const image = makeImage('flight', FILES);
  const bundle = await encode(image);
  const root = await scratch(t);
  const server = await FaultyServer.start(t);
  server.serve(image, bundle);
  const stallAfter = Math.floor(bundle.bytes.length * 0.7);
  server.fault = (_, index) => (index === 0 ? { stallAfter } : undefined);
  const first = start(t, root, server.url, image.digest);
  await said(first, `frames ${framesBefore(bundle, stallAfter)}\n`);
  first.child.kill('SIGKILL');
  await first.exited;
  const second = start(t, root, server.url, image.digest);
  await second.exited;
  t.is(second.child.exitCode, 0, second.err());
  t.is(server.requests.filter(({ path }) => path === '/v1/delta').length, 1);
  const again = Number(/complete (\d+)/.exec(second.out())?.[1]);
  const missing = bundle.bytes.length - stallAfter;
  t.true(again >= missing && again <= missing + (1 << 20), `${again} bytes for ${missing} missing`);
  await assertWhole(t, root, image);
});

/** Number of frames that a server sends whole before it stalls. */
function framesBefore(bundle: EncodedImage, stallAfter: number): number {
  const preamble = bundle.bytes.subarray(0, PREAMBLE_BYTES);
  const { frames } = decodeHeader(
    preamble,
    bundle.bytes.subarray(PREAMBLE_BYTES, bundle.headerBytes),
  );
  return frames.filter((frame) => frame.offset + frame.bytes <= stallAfter).length;
}

test('leftovers that were damaged, cut or made up are dropped, and fetched again', async (t) => {
  const image = makeImage('damage', FILES);
  const root = await scratch(t);
  const server = await FaultyServer.start(t);
  const bundle = await encode(image);
  server.serve(image, bundle);
  const stallAfter = Math.floor(bundle.bytes.length * 0.6);
  server.fault = (_, index) => (index === 0 ? { stallAfter } : undefined);
  const first = start(t, root, server.url, image.digest);
  await said(first, `frames ${framesBefore(bundle, stallAfter)}\n`);
  first.child.kill('SIGKILL');
  await first.exited;
  const incoming = join(root, 'incoming');
  const names = await readdir(incoming);
  // Not the largest: what is damaged is fetched again with the frames it was in.
  const small = (name: string) => {
    const bytes = image.contents.get(name)?.length ?? 0;
    return bytes > 10 && bytes < 300_000;
  };
  const whole = names.filter((name) => HEX64.test(name) && small(name));
  const partial = names.filter((name) => PARTIAL.test(name));
  t.true(whole.length >= 4 && partial.length > 0, names.join());
  // One byte wrong, one cut short, one longer, one empty; parts of a large one overwritten.
  for (const name of whole.slice(0, 4)) await chmod(join(incoming, name), 0o644);
  const bytes = await readFile(join(incoming, whole[0]!));
  bytes[bytes.length - 1]! ^= 1;
  await writeFile(join(incoming, whole[0]!), bytes);
  await truncate(join(incoming, whole[1]!), 3);
  await appendFile(join(incoming, whole[2]!), 'x');
  await truncate(join(incoming, whole[3]!), 0);
  const large = await open(join(incoming, partial[0]!), 'r+');
  await large.write(Buffer.from('damage'), 0, 6, 100);
  await large.close();
  await writeFile(join(incoming, 'f'.repeat(64)), 'not what it says');
  await writeFile(join(incoming, `${'a'.repeat(32)}.0`), 'of no image');
  await writeFile(join(incoming, 'rubbish'), 'rubbish');
  const second = start(t, root, server.url, image.digest);
  await second.exited;
  t.is(second.child.exitCode, 0, second.err());
  t.is(server.requests.filter(({ path }) => path === '/v1/delta').length, 1);
  const again = Number(/complete (\d+)/.exec(second.out())?.[1]);
  t.true(again < bundle.bytes.length - stallAfter + IN_FLIGHT_BYTES, `${again} bytes again`);
  await assertWhole(t, root, image);
});
