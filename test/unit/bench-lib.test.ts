// The arithmetic of the benches: a wrong ratio or verdict would be believed.
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test from 'ava';
import { median, takeTurns } from '../../bench/lib/measure.ts';
import { makeRow, RowWriter } from '../../bench/lib/rows.ts';
import { markdownTable, readRows, replaceBetween } from '../../bench/lib/table.ts';

test('a budget bounds the ratio where there is a baseline, and the value where there is none', (t) => {
  const row = (value: number, baseline: number | undefined) =>
    makeRow('b', {
      row: 'r',
      value,
      unit: 'ns',
      better: 'lower',
      budget: 3,
      ...(baseline === undefined ? {} : { baseline: { name: 'x', value: baseline } }),
    });
  t.like(row(300, 100), { ratio: 3, met: true, baseline_value: 100 });
  t.like(row(301, 100), { ratio: 3.01, met: false });
  t.like(row(2, undefined), { ratio: null, baseline: null, baseline_value: null, met: true });
  t.like(row(4, undefined), { ratio: null, met: false });
});

test('where higher is better the budget is a floor', (t) => {
  const row = (value: number) =>
    makeRow('b', {
      row: 'r',
      value,
      unit: 'MB/s',
      better: 'higher',
      budget: 0.95,
      baseline: { name: 'x', value: 100 },
    });
  t.true(row(96).met);
  t.false(row(94).met);
});

test('the verdict is taken before rounding', (t) => {
  const row = makeRow('b', { row: 'r', value: 60.001, unit: 'ms', better: 'lower', budget: 60 });
  t.is(row.value, 60);
  t.false(row.met);
});

test('a figure that is no number, or a baseline of nothing, is refused', (t) => {
  const base = { row: 'r', unit: 'ns', better: 'lower' } as const;
  t.throws(() => makeRow('b', { ...base, value: Number.NaN }), { message: /not measured/ });
  t.throws(() => makeRow('b', { ...base, value: 1, baseline: { name: 'x', value: 0 } }), {
    message: /not measured/,
  });
});

test('the JSON file starts empty and holds one object a line with the keys of the contract', (t) => {
  const directory = mkdtempSync(join(tmpdir(), 'bench-lib-'));
  t.teardown(() => rmSync(directory, { recursive: true }));
  const file = join(directory, 'rows.json');
  writeFileSync(file, 'old\n');
  const rows = new RowWriter('b', file);
  t.is(readFileSync(file, 'utf8'), '');
  rows.add({ row: 'one', value: 1, unit: 'ms', better: 'lower' });
  rows.add({ row: 'two', value: 2, unit: 'ms', better: 'lower', budget: 3 });
  const read = readRows(readFileSync(file, 'utf8'));
  t.deepEqual(read, rows.rows);
  const keys = 'bench row value unit baseline baseline_value ratio better budget met';
  t.is(Object.keys(read[0]!).join(' '), keys);
  t.throws(() => rows.add({ row: 'one', value: 1, unit: 'ms', better: 'lower' }), {
    message: /twice/,
  });
});

test('sides take turns, another one first in each round, and each gives its median', async (t) => {
  const order: string[] = [];
  const values = { a: [5, 1, 3], b: [30, 10, 20] };
  const side = (name: 'a' | 'b') => () => {
    order.push(name);
    return values[name].shift()!;
  };
  t.deepEqual(await takeTurns(3, { a: side('a'), b: side('b') }), { a: 3, b: 20 });
  t.is(order.join(''), 'abbaab');
  t.is(median([4, 1, 3, 2]), 2.5);
});

test('a table replaces what stands between its markers, and nothing else', (t) => {
  const page = 'before\n<!-- x -->\nold\n<!-- /x -->\nafter\n';
  const row = makeRow('b', { row: 'r', value: 2, unit: 'ms', better: 'lower', budget: 1 });
  t.is(
    replaceBetween(page, 'x', markdownTable([row])),
    'before\n<!-- x -->\n| row | value | baseline | ratio | budget | |\n|---|---|---|---|---|---|\n' +
      '| `r` | 2 ms |  |  | <= 1 ms | MISSED |\n<!-- /x -->\nafter\n',
  );
  t.throws(() => replaceBetween(page, 'y', ''), { message: /missing/ });
});
