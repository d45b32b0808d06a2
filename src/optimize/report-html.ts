// A trace as one web page that needs nothing else: no network, no other file. What of it stands
// still (names, sums, the orders' totals) is written here; the pictures and the table are drawn by
// the page's own script from the data beside them.
//
// Traces come from other machines, so nothing of one is ever markup: text is escaped, the data holds
// no `<`, and the page's own policy lets the browser run this script only and fetch nothing.
import { createHash } from 'node:crypto';
import { formatTime } from '../trace/time.ts';
import { BYTES_FUNCTIONS, bytesAt } from './report-html-bytes.ts';
import {
  joinIntervals,
  lengthOf,
  type PageData,
  type PageOrder,
  pageData,
  type ReportInput,
} from './report-html-data.ts';
import { DOM_FUNCTIONS } from './report-html-dom.ts';
import { FILES_FUNCTIONS } from './report-html-files.ts';
import { FRAME_FUNCTIONS } from './report-html-frame.ts';
import { PAGE_FUNCTIONS, startPage } from './report-html-page.ts';
import { formatNs, formatSize, SCALE_FUNCTIONS } from './report-html-scale.ts';
import { STYLE } from './report-html-style.ts';
import { TABLE_FUNCTIONS } from './report-html-table.ts';
import { WAITS_FUNCTIONS } from './report-html-waits.ts';
import type { SimulationOptions } from './simulate.ts';

export type { ReportInput, ReportOrder } from './report-html-data.ts';
export { reportInput } from './report-html-input.ts';

/** The page's script. Functions refer to each other by name, so their order is of no matter. */
export const SCRIPT = [
  "'use strict';",
  ...[
    DOM_FUNCTIONS,
    SCALE_FUNCTIONS,
    FRAME_FUNCTIONS,
    FILES_FUNCTIONS,
    BYTES_FUNCTIONS,
    WAITS_FUNCTIONS,
    TABLE_FUNCTIONS,
    PAGE_FUNCTIONS,
  ]
    .flat()
    .map(String),
  `${startPage.name}();`,
].join('\n');

/** Text in HTML, between tags or as an attribute in double quotes. */
function text(words: string): string {
  const names: Record<string, string> = { '&': '&amp;', '<': '&lt;', '>': '&gt;', '"': '&quot;' };
  return words.replace(/[&<>"]/g, (c) => names[c]!);
}

/** What a script or style must hash to, for the page's policy. */
function sourceHash(source: string): string {
  return `'sha256-${createHash('sha256').update(source).digest('base64')}'`;
}

/** One share of another as `94 %`. */
function percent(part: number, whole: number): string {
  return `${whole === 0 ? 0 : Math.round((part / whole) * 100)} %`;
}

function counted(count: number, one: string, many = `${one}s`): string {
  return `${count.toLocaleString('en')} ${count === 1 ? one : many}`;
}

/** ns during which at least one reader waited. */
function anyoneWaitedNs(data: PageData): number {
  const all = data.waits.flatMap((waits) => {
    const pairs: [number, number][] = [];
    for (let i = 0; i < waits.length; i += 2) pairs.push([waits[i]!, waits[i + 1]!]);
    return pairs;
  });
  return lengthOf(joinIntervals(all));
}

function sum(list: readonly number[]): number {
  return list.reduce((total, value) => total + value, 0);
}

function headOf({ tracer, runs }: ReportInput, data: PageData): string {
  const facts = [
    tracer.digest,
    tracer.platform,
    `group ${tracer.group}`,
    `recorded ${formatTime(tracer.startNs - (tracer.startNs % 1_000_000_000n))}`,
    runs === undefined ? undefined : `merged from ${counted(runs.total, 'run')}`,
  ];
  const warnings = [
    tracer.lost === undefined
      ? undefined
      : `${counted(tracer.lost, 'event')} could not be recorded: some files or reads are missing here.`,
    tracer.recovered === true
      ? 'The recorder was ended before it had finished; up to the last second of the run is missing here.'
      : undefined,
    data.name.length === 0 ? 'Nothing was read in this run.' : undefined,
  ];
  const shown = facts.filter((fact) => fact !== undefined).map(text);
  const warned = warnings.filter((warning) => warning !== undefined);
  return `<h1>${text(tracer.image)}</h1>
<p class="facts">${shown.join(' · ')}</p>
${warned.map((warning) => `<p class="warn">${text(warning)}</p>`).join('\n')}`;
}

function tilesOf(data: PageData): string {
  const tile = (title: string, value: string, more: string) =>
    `<div><dt>${text(title)}</dt><dd>${text(value)}</dd><dd>${text(more)}</dd></div>`;
  const total = sum(data.waited);
  const late = data.waited.filter((ns) => ns > 0).length;
  const longest = data.waited.reduce((best, ns, i) => (ns > data.waited[best]! ? i : best), 0);
  const unknown = data.read.filter((bytes) => bytes < 0).length;
  const sent = data.received?.bytes.at(-1);
  return `<dl class="tiles">
${tile('Files read', data.name.length.toLocaleString('en'), `within ${formatNs(data.activeNs)}`)}
${tile('Bytes needed', unknown > 0 && unknown === data.name.length ? 'not recorded' : formatSize(data.needed.bytes.at(-1) ?? 0), unknown > 0 ? `size of ${counted(unknown, 'file')} not recorded` : sent === undefined ? 'of file contents' : `${formatSize(sent)} sent by the server`)}
${tile('Readers waited', formatNs(total), `for ${counted(late, 'file')}, ${percent(late, data.name.length)} of them`)}
${tile('Somebody waited', formatNs(anyoneWaitedNs(data)), `${percent(anyoneWaitedNs(data), data.activeNs)} of the time`)}
${tile('Longest wait', formatNs(data.waited[longest] ?? 0), total === 0 ? 'nobody waited' : data.name[longest]!.slice(data.name[longest]!.lastIndexOf('/') + 1))}
</dl>`;
}

/** A legend's entry; `mark` is SVG in a box of 22 by 12. */
function key(mark: string, words: string): string {
  return `<li><svg viewBox="0 0 22 12" aria-hidden="true">${mark}</svg>${text(words)}</li>`;
}

function filesSection(data: PageData): string {
  const known = data.arrived.some((ns) => ns >= 0);
  return `<section>
<h2>Every file on the time axis</h2>
<p>One line for each file, from the first one wanted (above) to the last. Drag to look closer; a double click shows all.</p>
<div class="bar-of-buttons">
<button type="button" id="time-active">While files were read</button><button type="button" id="time-all">Whole run</button>
<button type="button" id="time-in" aria-label="Look closer">+</button><button type="button" id="time-out" aria-label="Show more">−</button>
<button type="button" id="time-back" aria-label="Earlier">←</button><button type="button" id="time-on" aria-label="Later">→</button>
</div>
<ul class="legend">
${key('<circle class="wanted" cx="11" cy="6" r="4"/>', 'wanted')}
${key('<rect class="wait" x="0" y="1" width="22" height="10"/>', 'a reader waited')}
${known ? key('<rect class="arrived" x="2" y="0" width="2" height="12"/><rect class="ahead" x="4" y="5" width="18" height="2"/>', 'arrived, and lay ready') : ''}
${data.touches.some((list) => list.length > 0) ? key('<rect class="touch" x="10" y="2" width="1" height="8"/>', 'more of a large file wanted') : ''}
</ul>
${known ? '' : '<p>When files arrived was not recorded.</p>'}
<div class="chart time" id="chart-files" role="img" aria-label="Files over time; the table below has the same numbers"></div>
</section>`;
}

function bytesSection(data: PageData): string {
  const line = (kind: string) => `<path class="curve ${kind}" d="M0 6H22"/>`;
  return `<section>
<h2>Bytes needed and bytes sent</h2>
<p>Sums over the same piece of time. What was needed and what had arrived counts file contents; what the server sent is compressed.</p>
<ul class="legend">
${key(line('needed'), 'needed')}
${data.arrivedBytes === null ? '' : key(line('came'), 'arrived (whole files)')}
${data.received === null ? '' : key(line('received'), 'sent by the server')}
</ul>
${data.received === null ? '<p>What the server sent was not recorded.</p>' : ''}
<div class="chart time" id="chart-bytes" role="img" aria-label="Bytes needed, arrived and sent over time"></div>
</section>`;
}

/** Index of the order that is done first; of equal ones that in which the run stands still least. */
function bestOrder({ orders }: PageData): number {
  return orders.reduce((best, { done, blocked }, i) => {
    const other = orders[best]!;
    return done < other.done || (done === other.done && blocked < other.blocked) ? i : best;
  }, 0);
}

function ordersTable(data: PageData): string {
  const recorded = {
    name: 'recorded run',
    total: sum(data.waited),
    blocked: anyoneWaitedNs(data),
    done: data.activeNs,
    bytes: data.received === null ? undefined : bytesAt(data.received, data.activeNs),
    kind: 'wait',
  };
  const rows = [recorded, ...data.orders.map((order) => ({ ...order, kind: 'wanted' }))];
  const most = rows.reduce((highest, { blocked }) => Math.max(highest, blocked), 0);
  const cells = rows.map(({ name, total, blocked, done, bytes, kind }) => {
    const width = most === 0 ? 0 : (blocked / most) * 100;
    const bar = `<svg aria-hidden="true"><rect class="${kind}" width="${width.toFixed(2)}%" height="100%" rx="2"/></svg>`;
    const values = [
      formatNs(done),
      bytes === undefined ? '–' : formatSize(bytes),
      formatNs(total),
      formatNs(blocked),
    ];
    return `<tr><th scope="row">${text(name)}</th>${values.map((value) => `<td>${value}</td>`).join('')}<td class="picture">${bar}</td></tr>`;
  });
  return `<table class="orders">
<thead><tr><th scope="col">Order</th><th scope="col">All read after</th><th scope="col">Received by then</th><th scope="col">Readers waited</th><th scope="col">Stood still</th><td></td></tr></thead>
<tbody>${cells.join('\n')}</tbody>
</table>`;
}

/** `a line of 100 Mbit/s with a round trip of 150 ms` */
function lineWords({ bytesPerSecond, roundTripMs, outOfOrder, warm }: SimulationOptions): string {
  const mbits = Number(((bytesPerSecond * 8) / 1e6).toPrecision(4));
  const more = [
    outOfOrder === false ? ', without fetching out of order' : '',
    warm === true ? ', over connections that are open' : '',
  ];
  return `a line of ${mbits} Mbit/s with a round trip of ${Number(roundTripMs.toPrecision(4))} ms${more.join('')}`;
}

function ordersSection({ line }: ReportInput, data: PageData): string {
  const first = data.orders[0];
  if (first === undefined) {
    return `<section>
<h2>Waits before and after reordering</h2>
<p>No other order was simulated for this page.</p>
</section>`;
  }
  const best = data.orders[bestOrder(data)]!;
  const on = line === undefined ? 'As simulated' : `On ${lineWords(line)}`;
  const fares = ({ name, done, blocked }: PageOrder) =>
    `in ${text(name)} the run has read everything after <strong>${formatNs(done)}</strong>, having stood still for <strong>${formatNs(blocked)}</strong>`;
  const found =
    best === first
      ? `${fares(first)}; no other order is faster.`
      : `${fares(best)}; ${fares(first)}.`;
  const choice = (id: string, chosen: number) => {
    const options = ['recorded run', ...data.orders.map(({ name }) => name)].map(
      (name, i) =>
        `<option value="${i - 1}"${i - 1 === chosen ? ' selected' : ''}>${text(name)}</option>`,
    );
    return `<select id="${id}">${options.join('')}</select>`;
  };
  return `<section>
<h2>Waits before and after reordering</h2>
<p>${on}, ${found} Orders are simulated, from the request for the image; the recorded run was measured, on whatever line it had, from when it was mounted.</p>
${ordersTable(data)}
<div class="bar-of-buttons"><label>above the line ${choice('order-before', 0)}</label> <label>below ${choice('order-after', bestOrder(data))}</label></div>
<ul class="legend">
${key('<rect class="before" x="6" y="0" width="10" height="12"/>', 'wait before')}
${key('<rect class="after" x="6" y="0" width="10" height="12"/>', 'wait after')}
</ul>
<div class="chart" id="chart-waits" role="img" aria-label="Wait of each file in two orders; the table below has the same numbers"></div>
</section>`;
}

const TABLE_SECTION = `<section>
<h2>All files</h2>
<div class="bar-of-buttons"><input type="search" id="search" placeholder="Part of a path" aria-label="Part of a path"><span id="count" role="status"></span></div>
<div class="scroll" id="table" tabindex="0" role="region" aria-label="Table of files"></div>
</section>`;

/**
 * Draws a trace as one page of HTML (text of UTF-8), complete in itself.
 * Its length grows with the trace: about 100 bytes and the path for each file.
 */
export function renderReport(input: ReportInput): string {
  const data = pageData(input);
  // In JSON `<` can only stand in a string, where the escape means the same.
  const json = JSON.stringify(data).replaceAll('<', '\\u003c');
  const policy = `default-src 'none'; img-src data:; script-src ${sourceHash(SCRIPT)}; style-src ${sourceHash(STYLE)}; base-uri 'none'; form-action 'none'`;
  return `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="${policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<title>${text(input.tracer.image)}: trace</title>
<link rel="icon" href="data:,">
<style>${STYLE}</style>
</head>
<body>
<main id="main">
${headOf(input, data)}
${tilesOf(data)}
<noscript><p class="warn">The pictures and the table below are drawn by this page's own script, which your browser does not run.</p></noscript>
${filesSection(data)}
${bytesSection(data)}
${ordersSection(input, data)}
${TABLE_SECTION}
</main>
<div id="note" hidden></div>
<script type="application/json" id="data">${json}</script>
<script>${SCRIPT}</script>
</body>
</html>
`;
}
