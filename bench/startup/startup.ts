// make bench-startup: how long a service takes from the command to ready, when its image is at the other
// end of a long link. Several systems, in one run, in random order. Writes every start as a JSON line
// (OUT=FILE), prints the medians, and rows with JSON=FILE. What does not live here: the systems, how
// samples become rows (samples.ts), the page (bench/results).
//
//   node bench/startup/startup.ts [--all] [--services redis,nginx] [--rtt 2,150] [--rounds 3]
//                                 [--systems containerd,firstlight-traced] [--modes deploy,update]
import { createHash } from 'node:crypto';
import {
  appendFileSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { loadavg } from 'node:os';
import { dirname, join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { allServices, buildServices, serviceImage, serviceNamed } from '../images/services.ts';
import { enclose } from '../lib/enclosure.ts';
import { dropCaches, machineFacts } from '../lib/measure.ts';
import { checkBuilt } from '../lib/program.ts';
import { RowWriter } from '../lib/rows.ts';
import { Workspace } from '../lib/workspace.ts';
import { describeCheck, Wan } from '../wan/wan.ts';
import { waitReady } from './ready.ts';
import { cells, type Line, rowsOf, type Sample } from './samples.ts';
import type { Mode, PreparedService, System } from './system.ts';
import { availableSystems } from './systems.ts';

const REPOSITORY = fileURLToPath(new URL('../..', import.meta.url));
const MBIT = 100;
const ROUNDS = 2;
/** Without --all: what a machine that has no images yet builds, brings over the link and starts in a quarter of an hour. */
const QUICK = {
  services: ['redis', 'nginx', 'python'],
  rtt: [150],
  systems: [
    'containerd',
    'firstlight-traced',
    'firstlight-traced-kept',
    'firstlight-traced-warm',
    'curl-bundle',
  ],
  modes: ['deploy', 'update'] as Mode[],
};
const ALL_RTT = [2, 50, 150, 300];
const ALL_MODES: Mode[] = ['deploy', 'update', 'local'];
/** Things settle after the caches were dropped and programs loaded: writeback, exiting processes. */
const SETTLE_MS = 200;

interface Choice {
  services: string[];
  rtt: number[];
  rounds: number;
  systems: string[] | undefined;
  modes: Mode[];
  seed: number;
}

function choice(): Choice {
  const { values } = parseArgs({
    options: {
      all: { type: 'boolean', default: false },
      services: { type: 'string' },
      rtt: { type: 'string' },
      rounds: { type: 'string' },
      systems: { type: 'string' },
      modes: { type: 'string' },
      seed: { type: 'string' },
    },
  });
  const list = (text: string | undefined) => text?.split(',').filter((item) => item !== '');
  const all = values.all;
  return {
    services: list(values.services) ?? (all ? allServices().map((s) => s.name) : QUICK.services),
    rtt: list(values.rtt)?.map(Number) ?? (all ? ALL_RTT : QUICK.rtt),
    rounds: Number(values.rounds ?? ROUNDS),
    systems: list(values.systems) ?? (all ? undefined : QUICK.systems),
    modes: (list(values.modes) as Mode[] | undefined) ?? (all ? ALL_MODES : QUICK.modes),
    seed: Number(values.seed ?? Date.now() % 1_000_000),
  };
}

/** Numbers in [0, 1) that the seed decides (mulberry32). */
function randomNumbers(seed: number): () => number {
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

function shuffled<T>(items: T[], random: () => number): T[] {
  const list = [...items];
  for (let i = list.length - 1; i > 0; i--) {
    const j = Math.floor(random() * (i + 1));
    [list[i], list[j]] = [list[j]!, list[i]!];
  }
  return list;
}

/**
 * Directory of what the servers hold, kept from one run to the next as long as the sources that make
 * bundles are the same.
 */
function cacheDirectory(): string {
  const hash = createHash('sha256');
  for (const stage of ['image', 'delta', 'optimize', 'serve']) {
    const directory = join(REPOSITORY, 'src', stage);
    for (const name of readdirSync(directory).sort()) {
      if (name.endsWith('.ts') && !name.endsWith('.test.ts'))
        hash.update(readFileSync(join(directory, name)));
    }
  }
  const parent = join(REPOSITORY, '.cache/bench/startup');
  const key = hash.digest('hex').slice(0, 16);
  mkdirSync(parent, { recursive: true });
  // Those of other sources will not be asked for again.
  for (const name of readdirSync(parent)) {
    if (name !== key) rmSync(join(parent, name), { recursive: true, force: true });
  }
  return join(parent, key);
}

class Bench {
  readonly #space: Workspace;
  readonly #choice: Choice;
  readonly #wan: Wan;
  readonly #out: string | undefined;
  readonly samples: Sample[] = [];
  failures = 0;

  constructor(space: Workspace, choice: Choice, wan: Wan) {
    this.#space = space;
    this.#choice = choice;
    this.#wan = wan;
    this.#out = process.env.OUT;
    if (this.#out !== undefined) {
      mkdirSync(dirname(this.#out), { recursive: true });
      writeFileSync(this.#out, '');
    }
  }

  write(line: Line): void {
    if (line.kind === 'sample') this.samples.push(line);
    if (this.#out !== undefined) appendFileSync(this.#out, `${JSON.stringify(line)}\n`);
  }

  /** Every round, every link in random order; within each, everything else in random order. */
  async run(services: PreparedService[], systems: System[]): Promise<void> {
    const { rounds, rtt, modes, seed } = this.#choice;
    const random = randomNumbers(seed);
    for (let round = 0; round < rounds; round++) {
      for (const rttMs of shuffled(rtt, random)) {
        await this.#useLink(rttMs);
        const starts = services.flatMap((service) =>
          systems.flatMap((system) =>
            system.modes
              .filter((m) => modes.includes(m))
              .map((mode) => ({ service, system, mode })),
          ),
        );
        for (const start of shuffled(starts, random)) {
          await this.#one(start.service, start.system, start.mode, rttMs, round);
        }
      }
    }
  }

  async #useLink(rttMs: number): Promise<void> {
    await this.#wan.set({ rttMs, bitsPerSecond: MBIT * 1e6 });
    const check = await this.#wan.check();
    process.stderr.write(`${describeCheck(check)}\n`);
    this.write({
      kind: 'link',
      rtt_ms: rttMs,
      connect_ms: check.connectMs,
      mbit_per_second: check.mbitPerSecond,
      relay_cpu: check.relayCpu,
    });
  }

  async #one(
    service: PreparedService,
    system: System,
    mode: Mode,
    rttMs: number,
    round: number,
  ): Promise<void> {
    const where = {
      service: service.service.name,
      system: system.name,
      mode,
      rtt_ms: rttMs,
      round,
    };
    try {
      await system.prepare(service, mode);
      await dropCaches('all');
      await system.warmUp(service, mode);
      await sleep(SETTLE_MS);
      const before = await this.#wan.stats();
      const start = await system.start(service, mode);
      try {
        const child = start.child;
        const readyAt = await (system.done?.(start) ??
          waitReady(service.service, { child, wan: this.#wan, at: 'client' }));
        const after = await this.#wan.stats();
        const sample: Sample = {
          kind: 'sample',
          ...where,
          ready_ms: Math.round(readyAt - start.startedAt),
          bytes_received: after.down.bytes - before.down.bytes,
          bytes_sent: after.up.bytes - before.up.bytes,
          connects: after.up.connects - before.up.connects,
          breakdown: await system.breakdown(start),
        };
        this.write(sample);
        const { ready_ms, bytes_received, connects, breakdown } = sample;
        const more = Object.entries(breakdown).map(([name, value]) => `${name} ${value}`);
        process.stderr.write(
          `  ${where.service} ${mode} ${rttMs} ms ${system.name}: ${ready_ms} ms, ` +
            `${(bytes_received / 1e6).toFixed(2)} MB, ${connects} connections  ${more.join(', ')}\n`,
        );
      } finally {
        await system.stop(start);
      }
    } catch (error) {
      if (this.#space.ending) throw error;
      this.failures++;
      const text = (error as Error).message;
      this.write({ kind: 'failure', ...where, error: text });
      process.stderr.write(
        `  ${where.service} ${mode} ${rttMs} ms ${system.name}: FAILED: ${text}\n`,
      );
    }
  }
}

function prepareImages(names: string[]): PreparedService[] {
  return names.map((name) => {
    const layout = (version: 'old' | 'new') =>
      serviceImage(name, version).replace(/^oci:(.*):latest$/, '$1');
    return { service: serviceNamed(name), layouts: { old: layout('old'), new: layout('new') } };
  });
}

async function main(space: Workspace, chosen: Choice): Promise<void> {
  const services = prepareImages(chosen.services);
  const wan = await Wan.start({ rttMs: 0.2, bitsPerSecond: 1e9 });
  space.defer(() => wan.close());
  const systems = availableSystems(space, wan, cacheDirectory()).filter(
    (system) => chosen.systems === undefined || chosen.systems.includes(system.name),
  );
  for (const system of systems) await system.publish(services);
  const bench = new Bench(space, chosen, wan);
  bench.write({
    kind: 'run',
    machine: { ...machineFacts(space.directory) },
    systems: Object.fromEntries(systems.map((system) => [system.name, system.version()])),
    services: chosen.services,
    mbit: MBIT,
    rounds: chosen.rounds,
    seed: chosen.seed,
    load: loadavg()[0]!,
  });
  await bench.run(services, systems);
  const rows = new RowWriter('startup');
  for (const row of rowsOf(cells(bench.samples))) rows.add(row);
  rows.print();
  if (bench.failures > 0) throw new Error(`${bench.failures} starts failed`);
}

checkBuilt();
const chosen = choice();
// Out here, and while nothing is measured.
await buildServices(chosen.services, ['old', 'new']);
await enclose('startup', 'shared');
const space = new Workspace('startup');
try {
  await main(space, chosen);
} finally {
  await space.close();
}
