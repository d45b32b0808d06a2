// The results as one page that needs nothing else, as SVG files for the README, and as tables:
//   node bench/results/page.ts --samples startup.jsonl [--rows rows.json]... --html FILE [--svg DIR]
// What does not live here: measuring, and docs/PERFORMANCE.md's own tables (bench/lib/table.ts).
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { parseArgs } from 'node:util';
import { bound, type Row, verdict } from '../lib/rows.ts';
import { readRows } from '../lib/table.ts';
import {
  BASELINE,
  beside,
  type Cell,
  cells,
  type Failure,
  type Line,
  type LinkLine,
  type RunFacts,
  readLines,
  type Sample,
} from '../startup/samples.ts';
import type { Mode } from '../startup/system.ts';
import { byRoundTrip, bytesPlot, escapeXml, readyPlot } from './plots.ts';

const STYLE = `
:root { color-scheme: light dark }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums }
td, th { padding: .15rem .7rem; text-align: right; border-bottom: 1px solid #8884 }
td:first-child, th:first-child, td.text { text-align: left }
.missed { color: #d55e00; font-weight: 600 }
svg { max-width: 100%; height: auto; display: block; margin: 1rem 0 }
.note { opacity: .75 }
`;

/** One system's way to ready, as a table row of the breakdown. */
const STEPS = ['header', 'mounted', 'first_frame', 'first_read'];

function table(head: string[], rows: string[][]): string {
  const line = (cellsOf: string[], tag: string) =>
    `<tr>${cellsOf.map((cell) => `<${tag}>${cell}</${tag}>`).join('')}</tr>`;
  return `<table>${line(head.map(escapeXml), 'th')}${rows.map((row) => line(row, 'td')).join('')}</table>`;
}

function cellTable(all: Cell[]): string {
  const sorted = [...all].sort(
    (a, b) =>
      a.service.localeCompare(b.service) ||
      a.mode.localeCompare(b.mode) ||
      a.rttMs - b.rttMs ||
      a.readyMs - b.readyMs,
  );
  const rows = sorted.map((cell) => {
    const base = beside(all, cell, BASELINE);
    const ratio =
      base === undefined || base === cell ? '' : (cell.readyMs / base.readyMs).toFixed(3);
    return [
      escapeXml(cell.service),
      cell.mode,
      `${cell.rttMs} ms`,
      escapeXml(cell.system),
      (cell.readyMs / 1000).toFixed(2),
      `${(cell.minMs / 1000).toFixed(2)} to ${(cell.maxMs / 1000).toFixed(2)}`,
      String(cell.samples.length),
      ratio,
      (cell.bytes / 1e6).toFixed(2),
      String(cell.connects),
    ];
  });
  const head = ['service', 'mode', 'round trip', 'system', 'ready, s', 'spread', 'starts'];
  return table([...head, `to ${BASELINE}`, 'MB by then', 'connections'], rows);
}

/** The run of median length of each cell, step by step. */
function breakdownTable(all: Cell[]): string {
  const rows = all
    .filter((cell) => cell.samples.some(({ breakdown }) => 'header' in breakdown))
    .map((cell) => {
      const sorted = [...cell.samples].sort((a, b) => a.ready_ms - b.ready_ms);
      const { breakdown, ready_ms } = sorted[sorted.length >> 1]!;
      const steps = STEPS.map((step) => (step in breakdown ? String(breakdown[step]) : ''));
      const what = `${cell.service} ${cell.mode} ${cell.rttMs} ms ${cell.system}`;
      return [escapeXml(what), ...steps, String(ready_ms)];
    });
  return table(['start', 'header in', 'mounted', 'first frame', 'first read', 'ready'], rows);
}

function rowTable(rows: Row[]): string {
  const lines = rows.map((row) => {
    const baseline = row.baseline === null ? '' : `${row.baseline_value} (${row.baseline})`;
    const word = verdict(row);
    const shown = word === 'MISSED' ? `<span class="missed">${word}</span>` : word;
    const cellsOf = [row.row, `${row.value} ${row.unit}`, baseline, String(row.ratio ?? '')];
    return [...cellsOf.map(escapeXml), escapeXml(bound(row)), shown];
  });
  return table(['row', 'value', 'baseline', 'ratio', 'budget', ''], lines);
}

/** What is drawn: by mode and link. */
function plots(all: Cell[]): { name: string; svg: string }[] {
  const found: { name: string; svg: string }[] = [];
  const links = [...new Set(all.map((cell) => cell.rttMs))].sort((a, b) => a - b);
  for (const mode of ['deploy', 'update'] as Mode[]) {
    for (const rttMs of links) {
      if (!all.some((cell) => cell.mode === mode && cell.rttMs === rttMs)) continue;
      found.push({ name: `${mode}-${rttMs}ms`, svg: readyPlot(all, mode, rttMs) });
      found.push({ name: `${mode}-${rttMs}ms-bytes`, svg: bytesPlot(all, mode, rttMs) });
    }
    if (links.length < 2) continue;
    for (const service of [...new Set(all.map((cell) => cell.service))].sort()) {
      if (!all.some((cell) => cell.service === service && cell.mode === mode)) continue;
      found.push({ name: `${mode}-${service}`, svg: byRoundTrip(all, service, mode) });
    }
  }
  return found;
}

/** The whole page. */
export function resultsPage(lines: Line[], rowFiles: Row[][]): string {
  const run = lines.find((line): line is RunFacts => line.kind === 'run');
  const failures = lines.filter((line): line is Failure => line.kind === 'failure');
  const links = lines.filter((line): line is LinkLine => line.kind === 'link');
  const all = cells(lines.filter((line): line is Sample => line.kind === 'sample'));
  const facts =
    run === undefined
      ? ''
      : `<p class="note">${escapeXml(
          `${Object.values(run.machine).join(', ')}; ${run.mbit} Mbit/s; ${run.rounds} rounds, seed ${run.seed}; ` +
            `load of the machine when it began: ${run.load.toFixed(1)}`,
        )}<br>${Object.entries(run.systems)
          .map(([name, version]) => escapeXml(`${name}: ${version}`))
          .join('<br>')}</p>`;
  const proofs = links.map((link) => [
    `${link.rtt_ms} ms`,
    link.connect_ms.toFixed(1),
    link.mbit_per_second.toFixed(1),
    `${(link.relay_cpu * 100).toFixed(0)}%`,
  ]);
  const failed = failures.map((f) => [
    ...[f.service, f.mode, `${f.rtt_ms} ms`, f.system].map(escapeXml),
    escapeXml(f.error.slice(0, 200)),
  ]);
  const sections = [
    `<h1>How long a service takes to start, far from its image</h1>${facts}`,
    ...plots(all).map(({ svg }) => svg),
    `<h2>Every figure</h2>${cellTable(all)}`,
    `<h2>Where the time goes</h2><p class="note">Milliseconds since the command, the start of median length.</p>${breakdownTable(all)}`,
    `<h2>The link</h2>${table(['round trip', 'connect, ms', 'goodput, Mbit/s', 'relay, of a CPU'], proofs)}`,
    failed.length === 0
      ? ''
      : `<h2>Starts that failed</h2>${table(['service', 'mode', 'round trip', 'system', 'error'], failed)}`,
    ...rowFiles.map((rows) => `<h2>${escapeXml(rows[0]!.bench)}</h2>${rowTable(rows)}`),
  ];
  return (
    '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">' +
    `<title>firstlight: results</title><style>${STYLE}</style></head><body>${sections.join('\n')}</body></html>\n`
  );
}

function main(): void {
  const { values } = parseArgs({
    options: {
      samples: { type: 'string' },
      rows: { type: 'string', multiple: true, default: [] },
      html: { type: 'string' },
      svg: { type: 'string' },
    },
  });
  const lines = values.samples === undefined ? [] : readLines(readFileSync(values.samples, 'utf8'));
  const rowFiles = values.rows.map((file) => readRows(readFileSync(file, 'utf8')));
  if (values.html !== undefined) writeFileSync(values.html, resultsPage(lines, rowFiles));
  if (values.svg === undefined) return;
  mkdirSync(values.svg, { recursive: true });
  const all = cells(lines.filter((line): line is Sample => line.kind === 'sample'));
  for (const { name, svg } of plots(all)) writeFileSync(join(values.svg, `${name}.svg`), svg);
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? '').href) main();
