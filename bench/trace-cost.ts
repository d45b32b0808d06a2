// make bench-trace-cost: what recording costs those who read. A walk that reads every file of a real
// image, all of it ready, with tracing off and just turned on, in turns on the same mount. What does
// not live here: what a trace saves.
import { Fsbench } from './lib/fsbench.ts';
import { machineFacts, median } from './lib/measure.ts';
import { checkBuilt, startServer, Worker } from './lib/program.ts';
import { RowWriter } from './lib/rows.ts';
import { realImage } from './lib/trees.ts';
import { Workspace } from './lib/workspace.ts';

const ROUNDS = Number(process.env.ROUNDS ?? 15);
/** Most that a traced walk may take against one that is not. */
const BUDGET = 1.03;

/** Times traced and untraced walks of one mount, and checks that they were what they are called. */
async function measure(rows: RowWriter, id: string, worker: Worker, root: string): Promise<void> {
  const fsbench = new Fsbench();
  const expected = await fsbench.walkRead(root);
  const walk = async (on: boolean): Promise<number> => {
    if (on) await worker.request({ op: 'trace', on: true, directory: root, group: 'bench' });
    const seen = await fsbench.walkRead(root);
    if (seen.names !== expected.names || seen.bytes !== expected.bytes) {
      throw new Error(`a walk of ${root} saw ${JSON.stringify(seen)}`);
    }
    if (!on) return seen.ms;
    const ended = await worker.request<{ path: string | null }[]>({
      op: 'trace',
      on: false,
      directory: root,
      group: 'bench',
    });
    if (ended[0]?.path == null) throw new Error('a traced walk left no trace');
    return seen.ms;
  };
  const ms: { off: number[]; on: number[] } = { off: [], on: [] };
  for (let round = 0; round < ROUNDS; round++) {
    // Another side first each round: what disturbs the machine for a while disturbs both.
    for (const on of round % 2 === 0 ? [false, true] : [true, false]) {
      ms[on ? 'on' : 'off'].push(await walk(on));
    }
  }
  const bytes = async () => (await worker.mountStatus(root)).stats?.bytesRead ?? 0;
  const before = await bytes();
  await walk(true);
  const forwarded = (await bytes()) - before;
  process.stderr.write(`  ${expected.names} names, ${expected.bytes} bytes\n`);
  const add = (row: string, of: (values: number[]) => number, budget?: number) =>
    rows.add({
      row,
      value: of(ms.on),
      unit: 'ms',
      baseline: { name: 'tracing off', value: of(ms.off) },
      better: 'lower',
      ...(budget === undefined ? {} : { budget }),
    });
  add(id, median, BUDGET);
  // What the walk costs where nothing else runs.
  add(`${id}-best`, (values) => Math.min(...values), BUDGET);
  rows.add({
    row: `${id}-forwarded`,
    value: forwarded / 1e6,
    unit: 'MB',
    baseline: { name: 'bytes of the walk', value: expected.bytes / 1e6 },
    better: 'lower',
  });
}

async function main(space: Workspace): Promise<void> {
  checkBuilt();
  const rows = new RowWriter('trace-cost');
  process.stderr.write(`${JSON.stringify(machineFacts(space.directory))}\n`);
  const server = await startServer(space, space.makeDirectory('data'));
  const worker = await Worker.start(space, space.makeDirectory('root'), server);
  const tar = `${realImage('python')}/rootfs.tar`;
  await worker.run('image', 'add', `rootfs:${tar}`, '--name', 'python:bench');
  for (const rw of ['off', 'overlay']) {
    const root = space.makeDirectory(rw);
    // Otherwise the kernel opens alone in all walks but the first, and a trace only watches.
    await worker.run('mount', 'python:bench', root, '--rw', rw, '--opens', 'seen', '--wait');
    await measure(rows, `walk-read-${rw}`, worker, root);
  }
  rows.print();
}

const space = new Workspace('trace-cost');
try {
  await main(space);
} finally {
  await space.close();
}
