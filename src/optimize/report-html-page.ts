// In the page (see report-html-dom.ts): where its script begins. Puts the parts together.
import { bytesChart } from './report-html-bytes.ts';
import type { PageData } from './report-html-data.ts';
import { byId, type PageElement } from './report-html-dom.ts';
import { filesChart } from './report-html-files.ts';
import { type Page, showTime } from './report-html-frame.ts';
import { FilesTable } from './report-html-table.ts';
import { WaitsChart } from './report-html-waits.ts';

declare const window: { addEventListener(type: string, listener: () => void): void };
declare const ResizeObserver: new (changed: () => void) => { observe(element: PageElement): void };

/** The buttons that change the piece of time in view. */
export function timeButtons(page: Page): void {
  const onClick = (id: string, run: (span: number) => void) => {
    byId(id).addEventListener('click', () => run(page.to - page.from));
  };
  onClick('time-active', () => showTime(page, 0, page.data.activeNs * 1.02));
  onClick('time-all', () => showTime(page, 0, page.data.endNs));
  onClick('time-in', (span) => showTime(page, page.from + span / 4, page.to - span / 4));
  onClick('time-out', (span) => showTime(page, page.from - span / 2, page.to + span / 2));
  onClick('time-back', (span) => showTime(page, page.from - span / 2, page.to - span / 2));
  onClick('time-on', (span) => showTime(page, page.from + span / 2, page.to + span / 2));
}

/** Starts the page. */
export function startPage(): void {
  const data = JSON.parse(byId('data').textContent ?? '') as PageData;
  const page: Page = { data, from: 0, to: 1, rows: [], redraw: [], print: [], note: byId('note') };
  // Without simulated orders there is nothing to choose, and the recorded run is all there is.
  const order = (id: string) => (data.orders.length === 0 ? -1 : Number(byId(id).value));
  const chosen = () => ({ before: order('order-before'), after: order('order-after') });
  filesChart(page, byId('chart-files'));
  bytesChart(page, byId('chart-bytes'));
  if (data.orders.length > 0) new WaitsChart(page, byId('chart-waits'), chosen);
  const table = new FilesTable(page, byId('table'), byId('search'), byId('count'));
  const compare = () => table.compare(chosen().before, chosen().after);
  compare();
  if (data.orders.length > 0) {
    for (const id of ['order-before', 'order-after']) {
      byId(id).addEventListener('change', () => {
        for (const redraw of page.redraw) redraw();
        compare();
      });
    }
  }
  timeButtons(page);
  showTime(page, 0, data.activeNs * 1.02);
  let width = byId('main').clientWidth;
  new ResizeObserver(() => {
    // Drawing changes the height alone, and must not draw again.
    if (byId('main').clientWidth === width) return;
    width = byId('main').clientWidth;
    for (const redraw of page.redraw) redraw();
  }).observe(byId('main'));
  window.addEventListener('beforeprint', () => {
    for (const print of page.print) print(true);
  });
  window.addEventListener('afterprint', () => {
    for (const print of page.print) print(false);
  });
}

/** What of this file goes into the page. */
export const PAGE_FUNCTIONS = [timeButtons, startPage];
