// In the page (see report-html-dom.ts): what the charts over time have in common. The piece of time
// that all of them show and how it is changed, the frame with its axes, the note at the pointer.
import type { PageData } from './report-html-data.ts';
import {
  html,
  type PageDocument,
  type PageElement,
  type PagePointer,
  svg,
} from './report-html-dom.ts';
import { formatTick, ticksOf } from './report-html-scale.ts';

declare const document: PageDocument;

/** What the parts of the page share. */
export interface Page {
  data: PageData;
  /** The piece of time that the charts show, ns. */
  from: number;
  to: number;
  /** Files (their numbers) with something to see in that piece of time. */
  rows: number[];
  /** Draws what depends on the time shown, and what depends on the width alone. */
  redraw: (() => void)[];
  /** Told when the page is about to be printed (true) and when it has been. */
  print: ((now: boolean) => void)[];
  note: PageElement;
}

/** A chart's plot: sizes in pixels, and times as pixels from its left edge. */
export interface Frame {
  left: number;
  top: number;
  width: number;
  height: number;
  /** The whole picture; `back` lies under the marks. Both count pixels from the picture's corner ... */
  picture: PageElement;
  back: PageElement;
  /** ... and this, where the marks go, from the plot's; what lies outside of the plot is cut off. */
  plot: PageElement;
  x(ns: number): number;
}

/** Files that are wanted or waited for between two moments. */
export function rowsBetween(data: PageData, from: number, to: number): number[] {
  const rows: number[] = [];
  for (let i = 0; i < data.wanted.length; i++) {
    const waits = data.waits[i]!;
    const last = Math.max(waits.at(-1) ?? 0, data.touches[i]!.at(-1) ?? 0, data.wanted[i]!);
    if (data.wanted[i]! <= to && last >= from) rows.push(i);
  }
  return rows;
}

/** Shows another piece of time, at least 1 µs long, within the run. */
export function showTime(page: Page, from: number, to: number): void {
  const end = Math.max(page.data.endNs, 1000);
  const span = Math.min(Math.max(to - from, 1000), end);
  page.from = Math.max(0, Math.min(from, end - span));
  page.to = page.from + span;
  page.rows = rowsBetween(page.data, page.from, page.to);
  // What the pointer stands on is another thing now.
  page.note.hidden = true;
  for (const redraw of page.redraw) redraw();
}

/** Shows lines of text near the pointer, the first as their title; none hides the note. */
export function showNote(page: Page, event: PagePointer, lines: string[]): void {
  page.note.hidden = lines.length === 0;
  if (lines.length === 0) return;
  page.note.replaceChildren(...lines.map((line) => html('div', {}, line)));
  const { width, height } = page.note.getBoundingClientRect();
  const { clientWidth, clientHeight } = document.documentElement;
  const right = event.clientX + 14;
  const below = event.clientY + 14;
  const left = right + width > clientWidth ? event.clientX - 14 - width : right;
  const top = below + height > clientHeight ? event.clientY - 14 - height : below;
  page.note.style.setProperty('left', `${Math.max(4, left)}px`);
  page.note.style.setProperty('top', `${Math.max(4, top)}px`);
}

/** True where so few files are in view that each gets a line of text. */
export function rowsAreNamed(page: Page): boolean {
  return page.rows.length <= 50;
}

/** Pixels left of the plots: room for names of files, or for numbers alone. The same for all charts over time. */
export function leftOf(page: Page, width: number): number {
  return rowsAreNamed(page) ? Math.round(Math.min(280, width * 0.35)) : 64;
}

/** Empties `root` and draws a frame with the time axis in it. */
export function frameOf(page: Page, root: PageElement, height: number): Frame {
  const full = Math.max(root.clientWidth, 240);
  const left = leftOf(page, full);
  const [top, right, bottom] = [8, 16, 26];
  const width = full - left - right;
  const span = page.to - page.from;
  const x = (ns: number) => ((ns - page.from) / span) * width;
  const picture = svg('svg', { width: full, height: height + top + bottom });
  const back = svg('g', {});
  const ticks = ticksOf(page.from, page.to, Math.max(3, Math.floor(width / 110)));
  const step = (ticks[1] ?? page.to) - (ticks[0] ?? page.from);
  for (const tick of ticks) {
    const at = left + x(tick);
    const label = formatTick(tick, step);
    // The last label may stand at the picture's edge, and is moved in by what would be cut off.
    const room = Math.min(at, full - label.length * 3.7);
    const place = { x: room, y: top + height + 17, 'text-anchor': 'middle' };
    back.append(
      svg('line', { class: 'grid', x1: at, x2: at, y1: top, y2: top + height }),
      svg('text', { class: 'tick', ...place }, label),
    );
  }
  const y = top + height;
  back.append(svg('line', { class: 'axis', x1: left, x2: left + width, y1: y, y2: y }));
  const plot = svg('svg', { x: left, y: top, width, height, overflow: 'hidden' });
  picture.append(back, plot);
  root.replaceChildren(picture);
  return { left, top, width, height, picture, back, plot, x };
}

/** Lets a drag over a chart choose the time to show, and a double click show everything again. */
export function chooseTime(page: Page, root: PageElement, frame: () => Frame): void {
  let start: number | undefined;
  let mark: PageElement | undefined;
  const at = (event: PagePointer) => {
    const inPlot = event.clientX - root.getBoundingClientRect().left - frame().left;
    return Math.min(Math.max(inPlot, 0), frame().width);
  };
  const stop = () => {
    mark?.setAttribute('width', '0');
    start = undefined;
  };
  root.addEventListener('pointerdown', (event) => {
    if (event.button !== 0) return;
    start = at(event);
    mark = svg('rect', { class: 'chosen', y: 0, height: frame().height, x: start, width: 0 });
    frame().plot.append(mark);
    root.setPointerCapture(event.pointerId);
  });
  root.addEventListener('pointermove', (event) => {
    if (start === undefined || mark === undefined) return;
    mark.setAttribute('x', String(Math.min(start, at(event))));
    mark.setAttribute('width', String(Math.abs(at(event) - start)));
  });
  root.addEventListener('pointerup', (event) => {
    const began = start;
    const ended = at(event);
    stop();
    // A click, or a hand that was not quite still, chooses nothing.
    if (began === undefined || Math.abs(ended - began) < 4) return;
    const ns = (pixels: number) => page.from + (pixels / frame().width) * (page.to - page.from);
    showTime(page, ns(Math.min(began, ended)), ns(Math.max(began, ended)));
  });
  root.addEventListener('pointercancel', stop);
  root.addEventListener('dblclick', () => showTime(page, 0, page.data.activeNs * 1.02));
}

/** What of this file goes into the page. */
export const FRAME_FUNCTIONS = [
  rowsBetween,
  showTime,
  showNote,
  rowsAreNamed,
  leftOf,
  frameOf,
  chooseTime,
];
