// Plots as SVG text: bars of the time to ready with their spread, for each service and system. Pure, and
// without any library: the page and the README show the same files. What does not live here: what
// the figures are (bench/startup/samples.ts), the page (page.ts).
import type { Cell } from '../startup/samples.ts';
import type { Mode } from '../startup/system.ts';

/** One colour a system, far apart for eyes that see few colours (after Okabe and Ito). */
const COLORS: Record<string, string> = {
  containerd: '#7f7f7f',
  'curl-bundle': '#c9a227',
  'firstlight-tree': '#56b4e9',
  'firstlight-traced': '#0072b2',
  'firstlight-traced-kept': '#009e73',
  'firstlight-traced-warm': '#e69f00',
};
const MORE_COLORS = ['#d55e00', '#cc79a7', '#332288'];

const ROW = 18;
const GAP = 14;
const LEFT = 190;
const WIDTH = 760;
const RIGHT = 120;

export function colorOf(system: string, systems: string[]): string {
  const others = systems.filter((name) => !(name in COLORS));
  return COLORS[system] ?? MORE_COLORS[others.indexOf(system) % MORE_COLORS.length]!;
}

export function escapeXml(text: string): string {
  return text
    .replaceAll('&', '&amp;')
    .replaceAll('<', '&lt;')
    .replaceAll('>', '&gt;')
    .replaceAll('"', '&quot;');
}

/** Seconds or megabytes as people read them. */
function short(value: number): string {
  return value >= 10 ? value.toFixed(1) : value.toFixed(2);
}

/** The next round number at or above a value, for the end of an axis. */
export function niceEnd(value: number): number {
  if (!(value > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 2.5, 5, 10].map((step) => step * power).find((end) => end >= value)!;
}

/** What a bar shows. */
export interface Bar {
  value: number;
  /** The spread; none where it makes no sense. */
  low?: number;
  high?: number;
}

/** Bars in groups. @param unit  behind each figure */
export function barPlot(
  title: string,
  unit: string,
  groups: { name: string; bars: { system: string; bar: Bar }[] }[],
): string {
  const systems = [...new Set(groups.flatMap(({ bars }) => bars.map(({ system }) => system)))];
  const all = groups.flatMap(({ bars }) => bars.map(({ bar }) => bar.high ?? bar.value));
  const end = niceEnd(Math.max(...all, 0));
  const inner = WIDTH - LEFT - RIGHT;
  const x = (value: number) => LEFT + (value / end) * inner;
  const parts: string[] = [];
  let y = 46;
  for (const { name, bars } of groups) {
    parts.push(`<text x="8" y="${y + 13}" font-weight="600">${escapeXml(name)}</text>`);
    for (const { system, bar } of bars) {
      parts.push(barAt(system, colorOf(system, systems), bar, unit, x, y));
      y += ROW;
    }
    y += GAP;
  }
  const height = y + 24;
  const ticks = [0, 0.25, 0.5, 0.75, 1].map((part) => part * end);
  const axis = ticks.map(
    (tick) =>
      `<line x1="${x(tick)}" x2="${x(tick)}" y1="36" y2="${y - GAP / 2}" stroke="currentColor" stroke-opacity="0.15"/>` +
      `<text x="${x(tick)}" y="${y + 8}" text-anchor="middle" fill-opacity="0.7">${Number(tick.toPrecision(3))} ${unit}</text>`,
  );
  return (
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${WIDTH} ${height}" width="${WIDTH}" height="${height}" role="img" ` +
    `aria-label="${escapeXml(title)}" font-family="system-ui, sans-serif" font-size="12" fill="currentColor" color="#222">` +
    '<style>@media (prefers-color-scheme: dark) { svg { color: #ddd } }</style>' +
    `<text x="8" y="20" font-size="15" font-weight="600">${escapeXml(title)}</text>` +
    `${axis.join('')}${parts.join('')}</svg>\n`
  );
}

function barAt(
  system: string,
  color: string,
  bar: Bar,
  unit: string,
  x: (value: number) => number,
  y: number,
): string {
  const { value, low, high } = bar;
  const middle = y + ROW / 2 - 1;
  const spread =
    low === undefined || high === undefined || low === high
      ? ''
      : `<line x1="${x(low).toFixed(1)}" x2="${x(high).toFixed(1)}" y1="${middle}" y2="${middle}" stroke="currentColor" stroke-width="1.5"/>`;
  const textAt = Math.max(x(value), high === undefined ? 0 : x(high)) + 6;
  return (
    `<text x="${LEFT - 6}" y="${y + 12}" text-anchor="end" font-size="11" fill-opacity="0.75">${escapeXml(system)}</text>` +
    `<rect x="${LEFT}" y="${y + 2}" width="${Math.max(1, x(value) - LEFT).toFixed(1)}" height="${ROW - 5}" fill="${color}"/>` +
    `${spread}<text x="${textAt.toFixed(1)}" y="${y + 12}" font-size="11">${short(value)} ${unit}</text>`
  );
}

/** Bars of one mode and link: a group for each service. */
function grouped(cells: Cell[], mode: Mode, rttMs: number, bar: (cell: Cell) => Bar) {
  const chosen = cells.filter((cell) => cell.mode === mode && cell.rttMs === rttMs);
  const names = [...new Set(chosen.map((cell) => cell.service))].sort();
  const order = Object.keys(COLORS);
  const place = (system: string) => (order.includes(system) ? order.indexOf(system) : order.length);
  return names.map((name) => ({
    name,
    bars: chosen
      .filter((cell) => cell.service === name)
      .sort((a, b) => place(a.system) - place(b.system))
      .map((cell) => ({ system: cell.system, bar: bar(cell) })),
  }));
}

/** Time to ready. */
export function readyPlot(cells: Cell[], mode: Mode, rttMs: number): string {
  const title = `${mode}: seconds from the command to ready, ${rttMs} ms round trip`;
  const bar = (cell: Cell): Bar => ({
    value: cell.readyMs / 1000,
    low: cell.minMs / 1000,
    high: cell.maxMs / 1000,
  });
  return barPlot(title, 's', grouped(cells, mode, rttMs, bar));
}

/** Bytes that had come by then. */
export function bytesPlot(cells: Cell[], mode: Mode, rttMs: number): string {
  const title = `${mode}: megabytes received until ready, ${rttMs} ms round trip`;
  return barPlot(
    title,
    'MB',
    grouped(cells, mode, rttMs, (cell) => ({ value: cell.bytes / 1e6 })),
  );
}

/** Time to ready by round trip, a line for each system. */
export function byRoundTrip(cells: Cell[], service: string, mode: Mode): string {
  const chosen = cells.filter((cell) => cell.service === service && cell.mode === mode);
  const links = [...new Set(chosen.map((cell) => cell.rttMs))].sort((a, b) => a - b);
  const systems = [...new Set(chosen.map((cell) => cell.system))].sort();
  const endX = Math.max(...links, 1);
  const endY = niceEnd(Math.max(...chosen.map((cell) => cell.readyMs / 1000), 0));
  const [width, height, left, top, bottom] = [520, 300, 52, 40, 36];
  const x = (ms: number) => left + (ms / endX) * (width - left - 170);
  const y = (s: number) => height - bottom - (s / endY) * (height - bottom - top);
  const lines = systems.map((system, i) => {
    const points = chosen
      .filter((cell) => cell.system === system)
      .sort((a, b) => a.rttMs - b.rttMs)
      .map((cell) => [x(cell.rttMs), y(cell.readyMs / 1000)] as const);
    const color = colorOf(system, systems);
    const path = points.map(([px, py]) => `${px.toFixed(1)},${py.toFixed(1)}`).join(' ');
    const dots = points.map(
      ([px, py]) => `<circle cx="${px.toFixed(1)}" cy="${py.toFixed(1)}" r="3" fill="${color}"/>`,
    );
    const legend = `<text x="${width - 158}" y="${top + 12 + i * 16}" fill="${color}">${escapeXml(system)}</text>`;
    return `<polyline points="${path}" fill="none" stroke="${color}" stroke-width="2"/>${dots.join('')}${legend}`;
  });
  const marks = [
    ...links.map(
      (ms) => `<text x="${x(ms)}" y="${height - 16}" text-anchor="middle">${ms} ms</text>`,
    ),
    ...[0, 0.5, 1].map(
      (part) =>
        `<text x="${left - 6}" y="${y(part * endY) + 4}" text-anchor="end">${Number((part * endY).toPrecision(3))} s</text>` +
        `<line x1="${left}" x2="${width - 170}" y1="${y(part * endY)}" y2="${y(part * endY)}" stroke="currentColor" stroke-opacity="0.15"/>`,
    ),
  ];
  const title = `${service}, ${mode}: time to ready by round trip`;
  return (
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" width="${width}" height="${height}" role="img" ` +
    `aria-label="${escapeXml(title)}" font-family="system-ui, sans-serif" font-size="11" fill="currentColor" color="#222">` +
    '<style>@media (prefers-color-scheme: dark) { svg { color: #ddd } }</style>' +
    `<text x="8" y="20" font-size="14" font-weight="600">${escapeXml(title)}</text>${marks.join('')}${lines.join('')}</svg>\n`
  );
}
