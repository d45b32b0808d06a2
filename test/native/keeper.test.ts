// The keeper's process, spoken to as a daemon does: what it tells one that comes after another. What does not live
// here: the daemon's end (src/snapshots/keeper.test.ts), and both under containerd (test/e2e/snapshotter.test.ts).
import { readFile } from 'node:fs/promises';
import { createConnection, type Socket } from 'node:net';
import { join } from 'node:path';
import test from 'ava';
import { OPENS } from '../../src/native/index.ts';
import {
  encodeNumbers,
  type KeeperMessage,
  type KeeperRequest,
  type KeptMountOptions,
  Lines,
} from '../../src/snapshots/keeper-protocol.ts';
import { tryConnect } from '../../src/snapshots/keeper-socket.ts';
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

test('a daemon that finds a mount is told its counters, though nothing has changed since', async (t) => {
  const tree = new Tree();
  tree.file('small', 'small content');
  const fixture = await Fixture.make(t, tree);
  await fixture.storeAll();
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
  const options: KeptMountOptions = {
    mountPoint: join(fixture.dir, 'mnt'),
    source: IMAGE,
    threads: 1,
    waitTimeoutMs: 20_000,
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
