// make traces [SERVICES=redis,nginx]: records what each service reads until it is ready, on an empty
// worker behind a line of 100 Mbit/s, and keeps the traces in traces/ with a page that says how each was
// made. What does not live here: what a trace is worth (main.ts).
import { execFileSync } from 'node:child_process';
import { chmodSync, copyFileSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { loadTrace } from '../../src/trace/files.ts';
import { TRACE_PART_BYTES, type TraceItem } from '../../src/trace/tracer.ts';
import {
  allServices,
  buildServices,
  type Service,
  serviceImage,
  serviceNamed,
} from '../images/services.ts';
import { enclose } from '../lib/enclosure.ts';
import { checkBuilt } from '../lib/program.ts';
import { Workspace } from '../lib/workspace.ts';
import { Site } from './site.ts';

const RATE = '100mbit';
const HERE = fileURLToPath(new URL('../../traces/', import.meta.url));
const PAGE = join(HERE, 'README.md');
const HEAD = [
  '| file | image | files | MB read | large files | MB read of them |',
  '|---|---|---|---|---|---|',
];
/** Where the table of the page begins and ends. */
const MARKS = ['<!-- traces -->', '<!-- /traces -->'] as const;

/** Version of what a service image is about. */
function versionOf(service: Service, layout: string): string {
  if (service.name === 'nodejs') {
    const recipe = new URL('../images/recipes/nodejs.sh', import.meta.url);
    return `Node.js ${/new\) NODE_RELEASE=([\d.]+)/.exec(readFileSync(recipe, 'utf8'))?.[1]} of npm`;
  }
  const json = (digest: string) =>
    JSON.parse(readFileSync(join(layout, 'blobs', digest.replace(':', '/')), 'utf8'));
  const index = JSON.parse(readFileSync(join(layout, 'index.json'), 'utf8'));
  const layer = (json(index.manifests[0].digest).layers as { digest: string }[]).at(-1)!;
  const blob = join(layout, 'blobs', layer.digest.replace(':', '/'));
  const status = execFileSync('tar', ['-xzOf', blob, 'var/lib/dpkg/status'], {
    encoding: 'utf8',
    maxBuffer: 64 << 20,
  });
  const [name] = service.packages.length > 0 ? service.packages : service.runtime;
  const version = new RegExp(`^Package: ${name}\\n(?:.+\\n)*?Version: (.*)$`, 'm').exec(
    status,
  )?.[1];
  if (version === undefined) throw new Error(`${layout} does not hold the package ${name}`);
  return `${name} ${version}`;
}

function bytesOf({ sizeBytes = 0, ranges }: TraceItem): number {
  if (ranges === undefined) return sizeBytes;
  return ranges.reduce((sum, range) => sum + range.lengthBytes, 0);
}

async function rowOf(path: string, what: string): Promise<string> {
  const tracer = await loadTrace(path);
  const large = tracer.seq.filter(({ sizeBytes = 0 }) => sizeBytes > TRACE_PART_BYTES);
  const mb = (items: TraceItem[]) =>
    (items.reduce((sum, i) => sum + bytesOf(i), 0) / 1e6).toFixed(1);
  const whole = large.reduce((sum, { sizeBytes = 0 }) => sum + sizeBytes, 0) / 1e6;
  return [
    `| \`${path.slice(HERE.length)}\` | ${what}`,
    `${tracer.seq.length} | ${mb(tracer.seq)} | ${large.length} | ${mb(large)} of ${whole.toFixed(1)} |`,
  ].join(' | ');
}

async function main(space: Workspace, services: Service[]): Promise<void> {
  const rows = new Map<string, string>();
  const page = readFileSync(PAGE, 'utf8');
  const [from, to] = [page.indexOf(MARKS[0]) + MARKS[0].length, page.indexOf(MARKS[1])];
  // Rows of services that are not recorded now stay.
  for (const line of page.slice(from, to).split('\n')) {
    const name = /^\| `([a-z0-9]+)\.json`/.exec(line)?.[1];
    if (name !== undefined) rows.set(name, line);
  }
  for (const service of services) {
    const image = `${service.name}:new`;
    const source = serviceImage(service.name, 'new');
    const site = await Site.open(space, RATE);
    await site.addImage(source, image);
    const { trace, readyMs } = await site.start(service, image, 'default');
    await site.close();
    if (trace === undefined) throw new Error(`the run of ${image} left no trace`);
    const kept = join(HERE, `${service.name}.json`);
    copyFileSync(trace, kept);
    // A worker keeps what its containers read to itself; here it is published.
    chmodSync(kept, 0o644);
    const layout = source.replace(/^oci:(.*):latest$/, '$1');
    rows.set(service.name, await rowOf(kept, versionOf(service, layout)));
    console.log(`${kept}: ready after ${readyMs} ms`);
    // At once: what is recorded stays where a later service fails.
    const table = [...HEAD, ...[...rows].sort().map(([, row]) => row)].join('\n');
    writeFileSync(PAGE, `${page.slice(0, from)}\n${table}\n${page.slice(to)}`);
  }
}

const asked = (process.env.SERVICES ?? '').split(',').filter((name) => name !== '');
const services = asked.length > 0 ? asked.map(serviceNamed) : allServices();
// Built out here: the namespace has no way to the packages.
await buildServices(
  services.map(({ name }) => name),
  ['new'],
);
await enclose('traces', 'own');
checkBuilt();
const space = new Workspace('traces');
try {
  await main(space, services);
} finally {
  await space.close();
}
