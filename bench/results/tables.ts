// Puts what was measured over the long link into docs/PERFORMANCE.md, between its markers:
//   node bench/results/tables.ts docs/PERFORMANCE.md [--samples startup.jsonl] [--levers levers.json]
// What does not live here: rows of the other benches (bench/lib/table.ts), the words around the tables.
import { readFileSync, writeFileSync } from 'node:fs';
import { pathToFileURL } from 'node:url';
import { parseArgs } from 'node:util';
import { bound, makeRow, type Row, verdict } from '../lib/rows.ts';
import { readRows, replaceBetween } from '../lib/table.ts';
import {
  BASELINE,
  beside,
  type Cell,
  cells,
  type LinkLine,
  type RunFacts,
  readLines,
  rowsOf,
  type Sample,
} from '../startup/samples.ts';

const line = (items: string[]) => `| ${items.join(' | ')} |`;
const markdown = (head: string[], rows: string[][]) =>
  [line(head), line(head.map(() => '---')), ...rows.map(line)].join('\n');

/** A lever a line, a size a column, in ms. */
export function leverTable(rows: Row[]): string {
  const parsed = rows.map((row) => {
    const match = /^(.*)-(\d+)k$/.exec(row.row);
    if (match === null) throw new Error(`${row.row} is no row of the levers bench`);
    return { name: match[1]!, kilobytes: Number(match[2]), ms: row.value };
  });
  const sizes = [...new Set(parsed.map(({ kilobytes }) => kilobytes))].sort((a, b) => a - b);
  const names = [...new Set(parsed.map(({ name }) => name))];
  const cell = (name: string, kilobytes: number) => {
    const found = parsed.find((each) => each.name === name && each.kilobytes === kilobytes);
    return found === undefined ? '' : String(Math.round(found.ms));
  };
  return markdown(
    ['ms for', ...sizes.map((size) => (size < 1000 ? `${size} KB` : `${size / 1000} MB`))],
    names.map((name) => [`\`${name}\``, ...sizes.map((size) => cell(name, size))]),
  );
}

function cellLine(all: Cell[], cell: Cell): string[] {
  const base = beside(all, cell, BASELINE);
  const header = cell.samples
    .map(({ breakdown }) => breakdown.header)
    .filter((ms) => ms !== undefined);
  const middle = [...header].sort((a, b) => a - b)[header.length >> 1];
  return [
    cell.service,
    cell.mode,
    `${cell.rttMs} ms`,
    `\`${cell.system}\``,
    (cell.readyMs / 1000).toFixed(2),
    `${(cell.minMs / 1000).toFixed(2)} to ${(cell.maxMs / 1000).toFixed(2)}`,
    base === undefined || base === cell ? '' : (cell.readyMs / base.readyMs).toFixed(3),
    middle === undefined ? '' : (middle / 1000).toFixed(2),
    (cell.bytes / 1e6).toFixed(1),
    String(cell.connects),
  ];
}

/** Every cell, then the medians with their budgets. */
export function startupTables(samples: Sample[]): string {
  const all = cells(samples);
  const order = (cell: Cell) =>
    `${cell.mode} ${String(cell.rttMs).padStart(5, '0')} ${cell.service} ${cell.system}`;
  const sorted = [...all].sort((a, b) => (order(a) < order(b) ? -1 : 1));
  const head = ['service', 'mode', 'round trip', 'system', 'ready, s', 'spread'];
  const more = [`to ${BASELINE}`, 'header in, s', 'MB by then', 'connections made'];
  const summary = rowsOf(all)
    .map((row) => makeRow('startup', row))
    .filter((row) => row.row.startsWith('median-'));
  return [
    markdown(
      [...head, ...more],
      sorted.map((cell) => cellLine(all, cell)),
    ),
    '',
    markdown(
      ['median over the services', 'ratio', 'budget', ''],
      summary.map((row) => [`\`${row.row}\``, String(row.value), bound(row), verdict(row)]),
    ),
  ].join('\n');
}

/** Where, when and under what load. */
export function startupFacts(run: RunFacts, links: LinkLine[]): string {
  const { date, kernel, cpus } = run.machine;
  const checks = links.map(
    (link) =>
      `${link.rtt_ms} ms: connect ${link.connect_ms.toFixed(1)} ms, ${link.mbit_per_second.toFixed(1)} Mbit/s`,
  );
  return (
    `Measured ${date} on Linux ${kernel}, ${cpus}, beside other work (load ${run.load.toFixed(0)} when it began), ` +
    `${run.rounds} rounds. Link checks: ${[...new Set(checks)].join('; ')}.`
  );
}

function main(): void {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: { samples: { type: 'string' }, levers: { type: 'string' } },
  });
  const page = positionals[0];
  if (page === undefined) throw new Error('usage: tables.ts PAGE.md [--samples F] [--levers F]');
  let text = readFileSync(page, 'utf8');
  if (values.levers !== undefined) {
    const rows = readRows(readFileSync(values.levers, 'utf8'));
    text = replaceBetween(text, 'bench-levers', leverTable(rows));
  }
  if (values.samples !== undefined) {
    const lines = readLines(readFileSync(values.samples, 'utf8'));
    const run = lines.find((each): each is RunFacts => each.kind === 'run');
    const links = lines.filter((each): each is LinkLine => each.kind === 'link');
    const samples = lines.filter((each): each is Sample => each.kind === 'sample');
    if (run === undefined || samples.length === 0) throw new Error('the file holds no run');
    const facts = startupFacts(run, links);
    text = replaceBetween(text, 'bench-startup', `${facts}\n\n${startupTables(samples)}`);
  }
  writeFileSync(page, text);
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? '').href) main();
