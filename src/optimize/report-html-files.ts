// In the page (see report-html-dom.ts): the picture of every file on the time axis. A line for each
// file, in the order in which they were first wanted: when its bytes had arrived, when it was wanted,
// how long a reader waited. Where there are more files than pixels, lines share pixels.
import type { PageElement, PagePointer } from './report-html-dom.ts';
import { svg } from './report-html-dom.ts';
import {
  chooseTime,
  type Frame,
  frameOf,
  type Page,
  rowsAreNamed,
  showNote,
} from './report-html-frame.ts';
import { cutMiddle, formatNs, formatSize, ticksOf } from './report-html-scale.ts';

/** Where lines of files stand in a plot. */
interface Lines {
  /** Pixels from one line to the next; below one where lines share pixels. */
  pitch: number;
  /** Height of a bar. */
  bar: number;
}

/** Height of the plot for a number of files. */
export function linesHeight(files: number): number {
  if (files <= 30) return Math.max(files, 2) * 20;
  return 600;
}

/** Draws the marks of all files in view: one path for each kind, so that thousands stay quick. */
export function drawMarks(page: Page, frame: Frame, { pitch, bar }: Lines): void {
  const { data, rows } = page;
  const seen = new Set<number>();
  // A mark on the same pixels as another one adds nothing.
  const isNew = (kind: number, x: number, y: number, more: number) => {
    const key = ((kind * 8192 + Math.round(x)) * 8192 + Math.round(y)) * 8192 + Math.round(more);
    if (seen.has(key)) return false;
    seen.add(key);
    return true;
  };
  const cut = (x: number) => Math.min(Math.max(x, -10), frame.width + 10);
  const paths = { ahead: '', wait: '', arrived: '', touch: '', wanted: '' };
  const box = (x: number, y: number, width: number, height: number) =>
    `M${x.toFixed(1)} ${(y - height / 2).toFixed(1)}h${width.toFixed(1)}v${height.toFixed(1)}h${(-width).toFixed(1)}z`;
  for (let line = 0; line < rows.length; line++) {
    const file = rows[line]!;
    const y = (line + 0.5) * pitch;
    const wanted = cut(frame.x(data.wanted[file]!));
    const arrived = data.arrived[file]! < 0 ? undefined : cut(frame.x(data.arrived[file]!));
    if (arrived !== undefined && arrived < wanted && isNew(0, arrived, y, wanted))
      paths.ahead += box(arrived, y, wanted - arrived, Math.max(1, bar * 0.2));
    const waits = data.waits[file]!;
    for (let i = 0; i < waits.length; i += 2) {
      const from = cut(frame.x(waits[i]!));
      const width = Math.max(1, cut(frame.x(waits[i + 1]!)) - from);
      if (isNew(1, from, y, width)) paths.wait += box(from, y, width, bar);
    }
    if (arrived !== undefined && isNew(2, arrived, y, 0))
      paths.arrived += box(arrived - 1, y, 2, bar);
    for (const touch of data.touches[file]!) {
      const x = cut(frame.x(touch));
      if (isNew(3, x, y, 0)) paths.touch += box(x - 0.5, y, 1, bar * 0.6);
    }
    if (isNew(4, wanted, y, 0)) {
      const r = Math.min(bar / 2, 4);
      paths.wanted +=
        pitch < 8
          ? box(wanted - 1, y, 2, Math.max(1.5, bar))
          : `M${(wanted - r).toFixed(1)} ${y.toFixed(1)}a${r} ${r} 0 1 0 ${2 * r} 0a${r} ${r} 0 1 0 ${-2 * r} 0z`;
    }
  }
  for (const [kind, d] of Object.entries(paths)) frame.plot.append(svg('path', { class: kind, d }));
}

/** Names of files left of their lines, or where there is no room for them, numbers. */
export function drawNames(page: Page, frame: Frame, pitch: number): void {
  const { data, rows } = page;
  const text = (line: number, words: string, kind: string) => {
    const attributes = { class: kind, x: frame.left - 8, 'text-anchor': 'end' };
    frame.picture.append(
      svg('text', { ...attributes, y: frame.top + (line + 0.5) * pitch + 4 }, words),
    );
  };
  if (rowsAreNamed(page)) {
    const letters = Math.floor((frame.left - 12) / 6.7);
    for (const [line, file] of rows.entries())
      text(line, cutMiddle(data.name[file]!, letters), 'name');
    return;
  }
  for (const count of ticksOf(1, rows.length, 8)) {
    const line = Math.round(count) - 1;
    text(line, `#${rows[line]! + 1}`, 'tick');
  }
}

/** What there is to say of a file. */
export function fileNote(page: Page, file: number): string[] {
  const { data } = page;
  const lines = [data.name[file]!];
  const size = data.size[file]!;
  const read = data.read[file]!;
  if (size >= 0)
    lines.push(`${formatSize(size)}${read < size ? `, of which ${formatSize(read)} read` : ''}`);
  lines.push(`wanted at ${formatNs(data.wanted[file]!)}`);
  const arrived = data.arrived[file]!;
  if (arrived === 0) lines.push('was there before');
  else if (arrived > 0) lines.push(`arrived at ${formatNs(arrived)}`);
  const waited = data.waited[file]!;
  lines.push(waited === 0 ? 'nobody waited' : `waited for ${formatNs(waited)}`);
  return lines;
}

/** Draws the picture and keeps it up to date. */
export function filesChart(page: Page, root: PageElement): void {
  let frame: Frame;
  let pitch = 1;
  const draw = () => {
    const height = linesHeight(page.rows.length);
    frame = frameOf(page, root, height);
    pitch = height / Math.max(page.rows.length, 1);
    if (page.rows.length <= 30) pitch = Math.min(pitch, 20);
    drawMarks(page, frame, { pitch, bar: Math.min(12, Math.max(1, pitch * 0.6)) });
    drawNames(page, frame, pitch);
  };
  const fileAt = (event: PagePointer): number | undefined => {
    const box = root.getBoundingClientRect();
    const y = event.clientY - box.top - frame.top;
    const x = event.clientX - box.left - frame.left;
    const first = Math.floor((y - 2) / pitch);
    const last = Math.floor((y + 2) / pitch);
    let best: number | undefined;
    let least = Number.POSITIVE_INFINITY;
    for (let line = Math.max(first, 0); line <= last && line < page.rows.length; line++) {
      const file = page.rows[line]!;
      const away =
        Math.abs((line + 0.5) * pitch - y) * 4 + Math.abs(frame.x(page.data.wanted[file]!) - x);
      if (away < least) [best, least] = [file, away];
    }
    return best;
  };
  page.redraw.push(draw);
  root.addEventListener('pointermove', (event) => {
    const file = fileAt(event);
    showNote(page, event, file === undefined ? [] : fileNote(page, file));
  });
  root.addEventListener('pointerleave', (event) => showNote(page, event, []));
  chooseTime(page, root, () => frame);
}

/** What of this file goes into the page. */
export const FILES_FUNCTIONS = [linesHeight, drawMarks, drawNames, fileNote, filesChart];
