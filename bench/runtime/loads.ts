// What runs in the roots: each load starts what it needs in a container on one root and gives its figures.
// All of it is there, so these figures are about a file system that has nothing left to fetch.
import { execFile } from 'node:child_process';
import { promisify } from 'node:util';
import { serviceNamed } from '../images/services.ts';
import type { BenchContainer } from './container.ts';

const run = promisify(execFile);

/** One figure of a load. */
export interface Figure {
  id: string;
  unit: string;
  better: 'higher' | 'lower';
}

export interface Load {
  /** Service image that it runs in. */
  image: string;
  figures: Figure[];
  /** Whether the image's own service is started, and waited for; else something that only sleeps. */
  service: boolean;
  /** Before the first measurement on a root, such as to fill a database. */
  prepare?(container: BenchContainer): Promise<void>;
  /** One measurement: a value for each figure, in their order. */
  measure(container: BenchContainer): Promise<number[]>;
}

const SECONDS = String(process.env.LOAD_SECONDS ?? 5);

/** The number that a pattern finds; throws where the program says something else. */
function numberIn(text: string, pattern: RegExp): number {
  const match = pattern.exec(text);
  if (match === null) throw new Error(`no ${pattern} in: ${text.slice(0, 500)}`);
  return Number(match[1]);
}

const redis: Load = {
  image: 'redis',
  service: true,
  figures: [
    { id: 'redis-set', unit: 'requests/s', better: 'higher' },
    { id: 'redis-get', unit: 'requests/s', better: 'higher' },
  ],
  async measure() {
    const args = [
      '-t',
      'set,get',
      '-n',
      process.env.LOAD_REQUESTS ?? '50000',
      '-c',
      '20',
      '-d',
      '64',
      '--csv',
    ];
    const { stdout } = await run('redis-benchmark', args);
    return [numberIn(stdout, /^"SET","([\d.]+)"/m), numberIn(stdout, /^"GET","([\d.]+)"/m)];
  },
};

const nginx: Load = {
  image: 'nginx',
  service: true,
  figures: [{ id: 'nginx-wrk', unit: 'requests/s', better: 'higher' }],
  async measure() {
    const { stdout } = await run('wrk', [
      '-t',
      '1',
      '-c',
      '16',
      '-d',
      `${SECONDS}s`,
      'http://127.0.0.1/',
    ]);
    return [numberIn(stdout, /^Requests\/sec:\s+([\d.]+)/m)];
  },
};

const PG_BIN = '/usr/lib/postgresql/15/bin';
const postgres: Load = {
  image: 'postgres',
  service: true,
  figures: [
    { id: 'pgbench-select', unit: 'transactions/s', better: 'higher' },
    { id: 'pgbench-write', unit: 'transactions/s', better: 'higher' },
  ],
  async prepare(container) {
    await container.exec([`${PG_BIN}/createdb`, '-h', '127.0.0.1', 'bench']);
    await container.exec([`${PG_BIN}/pgbench`, '-h', '127.0.0.1', '-q', '-i', '-s', '5', 'bench']);
  },
  async measure(container) {
    const pgbench = [`${PG_BIN}/pgbench`, '-h', '127.0.0.1', '-c', '4', '-T', SECONDS];
    const tps = /tps = ([\d.]+) \(without/;
    const read = numberIn(await container.exec([...pgbench, '-S', 'bench']), tps);
    return [read, numberIn(await container.exec([...pgbench, 'bench']), tps)];
  },
};

const IMPORTS =
  'numpy, requests, sqlalchemy, flask, yaml, lxml.etree, PIL.Image, cryptography.x509';
const python: Load = {
  image: 'python',
  service: false,
  figures: [
    { id: 'python-start', unit: 'ms', better: 'lower' },
    { id: 'python-imports', unit: 'ms', better: 'lower' },
    { id: 'python-compile', unit: 'ms', better: 'lower' },
  ],
  async measure(container) {
    const timed = async (...command: string[]) => {
      const start = performance.now();
      await container.exec(command);
      return performance.now() - start;
    };
    return [
      await timed('python3', '-c', 'pass'),
      await timed('python3', '-c', `import ${IMPORTS}`),
      // A compiler's work: a thousand sources are read, and as many files written beside them.
      await timed('python3', '-c', COMPILE),
    ];
  },
};

const COMPILE = [
  'import compileall, sys',
  'sys.exit(not compileall.compile_dir("/usr/lib/python3.11", quiet=2, force=True, workers=1, maxlevels=1))',
].join('\n');

export const LOADS: Load[] = [redis, nginx, postgres, python];

/** Service of a load. */
export function serviceOf(load: Load) {
  return serviceNamed(load.image);
}
