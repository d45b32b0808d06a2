// What the daemon and the keeper say to each other, and how long waits take; the keeper itself is under test with
// real mounts (test/e2e/snapshotter.test.ts).
import { mkdtemp, rm } from 'node:fs/promises';
import { createServer, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test, { type ExecutionContext } from 'ava';
import { pino } from 'pino';
import type { Toc } from '../delta/toc.ts';
import { OPENS } from '../native/index.ts';
import { ContentStates } from '../tree/content-states.ts';
import { type ContentMarks, Template } from '../tree/template.ts';
import { Keeper } from './keeper.ts';
import { decodeNumbers, encodeNumbers, KEEPER_VERSION, Lines } from './keeper-protocol.ts';
import { WaitTimes } from './waits.ts';

/** Contents 0 and 1 of one part each, 2 of three. */
const TOC = {
  contents: 3,
  parts: 5,
  rows: 4,
  firstPart: (content: number) => content,
  partCount: (content: number) => (content === 2 ? 3 : 1),
  contentOfPart: (part: number) => Math.min(part, 2),
} as unknown as Toc;

/** What a keeper hears, as far as tests look at it. */
interface Told {
  seq: number;
  op: string;
  opens?: number;
  options?: { opens: number };
}

/** A process that listens where a keeper does, and answers hello in its way. */
async function peer(
  t: ExecutionContext,
  path: string,
  answer: (seq: number, op: string, request: Told) => object | object[] | undefined,
) {
  let greeted = 0;
  const open = new Set<Socket>();
  const server = createServer((socket) => {
    open.add(socket);
    socket.once('close', () => open.delete(socket));
    socket.on('error', () => undefined); // `close` follows.
    const lines = new Lines();
    socket.setEncoding('utf8');
    socket.on('data', (chunk: string) => {
      for (const line of lines.take(chunk)) {
        greeted++;
        const request = JSON.parse(line) as Told;
        const messages = [answer(request.seq, request.op, request) ?? []].flat();
        // In one piece, as what is said at one moment arrives.
        socket.write(messages.map((message) => `${JSON.stringify(message)}\n`).join(''));
      }
    });
  });
  await new Promise<void>((resolve) => server.listen(path, resolve));
  t.teardown(() => {
    for (const socket of open) socket.destroy();
    server.close();
  });
  return { open, greeted: () => greeted };
}

test('a keeper of another version is left alone, and one of this version is looked for beside it', async (t) => {
  const directory = await mkdtemp(join(tmpdir(), 'firstlight-keeper-'));
  t.teardown(() => rm(directory, { recursive: true }));
  const path = join(directory, 'keeper.sock');
  const mounts = [{ image: 'sha256:1', mountPoint: '/mnt' }];
  const state = (seq: number, version: number) => ({ seq, result: { version, pid: 1, mounts } });
  const older = await peer(t, path, (seq) => state(seq, 0));
  const said: string[] = [];
  const log = pino({ level: 'error' }, { write: (line: string) => void said.push(line) });
  const options = { socket: path, logFile: join(directory, 'log'), threads: 1, passthrough: true };
  const alone = new Keeper({ ...options, log });
  t.deepEqual(await alone.find(), [], 'what it has mounted is not taken for ours');
  t.is(older.greeted(), 1);
  t.regex(said.join(''), /another version.*restart those containers/);
  await alone.close();

  const own = await peer(t, join(directory, `keeper-${KEEPER_VERSION}.sock`), (seq) =>
    state(seq, KEEPER_VERSION),
  );
  const keeper = new Keeper({ ...options, log });
  t.deepEqual(await keeper.find(), mounts);
  t.is(own.open.size, 1);
  while (older.open.size > 0) await new Promise((resolve) => setTimeout(resolve, 5));
  t.pass('the other one is not held');
  await keeper.close();
});

test('an end that is told before a mount is made is not the end of that mount; one right after it is', async (t) => {
  const directory = await mkdtemp(join(tmpdir(), 'firstlight-keeper-'));
  t.teardown(() => rm(directory, { recursive: true }));
  const path = join(directory, 'keeper.sock');
  const closed = { event: 'closed', image: 'sha256:1' };
  let after: object[] = [];
  await peer(t, path, (seq, op) => {
    if (op === 'hello') return { seq, result: { version: KEEPER_VERSION, pid: 1, mounts: [] } };
    if (op === 'mount') return [closed, { seq, result: {} }, ...after];
    return op === 'end' ? { seq, result: null } : undefined;
  });
  const log = pino({ level: 'silent' });
  const logFile = join(directory, 'log');
  const keeper = new Keeper({ socket: path, logFile, threads: 1, passthrough: true, log });
  const template = { digest: 'sha256:1', places: {}, follow: () => () => undefined };
  let ends = 0;
  const request = {
    mountPoint: '/mnt',
    source: 'sha256:1',
    waitTimeoutMs: 1,
    onClosed: () => ends++,
  };
  const mount = () => keeper.mount(template as never, request as never);
  await mount();
  t.is(ends, 0);
  after = [closed];
  await mount();
  t.is(ends, 1);
  await keeper.close();
});

test('a mount in the keeper is told of opens with the mount and after it, unless they are to stay seen', async (t) => {
  for (const unseenOpens of [true, false]) {
    const directory = await mkdtemp(join(tmpdir(), 'firstlight-keeper-'));
    t.teardown(() => rm(directory, { recursive: true }));
    const path = join(directory, 'keeper.sock');
    const said: unknown[] = [];
    await peer(t, path, (seq, op, request) => {
      if (op === 'opens' || op === 'mount')
        said.push([op, request.opens ?? request.options?.opens]);
      if (op === 'hello') return { seq, result: { version: KEEPER_VERSION, pid: 1, mounts: [] } };
      if (op === 'mount') return { seq, result: {} };
      return op === 'end' ? { seq, result: null } : undefined;
    });
    const log = pino({ level: 'silent' });
    const logFile = join(directory, 'log');
    const options = { socket: path, logFile, threads: 1, passthrough: true, unseenOpens, log };
    const keeper = new Keeper(options);
    const template = { digest: 'sha256:1', places: {}, follow: () => () => undefined };
    const request = { mountPoint: '/mnt', source: 'sha256:1', waitTimeoutMs: 1, onClosed: () => 0 };
    const session = keeper.sessions(template as never, request as never);
    t.true(session.setOpens?.(OPENS.Cached));
    await session.start();
    t.true(session.setOpens?.(OPENS.Unseen));
    // Answered after all that was said before.
    await keeper.close();
    const told = [
      ['mount', OPENS.Cached],
      ['opens', OPENS.Unseen],
    ];
    t.deepEqual(said, unseenOpens ? told : [['mount', OPENS.Seen]]);
  }
});

test('numbers travel as they are', (t) => {
  for (const numbers of [[], [0], [1, 2 ** 32 - 1, 70_000]]) {
    t.deepEqual([...decodeNumbers(encodeNumbers(Uint32Array.from(numbers)))], numbers);
  }
  const view = Uint32Array.from([9, 8, 7]).subarray(1);
  t.deepEqual([...decodeNumbers(encodeNumbers(view))], [8, 7]);
});

test('lines are cut wherever the stream is', (t) => {
  const lines = new Lines();
  t.deepEqual(lines.take('{"a"'), []);
  t.deepEqual(lines.take(':1}\n{}\n{'), ['{"a":1}', '{}']);
  t.deepEqual(lines.take('}\n'), ['{}']);
});

test('whoever follows a template gets the present state and every later mark', (t) => {
  const template = new Template('sha256:1', TOC, undefined);
  template.markReady(Uint32Array.of(0));
  template.markParts(Uint32Array.of(3));
  template.markFailed(Uint32Array.of(1), 28);
  const follower = new ContentStates(TOC);
  const stop = template.follow(follower);
  const same = () => {
    for (const content of [0, 1, 2]) t.is(follower.state(content), template.states.state(content));
  };
  same();
  t.is(follower.failure(1), 28);
  t.true(follower.readable({ content: 2, firstPart: 1, lastPart: 1 }));
  t.false(follower.readable({ content: 2, firstPart: 0, lastPart: 1 }));
  template.clearFailed(Uint32Array.of(1));
  template.markReady(Uint32Array.of(2));
  same();
  stop();
  template.markReady(Uint32Array.of(1));
  t.not(follower.state(1), template.states.state(1));
});

test('parts of a content that is whole are not told: they have no file any more', (t) => {
  const template = new Template('sha256:1', TOC, undefined);
  template.markParts(Uint32Array.of(2, 3, 4));
  template.markReady(Uint32Array.of(2));
  const told: string[] = [];
  const note = (what: string) => (numbers: Uint32Array) => told.push(`${what} ${[...numbers]}`);
  const marks: ContentMarks = {
    forget: note('forget'),
    markReady: note('ready'),
    markParts: note('parts'),
    markFailed: note('failed'),
    clearFailed: note('clear'),
  };
  template.follow(marks);
  t.deepEqual(told, ['forget 0,1', 'ready 2']);
});

test('who waits in a keeper counts among those who wait for the image, until its mount ends', async (t) => {
  const directory = await mkdtemp(join(tmpdir(), 'firstlight-keeper-'));
  t.teardown(() => rm(directory, { recursive: true }));
  const path = join(directory, 'keeper.sock');
  const image = 'sha256:1';
  const stats = { event: 'stats', image, stats: {} };
  const keeperPeer = await peer(t, path, (seq, op) => {
    if (op === 'hello') return { seq, result: { version: KEEPER_VERSION, pid: 1, mounts: [] } };
    if (op === 'mount')
      return [
        { seq, result: {} },
        { ...stats, waiting: 3 },
      ];
    if (op === 'unmount') return [{ seq, result: null }, stats];
    return op === 'end' ? { seq, result: null } : undefined;
  });
  const log = pino({ level: 'silent' });
  const logFile = join(directory, 'log');
  const keeper = new Keeper({ socket: path, logFile, threads: 1, passthrough: true, log });
  const template = new Template(image, TOC, undefined, undefined, {} as never);
  const request = { mountPoint: '/mnt', source: image, waitTimeoutMs: 1, onClosed: () => {} };
  await keeper.mount(template, request as never);
  t.is(template.waiting(), 3);
  // A keeper of before says nothing of it.
  await keeper.unmount(image, '/mnt', false);
  t.is(template.waiting(), 0);
  t.is(keeperPeer.open.size, 1);
  await keeper.close();
});

test('a wait is over with its last part, counted once, and not at all where it fails', (t) => {
  const template = new Template('sha256:1', TOC, undefined);
  const waited: number[] = [];
  const waits = new WaitTimes(template, (seconds) => waited.push(seconds));
  waits.wanted(2, 0, 1);
  waits.wanted(2, 0, 1);
  template.markParts(Uint32Array.of(2));
  t.is(waited.length, 0);
  template.markParts(Uint32Array.of(3));
  t.is(waited.length, 1);
  t.true(waited[0]! >= 0 && waited[0]! < 60);
  waits.wanted(1, 0, 0);
  template.markFailed(Uint32Array.of(1), 5);
  template.clearFailed(Uint32Array.of(1));
  template.markReady(Uint32Array.of(1));
  t.is(waited.length, 1);
  waits.wanted(1, 0, 0);
  t.is(waited.length, 2, 'what is there already is no wait at all');
  waits.stop();
});
