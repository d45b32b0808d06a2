// The keeper's process, spoken to as a daemon does: what it tells one that comes after another. What does not live
// here: the daemon's end (src/snapshots/keeper.test.ts), and both under containerd (test/e2e/snapshotter.test.ts).
import { copyFile, mkdir, open, readdir, readFile, rename, rm, writeFile } from 'node:fs/promises';
import { createConnection, type Socket } from 'node:net';
import { join } from 'node:path';
import test from 'ava';
import { pino } from 'pino';
import { PART_BYTES } from '../../src/delta/toc-layout.ts';
import { OPENS } from '../../src/native/index.ts';
import { Keeper } from '../../src/snapshots/keeper.ts';
import {
  encodeNumbers,
  type KeeperMessage,
  type KeeperRequest,
  type KeptMountOptions,
  Lines,
} from '../../src/snapshots/keeper-protocol.ts';
import { tryConnect } from '../../src/snapshots/keeper-socket.ts';
import type { SessionRequest } from '../../src/tree/session.ts';
import { Template } from '../../src/tree/template.ts';
import { Actor } from './actor.ts';
import { Fixture, Tree, until } from './fixture.ts';

const KEEPER = new URL('../../src/snapshots/keeper-main.ts', import.meta.url).pathname;
const IMAGE = 'sha256:1';

/** A daemon's connection, with all that it has heard. */
class Daemon {
  readonly heard: KeeperMessage[] = [];
  readonly #socket: Socket;

  constructor(socket: Socket) {
    this.#socket = socket;
    const lines = new Lines();
    socket.setEncoding('utf8');
    socket.on('data', (chunk: string) => {
      for (const line of lines.take(chunk)) this.heard.push(JSON.parse(line) as KeeperMessage);
    });
  }

  static async connect(path: string): Promise<Daemon> {
    await until('the keeper listens', async () => {
      const socket = await tryConnect(path);
      socket?.destroy();
      return socket !== undefined;
    });
    return new Daemon(createConnection(path));
  }

  say(request: KeeperRequest): void {
    this.#socket.write(`${JSON.stringify(request)}\n`);
  }

  answered(seq: number): Promise<void> {
    return until(`answer ${seq}`, async () =>
      this.heard.some((message) => 'seq' in message && message.seq === seq && 'result' in message),
    );
  }

  /** True where it has heard that opens are unseen. */
  get isUnseen(): boolean {
    return this.heard.some(
      (message) => 'event' in message && message.event === 'stats' && message.stats.opensUnseen,
    );
  }

  close(): void {
    this.#socket.destroy();
  }
}

/** A keeper for the contents of a fixture, and how a daemon is to have them mounted. */
function startKeeper(fixture: Fixture) {
  const socket = join(fixture.dir, 'keeper.sock');
  // Under a sanitizer who loads the addon has its runtime preloaded.
  const preload = process.env.FIRSTLIGHT_TEST_PRELOAD;
  const sanitizer = preload === undefined ? [] : [`LD_PRELOAD=${preload}`];
  fixture.start('env', ...sanitizer, process.execPath, KEEPER, socket);
  const places = {
    tocPath: join(fixture.dir, 'toc'),
    digestsPath: join(fixture.dir, 'digests'),
    contentDir: join(fixture.dir, 'content'),
    incomingDir: join(fixture.dir, 'incoming'),
    partialPrefix: fixture.partialPrefix,
  };
  return { socket, places, mountPoint: join(fixture.dir, 'mnt') };
}

test('a daemon that finds a mount is told its counters, though nothing has changed since', async (t) => {
  const tree = new Tree();
  tree.file('small', 'small content');
  const fixture = await Fixture.make(t, tree);
  await fixture.storeAll();
  const { socket, places, mountPoint } = startKeeper(fixture);
  const options: KeptMountOptions = {
    mountPoint,
    source: IMAGE,
    threads: 1,
    waitTimeoutMs: 300_000,
    passthrough: true,
    opens: OPENS.Unseen,
  };
  const mount = async (daemon: Daemon) => {
    daemon.say({ op: 'hello', seq: 1 });
    await daemon.answered(1);
    daemon.say({ op: 'open', image: IMAGE, places });
    const numbers = encodeNumbers(Uint32Array.of(0));
    daemon.say({ op: 'mark', image: IMAGE, what: 'ready', numbers });
    // What is told before is told to nobody: the daemon does not know the mount yet.
    daemon.heard.length = 0;
    daemon.say({ op: 'mount', seq: 2, image: IMAGE, options });
    await daemon.answered(2);
  };
  const first = await Daemon.connect(socket);
  await mount(first);
  t.is(await readFile(`${options.mountPoint}/small`, 'utf8'), 'small content');
  await until('the counters', async () => first.isUnseen);
  first.close();
  const second = await Daemon.connect(socket);
  await mount(second);
  await until('the counters', async () => second.isUnseen);
  second.close();
  t.pass();
});

/** Daemons one after the other, each with what it finds in the store. */
async function daemonsOf(fixture: Fixture) {
  const { socket, places, mountPoint } = startKeeper(fixture);
  await until('the keeper listens', async () => {
    const connection = await tryConnect(socket);
    connection?.destroy();
    return connection !== undefined;
  });
  const wants: number[] = [];
  const request: SessionRequest = {
    mountPoint,
    source: IMAGE,
    waitTimeoutMs: 300_000,
    onWanted: (content) => wants.push(content),
    onTimeout: () => undefined,
    onClosed: () => undefined,
  };
  const next = async (found: (template: Template) => void, toc = fixture.toc) => {
    const template = new Template(IMAGE, toc, undefined, places.digestsPath, places);
    found(template);
    const logFile = join(fixture.dir, 'keeper.log');
    const log = pino({ level: 'silent' });
    const keeper = new Keeper({ socket, logFile, threads: 1, passthrough: true, log });
    await keeper.mount(template, request);
    return { template, keeper };
  };
  return { next, wants, mountPoint };
}

const numbers = (...list: number[]) => Uint32Array.from(list);

/** What was said to the keeper has been done: it does one thing after the other, and answers this last. */
const heard = (keeper: Keeper) => keeper.unmount('of nothing', '', false);

test('a content that has gone from the store while no daemon was there is fetched again', async (t) => {
  const tree = new Tree();
  tree.file('gone', 'what was there');
  tree.file('stays', 'what stays');
  const fixture = await Fixture.make(t, tree);
  const [gone, stays] = [fixture.content('gone'), fixture.content('stays')];
  await fixture.store([gone, stays]);
  const { next, wants, mountPoint } = await daemonsOf(fixture);
  const first = await next((template) => template.markReady(numbers(gone, stays)));
  const actor = await Actor.start(fixture);
  await actor.open(`${mountPoint}/stays`);
  await first.keeper.close();
  const digest = fixture.digest(gone);
  await rm(join(fixture.dir, 'content', digest.slice(0, 2), digest.slice(2)));

  const second = await next((template) => template.markReady(numbers(stays)));
  t.is(await readFile(`${mountPoint}/stays`, 'utf8'), 'what stays');
  actor.tell(`open ${mountPoint}/gone`);
  await until('the second daemon hears of the reader', async () => wants.includes(gone));
  await fixture.store([gone]);
  second.template.markReady(numbers(gone));
  const fd = Number((await actor.answer()).slice(3));
  t.is((await actor.pread(fd, 0, 14)).toString(), 'what was there');
  await second.keeper.close();
});

test('parts that a daemon had begun again are not read as holes after the next one has given up and tried again', async (t) => {
  const tree = new Tree();
  const large = Buffer.alloc(3 * PART_BYTES, 'large');
  tree.file('large', large);
  const fixture = await Fixture.make(t, tree);
  const content = fixture.content('large');
  const part = fixture.toc.firstPart(content);
  const partial = join(fixture.dir, 'incoming', `${fixture.partialPrefix}.${content}`);
  const { next, wants, mountPoint } = await daemonsOf(fixture);
  await writeFile(partial, large.subarray(0, PART_BYTES));
  const first = await next((template) => template.markParts(numbers(part)));
  const actor = await Actor.start(fixture);
  const fd = await actor.open(`${mountPoint}/large`);
  t.deepEqual(await actor.pread(fd, 0, 5), large.subarray(0, 5));
  // As the receiver does where the digests of the parts disagree; then it is killed.
  await rm(partial);
  first.template.forget(numbers(content));
  first.template.markFailed(numbers(content), 5);
  await first.keeper.close();

  const second = await next(() => undefined);
  second.template.markFailed(numbers(content), 5);
  second.template.clearFailed(numbers(content));
  const file = await open(partial, 'w');
  await file.write(large.subarray(PART_BYTES, 2 * PART_BYTES), 0, PART_BYTES, PART_BYTES);
  await file.close();
  second.template.markParts(numbers(part + 1));
  await heard(second.keeper);
  t.deepEqual(await actor.pread(fd, PART_BYTES, 5), large.subarray(PART_BYTES, PART_BYTES + 5));
  actor.tell(`pread ${fd} 0 5`);
  await until('the first part is asked for', async () => wants.includes(content));
  await writeFile(partial, large);
  second.template.markParts(numbers(part, part + 2));
  t.is(await actor.answer(), `bytes ${large.subarray(0, 5).toString('hex')}`);
  await second.keeper.close();
});

test('an image that was dropped from the store and fetched again is read through the mount that it had', async (t) => {
  const tree = new Tree();
  tree.file('early', 'there from the start');
  tree.file('late', 'there when the image has come again');
  const fixture = await Fixture.make(t, tree);
  const [early, late] = [fixture.content('early'), fixture.content('late')];
  const digests = join(fixture.dir, 'digests');
  const whole = await readFile(digests);
  const known = Buffer.from(whole);
  known.fill(0, late * 32, late * 32 + 32);
  await writeFile(digests, known);
  await fixture.store([early]);
  const { next, wants, mountPoint } = await daemonsOf(fixture);
  const first = await next((template) => template.markReady(numbers(early)));
  t.is(await readFile(`${mountPoint}/early`, 'utf8'), 'there from the start');
  const actor = await Actor.start(fixture);
  actor.tell(`open ${mountPoint}/late`);
  await until('it is waited for', async () => wants.includes(late));
  await first.keeper.close();

  for (const gone of ['digests', 'toc', 'content', 'incoming']) {
    await rename(join(fixture.dir, gone), join(fixture.dir, `${gone}.old`));
  }
  await copyFile(join(fixture.dir, 'toc.old'), join(fixture.dir, 'toc'));
  for (const made of ['content', 'incoming']) await mkdir(join(fixture.dir, made));
  await writeFile(digests, whole);
  const second = await next(() => undefined);
  await fixture.storeAll();
  second.template.markReady(numbers(early, late));
  const fd = Number((await actor.answer()).slice(3));
  t.is((await actor.pread(fd, 0, 5)).toString(), 'there');
  t.is(await readFile(`${mountPoint}/late`, 'utf8'), 'there when the image has come again');
  await rm(join(fixture.dir, 'content.old'), { recursive: true });
  t.is(await readFile(`${mountPoint}/early`, 'utf8'), 'there from the start');
  await second.keeper.close();
});

test('an image that was fetched again with another table of contents gets a mount of its own', async (t) => {
  const tree = new Tree();
  tree.file('b', 'of the first');
  tree.file('never', Buffer.alloc(2 * PART_BYTES, 'x'));
  const fixture = await Fixture.make(t, tree);
  const [known, never] = [fixture.content('b'), fixture.content('never')];
  await fixture.store([known]);
  const { next, wants, mountPoint } = await daemonsOf(fixture);
  const first = await next((template) => template.markReady(numbers(known)));
  const actor = await Actor.start(fixture);
  const fd = await actor.open(`${mountPoint}/b`);
  const waits = await Actor.start(fixture);
  const arriving = await waits.open(`${mountPoint}/never`);
  await first.keeper.close();

  // Its contents have other numbers.
  tree.file('a', 'what the other table has besides');
  const other = await Fixture.make(t, tree);
  t.not(other.content('b'), known);
  for (const name of ['toc', 'digests']) {
    await copyFile(join(other.dir, name), join(fixture.dir, `${name}.new`));
    await rename(join(fixture.dir, `${name}.new`), join(fixture.dir, name));
  }
  await rm(join(fixture.dir, 'content'), { recursive: true });
  await rename(join(other.dir, 'content'), join(fixture.dir, 'content'));
  const second = await next(() => undefined, other.toc);
  waits.tell(`pread ${arriving} 0 5`);
  const partial = (of: Fixture) =>
    join(fixture.dir, 'incoming', `${fixture.partialPrefix}.${of.content('never')}`);
  // A file of the new numbering where one of the old would be looked for.
  await writeFile(partial(fixture), Buffer.alloc(2 * PART_BYTES, 'y'));
  const part = fixture.toc.firstPart(never);
  second.template.markParts(numbers(part, part + 1).map((at) => at % other.toc.parts));
  await heard(second.keeper);
  t.is((await actor.pread(fd, 0, 12)).toString(), 'of the first');
  const names = (await readdir(mountPoint)).sort();
  t.deepEqual(names, ['a', 'b', 'never']);
  t.deepEqual(wants, []);
  t.false(waits.program.out.includes('bytes'), 'nothing of the new table is for the old one');
  await second.keeper.close();
});
