// make bench-runtime: what a service costs once it runs and everything has arrived: the same loads in the
// same image, on firstlight and on kernel overlayfs, in turns. What does not live here: the way
// there (bench/startup), single operations (bench/metadata).
//
//   node bench/runtime/runtime.ts [--loads redis,python] [--rounds 5] [--sides overlayfs,firstlight]
import { parseArgs } from 'node:util';
import { buildServices } from '../images/services.ts';
import { enclose } from '../lib/enclosure.ts';
import { machineFacts, median } from '../lib/measure.ts';
import { checkBuilt, startServer, Worker } from '../lib/program.ts';
import { RowWriter } from '../lib/rows.ts';
import { Workspace } from '../lib/workspace.ts';
import { BenchContainer } from './container.ts';
import { LOADS, type Load, serviceOf } from './loads.ts';
import { makeRoots, type Side, userFiles } from './roots.ts';

/** A service may lose this much of its throughput, or take this much longer. */
const SHARE = 0.05;

interface Choice {
  loads: Load[];
  sides: Side[];
  rounds: number;
}

function choice(): Choice {
  const { values } = parseArgs({
    options: {
      loads: { type: 'string' },
      sides: { type: 'string', default: 'overlayfs,firstlight' },
      rounds: { type: 'string', default: '5' },
    },
  });
  const names = values.loads?.split(',');
  return {
    loads: LOADS.filter((load) => names === undefined || names.includes(load.image)),
    sides: values.sides.split(',') as Side[],
    rounds: Number(values.rounds),
  };
}

/** Figures of each side: a list of rounds, each with a value for each figure. */
type Seen = Map<Side, number[][]>;

/** The sides take turns, one container at a time: services have their usual ports. */
async function measure(
  space: Workspace,
  worker: Worker,
  load: Load,
  { sides, rounds }: Choice,
): Promise<Seen> {
  const roots = await makeRoots(space, worker, load.image, sides);
  const users = userFiles(`${space.directory}/unpacked/${load.image}/rootfs`);
  const seen: Seen = new Map(sides.map((side) => [side, []]));
  const command = load.service ? {} : { command: ['sleep', 'infinity'] };
  for (let round = 0; round < rounds; round++) {
    for (let i = 0; i < sides.length; i++) {
      const side = sides[(round + i) % sides.length]!;
      const root = roots.directories[side]!;
      const config = load.service ? roots.config : { ...roots.config, Entrypoint: [], User: '' };
      const container = new BenchContainer(space, { root, config, users, ...command });
      try {
        if (load.service) await container.ready(serviceOf(load));
        else await container.running();
        if (round === 0) await load.prepare?.(container);
        // The first measurement on a root warms it up, and is not counted.
        if (round === 0) await load.measure(container);
        const values = await load.measure(container);
        seen.get(side)!.push(values);
        process.stderr.write(`  ${load.image} ${side}: ${values.map((v) => v.toPrecision(4))}\n`);
      } finally {
        await container.end();
      }
    }
  }
  return seen;
}

function addRows(rows: RowWriter, load: Load, seen: Seen): void {
  for (const [i, figure] of load.figures.entries()) {
    const value = (side: Side) => median(seen.get(side)!.map((values) => values[i]!));
    const baseline = { name: 'overlayfs', value: value('overlayfs') };
    const budget = figure.better === 'higher' ? 1 - SHARE : 1 + SHARE;
    for (const side of seen.keys()) {
      if (side === 'overlayfs') continue;
      rows.add({
        row: side === 'firstlight' ? figure.id : `${figure.id}-rw-fuse`,
        value: value(side),
        unit: figure.unit,
        baseline,
        better: figure.better,
        budget,
      });
    }
  }
}

async function main(space: Workspace, chosen: Choice): Promise<void> {
  const rows = new RowWriter('runtime');
  process.stderr.write(`${JSON.stringify(machineFacts(space.directory))}\n`);
  const server = await startServer(space, space.makeDirectory('data'));
  const worker = await Worker.start(space, space.makeDirectory('root'), server);
  for (const load of chosen.loads) {
    process.stderr.write(`${load.image}\n`);
    addRows(rows, load, await measure(space, worker, load, chosen));
  }
  rows.print();
}

checkBuilt();
const chosen = choice();
// Built out here: the namespace has no way to the packages.
await buildServices([...new Set(chosen.loads.map((load) => load.image))], ['new']);
await enclose('runtime', 'own');
const space = new Workspace('runtime');
try {
  await main(space, chosen);
} finally {
  await space.close();
}
