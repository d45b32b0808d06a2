// docs/SEMANTICS.md and the tests say the same: each clause has a test, each test that names a clause
// has one, and the sentences agree.
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import test from 'ava';
import { REPOSITORY } from '../lib/images.ts';
import { CLAUSES } from '../posix/clauses/index.ts';

/** Number and text of each clause of the page, lines joined. */
function clausesOfPage(): Map<string, string> {
  const page = readFileSync(join(REPOSITORY, 'docs/SEMANTICS.md'), 'utf8');
  const found = new Map<string, string>();
  for (const paragraph of page.split(/\n\s*\n/)) {
    const match = /^\*\*(\d+\.\d+)\*\* ([\s\S]*)$/.exec(paragraph.trim());
    if (match === null) continue;
    if (found.has(match[1]!)) throw new Error(`clause ${match[1]} stands twice`);
    found.set(match[1]!, match[2]!.replaceAll(/\s+/g, ' '));
  }
  return found;
}

/** All text of the tests. */
function testSources(): string {
  const texts: string[] = [];
  for (const folder of ['src', 'test']) {
    const root = join(REPOSITORY, folder);
    for (const name of readdirSync(root, { recursive: true, encoding: 'utf8' })) {
      if (name.endsWith('.test.ts')) texts.push(readFileSync(join(root, name), 'utf8'));
    }
  }
  return texts.join('\n');
}

/** Clauses that a step of a script names because it differs there. */
function namedBySteps(): Set<string> {
  const steps = CLAUSES.flatMap(({ scenarios }) => scenarios.flatMap((scenario) => scenario.steps));
  return new Set(steps.flatMap((step) => step.clauses));
}

test('the sentence of each script stands in docs/SEMANTICS.md', (t) => {
  const page = clausesOfPage();
  for (const { id, title } of CLAUSES) {
    t.true(page.get(id)?.startsWith(title) === true, `${id} ${title}`);
  }
  t.is(new Set(CLAUSES.map(({ id }) => id)).size, CLAUSES.length);
});

test('each clause of docs/SEMANTICS.md has its test', (t) => {
  const sources = testSources();
  const scripts = new Set(CLAUSES.map(({ id }) => id));
  const steps = namedBySteps();
  const numbered = new Set(
    [...sources.matchAll(/test(?:\.serial)?\(\s*['`](?:\$\{\w+\}: )?(\d+\.\d+) /g)].map(
      (match) => match[1]!,
    ),
  );
  for (const [id, text] of clausesOfPage()) {
    const cited = /Test: `([^`]+)`$/.exec(text)?.[1];
    const tested =
      scripts.has(id) ||
      steps.has(id) ||
      numbered.has(id) ||
      (cited !== undefined && sources.includes(cited)) ||
      // Where a comparison leaves something out it says by which clause.
      /The comparisons/.test(text);
    t.true(tested || sources.includes(`Clause ${id}`), `${id}: ${text.slice(0, 80)}`);
  }
  for (const id of [...steps, ...numbered]) t.true(clausesOfPage().has(id), `clause ${id}`);
});
