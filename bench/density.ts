// make bench-density: twenty containers of one image started at once by containerd, on firstlight's snapshotter and
// on its own overlayfs snapshotter, in turns on the same machine: how long until all of them answer, and what
// memory they and the snapshotter take. Both images are all there before: what lazy pulls save is another bench's.
import { readdir, readFile, writeFile } from 'node:fs/promises';
import { connect } from 'node:net';
import { join } from 'node:path';
import { Containerd, push, startRegistry } from '../test/lib/containerd.ts';
import { testImage } from '../test/lib/images.ts';
import { freePort } from '../test/lib/ports.ts';
import { must, until } from '../test/lib/proc.ts';
import { Stage } from '../test/lib/stage.ts';
import { machineFacts, median } from './lib/measure.ts';
import { RowWriter } from './lib/rows.ts';

const CONTAINERS = Number(process.env.CONTAINERS ?? 20);
const ROUNDS = Number(process.env.ROUNDS ?? 3);
const MB = 1e6;

type Snapshotter = 'firstlight' | 'overlayfs';

/** Proportional memory of processes, bytes: what several share is counted once among them. */
async function pss(pids: number[]): Promise<number> {
  let sum = 0;
  for (const pid of pids) {
    const text = await readFile(`/proc/${pid}/smaps_rollup`, 'utf8');
    sum += 1024 * Number(/^Pss:\s+(\d+)/m.exec(text)?.[1] ?? 0);
  }
  return sum;
}

/** Processes whose command line holds all the words. */
async function processesWith(...words: string[]): Promise<number[]> {
  const found: number[] = [];
  for (const name of await readdir('/proc')) {
    if (!/^\d+$/.test(name) || Number(name) === process.pid) continue;
    // One that ends meanwhile is none.
    const line = await readFile(`/proc/${name}/cmdline`, 'utf8').catch(() => '');
    if (words.every((word) => line.replaceAll('\0', ' ').includes(word))) found.push(Number(name));
  }
  return found;
}

/** True where a redis answers PING on a port of this machine. */
function answers(port: number): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect(port, '127.0.0.1');
    const end = (answer: boolean) => {
      socket.destroy();
      resolve(answer);
    };
    socket.setTimeout(2000, () => end(false));
    socket.once('connect', () => socket.write('PING\r\n'));
    socket.once('data', (data) => end(data.toString().startsWith('+PONG')));
    socket.once('error', () => end(false));
  });
}

interface Sample {
  startMs: number;
  containersBytes: number;
  snapshotterBytes: number;
}

/** Starts all containers at once; what it took until all answered. */
async function sample(
  containerd: Containerd,
  image: string,
  snapshotter: Snapshotter,
): Promise<Sample> {
  const ports: number[] = [];
  for (let i = 0; i < CONTAINERS; i++) ports.push(await freePort());
  await must('sync', []);
  await writeFile('/proc/sys/vm/drop_caches', '3');
  const startedAt = performance.now();
  const started = await Promise.allSettled(
    ports.map(async (port) => {
      const server = ['redis-server', '--port', String(port), '--save', '', '--daemonize', 'no'];
      const options = ['--detach', '--net-host', '--snapshotter', snapshotter];
      await containerd.ctr([
        'run',
        ...options,
        image,
        containerd.named(`density-${port}`),
        ...server,
      ]);
      await until('it answers', () => answers(port), { timeoutMs: 120_000, everyMs: 20 });
    }),
  );
  const startMs = performance.now() - startedAt;
  for (const outcome of started) if (outcome.status === 'rejected') throw outcome.reason;
  const redis = (
    await Promise.all(ports.map((p) => processesWith('redis-server', `:${p}`)))
  ).flat();
  if (redis.length !== CONTAINERS) throw new Error(`${redis.length} of ${CONTAINERS} are there`);
  const { dir } = containerd.stage;
  const own = [
    ...(await processesWith('--snapshotter', dir)),
    ...(await processesWith('keeper-main', dir)),
  ];
  const result = {
    startMs,
    containersBytes: await pss(redis),
    snapshotterBytes: snapshotter === 'firstlight' ? await pss(own) : 0,
  };
  for (const id of await containerd.containers()) await containerd.remove(id);
  return result;
}

/** Everything in place: image pushed, known to the delta server, and pulled for both snapshotters. */
async function prepare(stage: Stage): Promise<{ containerd: Containerd; image: string }> {
  const layout = join(await testImage('redis'), 'oci');
  const registry = await startRegistry(stage);
  const image = `${registry}/redis:bench`;
  await push(layout, 'latest', image);
  await stage.serve();
  await stage.must(['image', 'add', `docker://${image}`], { timeoutMs: 300_000 });
  const socket = join(stage.dir, 's.sock');
  const daemon = stage.start(['daemon', '--snapshotter', socket, '--prepare-timeout', '60s']);
  await until('the daemon is ready', () => daemon.stderr.includes('is ready'), {
    timeoutMs: 60_000,
  });
  const containerd = await Containerd.start(stage, socket);
  await containerd.pull(image);
  await until(
    'all has arrived',
    async () => {
      const { images } = await stage.json<{ images: { complete: boolean }[] }>(['ls']);
      return images.length > 0 && images.every(({ complete }) => complete);
    },
    { timeoutMs: 120_000 },
  );
  await containerd.ctr(['images', 'pull', '--plain-http', '--snapshotter', 'overlayfs', image]);
  return { containerd, image };
}

const rows = new RowWriter('density');
const stage = await Stage.create({ name: 'density', detached: true });
try {
  const { containerd, image } = await prepare(stage);
  const facts = machineFacts(stage.dir);
  console.log(
    `${CONTAINERS} containers of one image, ${ROUNDS} rounds; ${JSON.stringify(facts)}\n`,
  );
  const samples: Record<Snapshotter, Sample[]> = { firstlight: [], overlayfs: [] };
  for (let round = 0; round < ROUNDS; round++) {
    const order: Snapshotter[] = ['firstlight', 'overlayfs'];
    // Another one first each round: what disturbs the machine for a while disturbs both.
    for (const which of round % 2 === 0 ? order : order.reverse()) {
      samples[which].push(await sample(containerd, image, which));
    }
  }
  const middle = (which: Snapshotter, field: keyof Sample) =>
    median(samples[which].map((each) => each[field]));
  const against = (field: keyof Sample, unit: number) => ({
    value: middle('firstlight', field) / unit,
    baseline: { name: 'overlayfs', value: middle('overlayfs', field) / unit },
    better: 'lower' as const,
  });
  rows.add({ row: 'start-all', unit: 'ms', ...against('startMs', 1) });
  rows.add({ row: 'containers-pss', unit: 'MB', ...against('containersBytes', MB) });
  const snapshotter = middle('firstlight', 'snapshotterBytes') / MB;
  rows.add({ row: 'snapshotter-pss', unit: 'MB', value: snapshotter, better: 'lower' });
  rows.print();
} catch (error) {
  // What taking everything down says must not hide it.
  console.error(error);
  process.exitCode = 1;
} finally {
  await stage.close(30_000);
}
