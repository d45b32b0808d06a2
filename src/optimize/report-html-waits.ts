// In the page (see report-html-dom.ts): every file's wait before and after a reordering, as bars
// above and below one line.
import { html, type PageElement, type PagePointer, svg } from './report-html-dom.ts';
import { type Page, showNote } from './report-html-frame.ts';
import { formatNs, formatTick, ticksOf } from './report-html-scale.ts';

/** Waits of every file: of the recorded run for number -1, else of that simulated order. */
export function waitsOf(page: Page, order: number): { name: string; waited: number[] } {
  return page.data.orders[order] ?? { name: 'recorded run', waited: page.data.waited };
}

/** One bar for each file, or for each pixel where there are more files; that pixel's longest wait. */
export function longestWaits(waited: number[], columns: number): { ns: number; file: number }[] {
  const longest: { ns: number; file: number }[] = [];
  for (let file = 0; file < waited.length; file++) {
    const column = Math.floor((file / waited.length) * columns);
    const ns = waited[file]!;
    if (longest[column] === undefined || longest[column].ns < ns) longest[column] = { ns, file };
  }
  return longest;
}

/** A list's longest wait. Not Math.max(...list): a list as long as a trace does not fit on the stack. */
export function mostOf(waits: { ns: number }[]): number {
  return waits.reduce((most, { ns }) => Math.max(most, ns), 0);
}

/** The two orders as bars up and down from one line. */
export class WaitsChart {
  #page: Page;
  #root: PageElement;
  #chosen: () => { before: number; after: number };
  #width = 1;
  #left = 64;

  constructor(page: Page, root: PageElement, chosen: () => { before: number; after: number }) {
    this.#page = page;
    this.#root = root;
    this.#chosen = chosen;
    page.redraw.push(() => this.#draw());
    root.addEventListener('pointermove', (event) => showNote(page, event, this.#note(event)));
    root.addEventListener('pointerleave', (event) => showNote(page, event, []));
  }

  /** Bars of both orders, and their waits. */
  #bars() {
    const [before, after] = [this.#chosen().before, this.#chosen().after].map((order) =>
      waitsOf(this.#page, order),
    ) as [ReturnType<typeof waitsOf>, ReturnType<typeof waitsOf>];
    const columns = Math.max(1, Math.min(this.#page.data.name.length, Math.floor(this.#width)));
    const up = longestWaits(before.waited, columns);
    const down = longestWaits(after.waited, columns);
    return { before, after, up, down, columns };
  }

  #draw(): void {
    const full = Math.max(this.#root.clientWidth, 240);
    const left = this.#left;
    this.#width = full - left - 16;
    const { up, down, columns } = this.#bars();
    if (mostOf(up) + mostOf(down) === 0) {
      this.#root.replaceChildren(html('p', {}, 'Nobody waits in either of them.'));
      return;
    }
    const [top, room] = [8, 200];
    // Both halves have one scale, and each as much room as its longest wait takes.
    const scale = room / Math.max(1, mostOf(up) + mostOf(down));
    const middle = top + Math.max(mostOf(up) * scale, 4);
    const bottom = middle + Math.max(mostOf(down) * scale, 4);
    const picture = svg('svg', { width: full, height: bottom + 30 });
    const most = Math.max(mostOf(up), mostOf(down), 1);
    const ticks = ticksOf(0, most, 4);
    for (const tick of ticks.flatMap((ns) => (ns === 0 ? [0] : [ns, -ns]))) {
      const y = middle - tick * scale;
      if (y < top || y > bottom) continue;
      const label = formatTick(Math.abs(tick), ticks[1] ?? most);
      const line = { x1: left, x2: left + this.#width, y1: y, y2: y };
      picture.append(
        svg('line', { class: tick === 0 ? 'axis' : 'grid', ...line }),
        svg('text', { class: 'tick', x: left - 8, y: y + 4, 'text-anchor': 'end' }, label),
      );
    }
    const pitch = this.#width / columns;
    const below = { x: left + this.#width / 2, y: bottom + 20, 'text-anchor': 'middle' };
    picture.append(
      svg('path', { class: 'before', d: this.#path(up, pitch, middle, -scale) }),
      svg('path', { class: 'after', d: this.#path(down, pitch, middle, scale) }),
      svg('text', { class: 'tick', ...below }, 'files in order of first access'),
    );
    this.#root.replaceChildren(picture);
  }

  #path(list: { ns: number }[], pitch: number, middle: number, scale: number): string {
    const bar = pitch > 3 ? Math.min(pitch - 2, 48) : pitch;
    let d = '';
    for (const [column, { ns }] of list.entries()) {
      if (ns <= 0) continue;
      const tall = Math.sign(scale) * Math.max(1, ns * Math.abs(scale));
      const x = this.#left + (column + 0.5) * pitch - bar / 2;
      d += `M${x.toFixed(1)} ${middle.toFixed(1)}h${bar.toFixed(1)}v${tall.toFixed(1)}h${(-bar).toFixed(1)}z`;
    }
    return d;
  }

  #note(event: PagePointer): string[] {
    const x = event.clientX - this.#root.getBoundingClientRect().left - this.#left;
    if (x < 0 || x >= this.#width) return [];
    const { before, after, up, down, columns } = this.#bars();
    const column = Math.floor((x / this.#width) * columns);
    const [one, other] = [up[column], down[column]];
    // Where files share a pixel, the one that waits longest in either order speaks for it.
    const file = (one?.ns ?? 0) >= (other?.ns ?? 0) ? one?.file : other?.file;
    if (file === undefined) return [];
    const line = ({ name, waited }: { name: string; waited: number[] }) =>
      `${name}: ${formatNs(waited[file]!)}`;
    return [this.#page.data.name[file]!, line(before), line(after)];
  }
}

/** What of this file goes into the page. */
export const WAITS_FUNCTIONS = [waitsOf, longestWaits, mostOf, WaitsChart];
