// make bench-trace: what a trace is worth. Services on empty workers behind a line of 100 Mbit/s, from
// the command to ready: contents in tree order, in the order of one run of another version of the
// image, and of one run of this version; and with everything local. The sides take turns. Then two
// images that are recorded as a group (group.ts).
//
//   SERVICES=redis,nginx ROUNDS=5 RATE=100mbit GROUP=python,redis  make bench-trace
import { loadTrace } from '../../src/trace/files.ts';
import { buildServices, type Service, serviceImage, serviceNamed } from '../images/services.ts';
import { enclose } from '../lib/enclosure.ts';
import { machineFacts, median } from '../lib/measure.ts';
import { checkBuilt } from '../lib/program.ts';
import { RowWriter } from '../lib/rows.ts';
import { Workspace } from '../lib/workspace.ts';
import { measureGroup } from './group.ts';
import { bytesUntil, type PartRead, partsRead } from './needed.ts';
import { Site, type Start } from './site.ts';

const ROUNDS = Number(process.env.ROUNDS ?? 3);
const RATE = process.env.RATE ?? '100mbit';
const named = (text: string) => text.split(',').filter((name) => name !== '');
const SERVICES = named(process.env.SERVICES ?? 'redis,nginx,postgres,python,nodejs');
const GROUP = named(process.env.GROUP ?? 'python,redis');
/** What one traced run must bring, against tree order. */
const BUDGET = 0.5;

/** Starts on each of the sites, one after the other, beginning with another one each round. */
async function inTurns<K extends string>(
  sites: Record<K, Site>,
  start: (site: Site) => Promise<Start>,
): Promise<Record<K, { readyMs: number; share: number }>> {
  const names = Object.keys(sites) as K[];
  const starts = new Map<K, Start[]>(names.map((name) => [name, []]));
  for (let round = 0; round < ROUNDS; round++) {
    for (let i = 0; i < names.length; i++) {
      const name = names[(round + i) % names.length]!;
      const one = await start(sites[name]);
      starts.get(name)!.push(one);
      process.stderr.write(
        `    ${name}: ${one.readyMs} ms, ${(one.bytesReady / 1e6).toFixed(1)} of ${(one.bytesAll / 1e6).toFixed(1)} MB\n`,
      );
    }
  }
  return Object.fromEntries(
    names.map((name) => {
      const all = starts.get(name)!;
      return [
        name,
        {
          readyMs: median(all.map((one) => one.readyMs)),
          share: (100 * median(all.map((one) => one.bytesReady))) / all[0]!.bytesAll,
        },
      ];
    }),
  ) as Record<K, { readyMs: number; share: number }>;
}

/** A run on an empty worker: its trace, and what it had read when the service was ready. */
async function record(
  site: Site,
  service: Service,
  version: 'old' | 'new',
): Promise<{ path: string; parts: PartRead[] }> {
  const start = await site.start(service, `${service.name}:${version}`, 'default');
  if (start.trace === undefined) throw new Error(`the run of ${service.name} left no trace`);
  const tracer = await loadTrace(start.trace);
  const untilNs = start.readyAt * 1e6 - Number(tracer.startNs);
  return { path: start.trace, parts: partsRead(tracer, untilNs) };
}

/** Servers that have both versions of an image and differ in what was reported to them. */
async function makeSites(
  space: Workspace,
  service: Service,
): Promise<{ sites: Record<'tree' | 'other' | 'traced', Site>; parts: PartRead[] }> {
  const both = await Site.open(space, undefined);
  for (const version of ['old', 'new'] as const) {
    await both.addImage(serviceImage(service.name, version), `${service.name}:${version}`);
  }
  // Ends before it is copied: what it has is then all on disk.
  await both.close();
  const open = () => Site.open(space, RATE, both);
  const sites = { tree: await open(), other: await open(), traced: await open() };
  const image = `${service.name}:new`;
  // Both runs in tree order, as a first run is.
  const own = await record(sites.tree, service, 'new');
  const other = await record(sites.tree, service, 'old');
  await sites.traced.report([image], own.path);
  await sites.other.report([image], other.path);
  return { sites, parts: own.parts };
}

/** Everything there before the command. */
async function local(site: Site, service: Service, image: string): Promise<number> {
  const { worker, close } = await site.worker();
  const ms: number[] = [];
  for (let round = 0; round < ROUNDS + 1; round++) {
    const start = await site.startOn(worker, service, image);
    // The first one brings the image; it is waited for.
    if (round === 0) await site.complete(worker, image);
    else ms.push(start.readyMs);
  }
  await close();
  return median(ms);
}

/** All rows of one service. @returns true where both bounds are met */
async function measure(space: Workspace, rows: RowWriter, service: Service): Promise<boolean> {
  process.stderr.write(`${service.name}\n`);
  const image = `${service.name}:new`;
  const { sites, parts } = await makeSites(space, service);
  const found = await inTurns(sites, (site) => site.start(service, image));
  const localMs = await local(sites.traced, service, image);
  const { tree, traced } = found;
  const baseline = { name: 'tree order', value: tree.readyMs };
  const ready = rows.add({
    row: `${service.name}-ready`,
    value: traced.readyMs,
    unit: 'ms',
    baseline,
    better: 'lower',
    budget: BUDGET,
  });
  rows.add({
    row: `${service.name}-ready-other-version`,
    value: found.other.readyMs,
    unit: 'ms',
    baseline,
    better: 'lower',
    budget: 1,
  });
  rows.add({
    row: `${service.name}-ready-local`,
    value: localMs,
    unit: 'ms',
    baseline,
    better: 'lower',
  });
  rows.add({
    row: `${service.name}-arrived`,
    value: traced.share,
    unit: '%',
    baseline: { name: 'tree order', value: tree.share },
    better: 'lower',
  });
  const needed = async (site: Site) => {
    const bundle = await site.bundle(image);
    return (100 * bytesUntil(bundle, parts)) / bundle.length;
  };
  const inTree = { name: 'tree order', value: await needed(sites.tree) };
  const add = (row: string, value: number, budget: number) =>
    rows.add({
      row: `${service.name}-${row}`,
      value,
      unit: '%',
      baseline: inTree,
      better: 'lower',
      budget,
    });
  const share = add('needed', await needed(sites.traced), BUDGET);
  add('needed-other-version', await needed(sites.other), 1);
  for (const site of Object.values(sites)) await site.close();
  return ready.met === true && share.met === true;
}

async function main(space: Workspace): Promise<void> {
  checkBuilt();
  const rows = new RowWriter('trace');
  process.stderr.write(`${JSON.stringify(machineFacts(space.directory))}\n`);
  let halved = 0;
  for (const name of SERVICES) if (await measure(space, rows, serviceNamed(name))) halved++;
  if (SERVICES.length > 0) {
    rows.add({
      row: 'services-halved',
      value: halved / SERVICES.length,
      unit: `of ${SERVICES.length}`,
      better: 'higher',
      budget: 0.8,
    });
  }
  if (GROUP.length === 2) await measureGroup(space, rows, RATE, [GROUP[0]!, GROUP[1]!]);
  rows.print();
}

// Built out here: the namespace has no way to the packages.
await buildServices([...new Set([...SERVICES, ...GROUP])], ['old', 'new']);
await enclose('trace', 'own');
const space = new Workspace('trace');
try {
  await main(space);
} finally {
  await space.close();
}
