// `make demo`: a real image (Debian's redis-server), a server at 100 Mbit/s, a container, and a clock.
// Prints what happened when for people, and as its last line the same as one JSON object. Fails
// where redis did not answer before the image was all there. All of it happens in a temporary
// directory that is gone afterwards, also after Ctrl-C.
import { type AddressInfo, connect, createServer } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import type { MountStatus } from '../src/daemon/control.ts';
import { testImage } from '../test/lib/images.ts';
import { type Background, until } from '../test/lib/proc.ts';
import { Stage } from '../test/lib/stage.ts';

/** Tests on a busy machine have it slower. */
const RATE = process.env.DEMO_RATE ?? '100mbit';
const IMAGE = 'redis:demo';
const GIVE_UP_MS = 120_000;

/** Milliseconds since the `run` command was started; bytes of the bundle, header included. */
interface Timeline {
  header_ms: number;
  mounted_ms: number;
  first_read_ms: number;
  ready_ms: number;
  last_frame_ms: number;
  bytes_ready: number;
  bytes_all: number;
}

/** A TCP port of the loopback address that nobody listens on. */
async function freePort(): Promise<number> {
  const server = createServer();
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const { port } = server.address() as AddressInfo;
  await new Promise((resolve) => server.close(resolve));
  return port;
}

/** One try: true where redis answers PONG. */
function ping(port: number): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect({ host: '127.0.0.1', port, noDelay: true });
    const end = (answer: boolean) => {
      socket.destroy();
      resolve(answer);
    };
    socket.setTimeout(1000, () => end(false));
    socket.once('connect', () => socket.write('PING\r\n'));
    socket.once('data', (data) => end(data.toString('latin1').startsWith('+PONG')));
    // Nobody listens yet: that is what is asked.
    socket.once('error', () => end(false));
    socket.once('end', () => end(false));
  });
}

/** Milliseconds since 1970 of the first PONG. */
async function firstPong(port: number, container: Background): Promise<number> {
  const end = Date.now() + GIVE_UP_MS;
  while (!(await ping(port))) {
    if (!container.running) throw new Error(`the container ended: ${container.stderr}`);
    if (Date.now() > end) throw new Error(`no PONG within ${GIVE_UP_MS} ms: ${container.stderr}`);
    await sleep(1);
  }
  return Date.now();
}

/** The one mount of the stage. */
async function onlyMount(stage: Stage): Promise<MountStatus> {
  const { mounts } = await stage.status();
  if (mounts.length !== 1) throw new Error(`expected one mount, found ${mounts.length}`);
  return mounts[0]!;
}

/** Runs redis from the served image and keeps the time. */
async function measure(stage: Stage): Promise<Timeline> {
  const port = await freePort();
  const start = Date.now();
  const container = stage.start([
    ...['run', IMAGE, '--runtime', 'runc', '--'],
    ...['redis-server', '--port', String(port), '--bind', '127.0.0.1', '--save', ''],
  ]);
  stage.onClose(async () => void (await container.kill('SIGTERM')));
  const readyAt = await firstPong(port, container);
  const atReady = await onlyMount(stage);
  const done = await until(
    'the last frame arrives',
    async () => {
      const mount = await onlyMount(stage);
      return mount.transfer.state === 'complete' && mount.lastFrameAt !== null ? mount : undefined;
    },
    { timeoutMs: GIVE_UP_MS, everyMs: 200 },
  );
  const since = (at: number | null) => {
    if (at === null) throw new Error('the daemon did not note when that happened');
    return at - start;
  };
  return {
    header_ms: since(done.headerAt),
    mounted_ms: since(done.mountedAt),
    first_read_ms: since(done.firstReadAt),
    ready_ms: readyAt - start,
    last_frame_ms: since(done.lastFrameAt),
    bytes_ready: atReady.headerBytes + atReady.bytesDone,
    bytes_all: done.headerBytes + done.bytes,
  };
}

const mb = (bytes: number) => `${(bytes / 1e6).toFixed(1)} MB`;

/** The timeline for people. */
function print(time: Timeline): void {
  const rows: [string, number, string][] = [
    ['header in', time.header_ms, 'every name and attribute of the image is known'],
    ['mounted', time.mounted_ms, 'the tree is usable'],
    ['first byte read', time.first_read_ms, 'by the container'],
    ['redis answers PING', time.ready_ms, `${mb(time.bytes_ready)} of ${mb(time.bytes_all)} in`],
    ['last frame in', time.last_frame_ms, 'the whole image is here'],
  ];
  const widest = Math.max(...rows.map(([, ms]) => ms), 1);
  console.log(`\n$ firstlight run ${IMAGE}     (server at ${RATE.replace('mbit', ' Mbit/s')})\n`);
  for (const [what, ms, note] of rows) {
    const bar = '─'.repeat(Math.round((30 * ms) / widest));
    console.log(
      `${String(ms).padStart(7)} ms  ${`${bar}●`.padEnd(31)}  ${what.padEnd(18)}  ${note}`,
    );
  }
  console.log('');
}

async function main(stage: Stage): Promise<void> {
  console.log("Debian's redis-server as an image (built by the first run: a minute or two) ...");
  const image = await testImage('redis');
  if (closing !== undefined) return;
  await stage.serve({ rate: RATE });
  console.log('taking it in at the server ...');
  await stage.addImage(`oci:${image}/oci:latest`, IMAGE);
  const time = await measure(stage);
  print(time);
  console.log(JSON.stringify(time));
  if (time.ready_ms >= time.last_frame_ms) {
    throw new Error('redis answered only when the whole image had arrived');
  }
}

if (process.geteuid?.() !== 0) {
  console.error('demo: mounts and containers need root; run it as root, or with sudo');
  process.exit(1);
}
const stage = await Stage.create({ name: 'demo', detached: true });
let closing: Promise<void> | undefined;
const close = () => {
  closing ??= stage.close();
  return closing;
};
for (const [signal, code] of [
  ['SIGINT', 130],
  ['SIGTERM', 143],
  ['SIGHUP', 129],
] as const) {
  process.once(signal, () => {
    console.error('\ndemo: ending ...');
    // What had to be forced is named; the demo ends either way.
    close()
      .catch((error: unknown) => console.error(`demo: ${(error as Error).message}`))
      .finally(() => process.exit(code));
  });
}
try {
  await main(stage);
} catch (error) {
  // After Ctrl-C everything under way fails; that is no news.
  if (closing === undefined) {
    console.error(`demo: ${(error as Error).message}`);
    process.exitCode = 1;
  }
} finally {
  await close().catch((error: unknown) => {
    console.error(`demo: ${(error as Error).message}`);
    process.exitCode = 1;
  });
}
