// The order of the stages: a module imports only from its own stage and from those before it.
import { readdir, readFile } from 'node:fs/promises';
import { dirname, join, relative, resolve } from 'node:path';
import test from 'ava';

const SOURCE = resolve(import.meta.dirname, '../../src');

/** Groups in order. Stages of one group may import each other unless they are in `APART`. */
const ORDER = [
  ['errors', 'log', 'native'],
  ['image', 'trace', 'optimize', 'delta'],
  ['serve'],
  ['store', 'tree', 'fuse', 'receive'],
  ['snapshots'],
  ['daemon'],
  ['cli'],
];
/** The server and the worker's four never import each other, though one stands before the other. */
const WORKER = ['store', 'tree', 'fuse', 'receive'];

/** Every module specifier of a source: static, dynamic and type imports, and re-exports. */
function specifiers(text: string): string[] {
  const statics = text.matchAll(/^(?:import|export)\b[^;'"]*?(?:from\s*)?['"]([^'"]+)['"]/gm);
  const dynamics = text.matchAll(/\bimport\(\s*['"]([^'"]+)['"]\s*\)/g);
  const urls = text.matchAll(/new URL\(\s*['"](\.[^'"]+\.ts)['"]/g);
  return [...statics, ...dynamics, ...urls].map((match) => match[1] ?? '');
}

function groupOf(stage: string): number {
  return ORDER.findIndex((group) => group.includes(stage));
}

/** What is wrong with one stage importing another; undefined where it may. */
function complaint(from: string, to: string): string | undefined {
  if (groupOf(to) < 0) return 'an unknown stage';
  if (groupOf(to) > groupOf(from)) return 'a later stage';
  if (from === 'serve' && WORKER.includes(to)) return 'the worker';
  if (WORKER.includes(from) && to === 'serve') return 'the server';
  return undefined;
}

async function sources(): Promise<string[]> {
  const names = await readdir(SOURCE, { recursive: true });
  return names.filter((name) => name.endsWith('.ts'));
}

test('every stage is in the order', async (t) => {
  const entries = await readdir(SOURCE, { withFileTypes: true });
  const stages = entries.filter((entry) => entry.isDirectory()).map((entry) => entry.name);
  t.deepEqual(stages.sort(), ORDER.flat().sort());
  t.deepEqual(
    entries.filter((entry) => !entry.isDirectory()).map((entry) => entry.name),
    [],
  );
});

test('a module imports only from its own stage and from those before it', async (t) => {
  const wrong: string[] = [];
  let seen = 0;
  for (const name of await sources()) {
    const [stage = ''] = name.split('/');
    const path = join(SOURCE, name);
    for (const specifier of specifiers(await readFile(path, 'utf8'))) {
      if (!specifier.startsWith('.')) continue;
      const target = relative(SOURCE, resolve(dirname(path), specifier));
      // package.json and the built native part stand outside the sources.
      if (target.startsWith('..')) continue;
      seen++;
      const [to = ''] = target.split('/');
      const why = to === stage ? undefined : complaint(stage, to);
      if (why !== undefined) wrong.push(`${name} imports ${target}: ${why}`);
    }
  }
  t.deepEqual(wrong, []);
  t.true(seen > 100, `only ${seen} imports were found`);
});

test('the test sees imports of every form', (t) => {
  t.deepEqual(
    specifiers(
      [
        "import { a } from './a.ts';",
        "import type { B } from '../b/b.ts';",
        'import {',
        '  c,',
        "} from './c.ts';",
        "import './d.ts';",
        "export { e } from './e.ts';",
        "const f = await import('./f.ts');",
        "const g = new URL('./g.ts', import.meta.url);",
      ].join('\n'),
    ),
    ['./a.ts', '../b/b.ts', './c.ts', './d.ts', './e.ts', './f.ts', './g.ts'],
  );
});

test('what is forbidden is called so', (t) => {
  t.is(complaint('image', 'serve'), 'a later stage');
  t.is(complaint('serve', 'store'), 'a later stage');
  t.is(complaint('store', 'serve'), 'the server');
  t.is(complaint('daemon', 'cli'), 'a later stage');
  t.is(complaint('receive', 'tree'), undefined);
  t.is(complaint('cli', 'serve'), undefined);
});
