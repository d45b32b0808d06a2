// In the page (see report-html-dom.ts): the table of files. It can be sorted and searched; only the
// rows in view are elements, so that a hundred thousand files cost no more than thirty.
import { html, type PageElement } from './report-html-dom.ts';
import type { Page } from './report-html-frame.ts';
import { cutMiddle, formatNs, formatSize } from './report-html-scale.ts';
import { waitsOf } from './report-html-waits.ts';

/** One column: what it sorts by, and what it shows. */
export interface Column {
  title: string;
  about: string;
  /** What the first click shows on top: the longest wait, but the first name. */
  largestFirst: boolean;
  value(file: number): number | string;
  text(file: number): string;
}

/** Columns for what the trace has and for the two orders that are compared. */
export function columnsOf(page: Page, before: number, after: number): Column[] {
  const { data } = page;
  const known = (value: number, format: (value: number) => string) =>
    value < 0 ? '–' : format(value);
  const column = (
    title: string,
    about: string,
    list: number[],
    format: (value: number) => string,
  ): Column => ({
    title,
    about,
    largestFirst: title !== 'Wanted',
    value: (file) => list[file]!,
    text: (file) => known(list[file]!, format),
  });
  const columns: Column[] = [
    {
      title: '#',
      about: 'Order of first access',
      largestFirst: false,
      value: (file) => file,
      text: (file) => String(file + 1),
    },
    {
      title: 'File',
      about: 'Path in the image',
      largestFirst: false,
      value: (file) => data.name[file]!,
      text: (file) => data.name[file]!,
    },
    column('Size', 'Size of the file', data.size, formatSize),
    column('Read', 'Bytes of it that were read', data.read, formatSize),
    column('Arrived', 'When its last byte was there', data.arrived, (ns) =>
      ns === 0 ? 'before' : formatNs(ns),
    ),
    column('Wanted', 'When it was first opened', data.wanted, formatNs),
    column('Waited', 'How long readers waited for it in the recorded run', data.waited, formatNs),
  ];
  for (const order of data.orders.length === 0 ? [] : new Set([before, after])) {
    const { name, waited } = waitsOf(page, order);
    if (order >= 0) columns.push(column(name, 'Simulated wait in this order', waited, formatNs));
  }
  if (data.runs !== null) {
    const about = `In how many of ${data.runsTotal} runs it was read`;
    columns.push(column('Runs', about, data.runs, (runs) => `${runs}/${data.runsTotal}`));
  }
  return columns;
}

/** Files whose name contains all words of `search`, sorted; equal ones stay in order of access. */
export function sortFiles(page: Page, column: Column, down: boolean, search: string): number[] {
  const words = search.toLowerCase().split(/\s+/);
  const files: number[] = [];
  for (let file = 0; file < page.data.name.length; file++) {
    const name = page.data.name[file]!.toLowerCase();
    if (words.every((word) => name.includes(word))) files.push(file);
  }
  const sign = down ? -1 : 1;
  return files.sort((one, other) => {
    const [x, y] = [column.value(one), column.value(other)];
    return x === y ? one - other : (x < y ? -1 : 1) * sign;
  });
}

/** The table, in an element that scrolls. */
export class FilesTable {
  #page: Page;
  #root: PageElement;
  #search: PageElement;
  #count: PageElement;
  #columns: Column[] = [];
  #headings: PageElement[] = [];
  #sorted = { column: 0, down: false };
  #files: number[] = [];
  #printing = false;
  #head = html('tr', {});
  #body = html('tbody', {});
  #above = html('td', { class: 'gap' });
  #below = html('td', { class: 'gap' });

  constructor(page: Page, root: PageElement, search: PageElement, count: PageElement) {
    this.#page = page;
    this.#root = root;
    this.#search = search;
    this.#count = count;
    const table = html('table', { class: 'files' }, html('thead', {}, this.#head), this.#body);
    root.replaceChildren(table);
    root.addEventListener('scroll', () => this.#drawRows());
    search.addEventListener('input', () => this.#fill());
    page.redraw.push(() => this.#drawRows());
    page.print.push((now) => {
      this.#printing = now;
      this.#drawRows();
    });
  }

  /** Shows what the trace has and the waits of two orders. */
  compare(before: number, after: number): void {
    this.#columns = columnsOf(this.#page, before, after);
    if (this.#sorted.column >= this.#columns.length) this.#sorted = { column: 0, down: false };
    this.#headings = this.#columns.map(({ title, about }, i) => {
      const button = html('button', { type: 'button', title: about }, title);
      button.addEventListener('click', () => this.#sort(i));
      return html('th', { scope: 'col', class: i === 1 ? 'path' : '' }, button);
    });
    this.#head.replaceChildren(...this.#headings);
    for (const gap of [this.#above, this.#below]) {
      gap.setAttribute('colspan', String(this.#columns.length));
    }
    this.#fill();
  }

  #sort(column: number): void {
    const again = this.#sorted.column === column;
    const down = again ? !this.#sorted.down : this.#columns[column]!.largestFirst;
    this.#sorted = { column, down };
    this.#fill();
  }

  #fill(): void {
    const { column, down } = this.#sorted;
    this.#files = sortFiles(this.#page, this.#columns[column]!, down, this.#search.value);
    for (const [i, heading] of this.#headings.entries()) {
      const order = i !== column ? 'none' : down ? 'descending' : 'ascending';
      heading.setAttribute('aria-sort', order);
    }
    const all = this.#page.data.name.length;
    this.#count.textContent = `${this.#files.length} of ${all} ${all === 1 ? 'file' : 'files'}`;
    this.#root.scrollTop = 0;
    this.#drawRows();
  }

  /** The rows in view and a few around them; all of them, within reason, for paper. */
  #drawRows(): void {
    const rowPixels = 26;
    const files = this.#files;
    const inView = Math.ceil(this.#root.clientHeight / rowPixels) + 8;
    const shown = this.#printing ? 5000 : Math.max(inView, 30);
    const scrolled = Math.floor(this.#root.scrollTop / rowPixels) - 4;
    const first = this.#printing ? 0 : Math.max(0, Math.min(scrolled, files.length - shown));
    const letters = Math.floor(((this.#headings[1]?.clientWidth ?? 400) - 20) / 7.3);
    const rows = files.slice(first, first + shown).map((file, i) => {
      const cells = this.#columns.map(({ text }, at) =>
        at === 1
          ? html('td', { class: 'path', title: text(file) }, cutMiddle(text(file), letters))
          : html('td', {}, text(file)),
      );
      // Rows count from 1, and the heading is one.
      return html('tr', { 'aria-rowindex': String(first + i + 2) }, ...cells);
    });
    const after = this.#printing ? 0 : files.length - first - rows.length;
    this.#above.style.setProperty('height', `${first * rowPixels}px`);
    this.#below.style.setProperty('height', `${after * rowPixels}px`);
    this.#body.replaceChildren(
      html('tr', { 'aria-hidden': 'true' }, this.#above),
      ...rows,
      html('tr', { 'aria-hidden': 'true' }, this.#below),
    );
  }
}

/** What of this file goes into the page. */
export const TABLE_FUNCTIONS = [columnsOf, sortFiles, FilesTable];
