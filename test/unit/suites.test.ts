// How the end-to-end tests are run: what the configuration cannot say in one word, and a file could forget.
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import test from 'ava';
import { REPOSITORY } from '../lib/images.ts';

test('end-to-end files run two at a time, and the tests of one file take turns', async (t) => {
  const path: string = '../e2e.config.js';
  const { default: config } = (await import(path)) as { default: { concurrency?: number } };
  // With `serial`, ava runs one file at a time whatever `concurrency` says.
  t.false('serial' in config);
  t.is(config.concurrency, 2);
  const directory = join(REPOSITORY, 'test/e2e');
  const files = readdirSync(directory).filter((name) => name.endsWith('.test.ts'));
  t.true(files.length > 10);
  for (const name of files) {
    const source = readFileSync(join(directory, name), 'utf8');
    t.regex(source, /^ *test\.serial\(/m, name);
    t.notRegex(
      source,
      /^ *test(\.skip|\.only|\.failing)?\(/m,
      `${name}: test.serial instead of test`,
    );
  }
});
