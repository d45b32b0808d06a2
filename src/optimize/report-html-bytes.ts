// In the page (see report-html-dom.ts): the picture of bytes over time. What reading needed, what had
// arrived of it, and what the server had sent.
import type { PageCurve } from './report-html-data.ts';
import { type PageElement, svg } from './report-html-dom.ts';
import { chooseTime, type Frame, frameOf, type Page, showNote } from './report-html-frame.ts';
import { formatNs, formatSize, ticksOf } from './report-html-scale.ts';

/** Number of points of a curve at or before a moment. */
export function pointsUntil(curve: PageCurve, ns: number): number {
  let [low, high] = [0, curve.at.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (curve.at[middle]! <= ns) low = middle + 1;
    else high = middle;
  }
  return low;
}

/** Value of a curve at a moment. */
export function bytesAt(curve: PageCurve, ns: number): number {
  return curve.bytes[pointsUntil(curve, ns) - 1] ?? 0;
}

/** A curve as a path of steps: at most one for each pixel, the last value there. */
export function stepPath(
  curve: PageCurve,
  page: Page,
  frame: Frame,
  y: (bytes: number) => number,
): string {
  let path = `M0 ${y(bytesAt(curve, page.from)).toFixed(1)}`;
  const end = pointsUntil(curve, page.to);
  for (let i = pointsUntil(curve, page.from); i < end; i++) {
    const pixel = Math.round(frame.x(curve.at[i]!));
    if (i + 1 < end && Math.round(frame.x(curve.at[i + 1]!)) === pixel) continue;
    path += `H${pixel}V${y(curve.bytes[i]!).toFixed(1)}`;
  }
  return `${path}H${frame.width}`;
}

/** The curves that the trace has, by the class that gives each its colour. */
export function curvesOf(page: Page): { kind: string; name: string; curve: PageCurve }[] {
  const { needed, arrivedBytes, received } = page.data;
  return [
    { kind: 'received', name: 'sent by the server', curve: received },
    { kind: 'came', name: 'arrived', curve: arrivedBytes },
    { kind: 'needed', name: 'needed', curve: needed },
  ].flatMap(({ curve, ...rest }) => (curve === null ? [] : [{ ...rest, curve }]));
}

/** Draws the picture and keeps it up to date. */
export function bytesChart(page: Page, root: PageElement): void {
  let frame: Frame;
  const curves = curvesOf(page);
  const most = () => Math.max(1, ...curves.map(({ curve }) => bytesAt(curve, page.to)));
  const draw = () => {
    const height = 220;
    frame = frameOf(page, root, height);
    const top = most() * 1.05;
    const y = (bytes: number) => height - (bytes / top) * height;
    for (const tick of ticksOf(0, top, 5)) {
      const at = frame.top + y(tick);
      frame.back.append(
        svg('line', {
          class: 'grid',
          x1: frame.left,
          x2: frame.left + frame.width,
          y1: at,
          y2: at,
        }),
        svg(
          'text',
          { class: 'tick', x: frame.left - 8, y: at + 4, 'text-anchor': 'end' },
          formatSize(tick),
        ),
      );
    }
    for (const { kind, curve } of curves) {
      frame.plot.append(
        svg('path', { class: `curve ${kind}`, d: stepPath(curve, page, frame, y) }),
      );
    }
  };
  page.redraw.push(draw);
  root.addEventListener('pointermove', (event) => {
    const x = event.clientX - root.getBoundingClientRect().left - frame.left;
    if (x < 0 || x > frame.width) return showNote(page, event, []);
    const ns = page.from + (x / frame.width) * (page.to - page.from);
    const values = curves.map(({ name, curve }) => `${name}: ${formatSize(bytesAt(curve, ns))}`);
    showNote(page, event, [`until ${formatNs(ns)}`, ...values.reverse()]);
  });
  root.addEventListener('pointerleave', (event) => showNote(page, event, []));
  chooseTime(page, root, () => frame);
}

/** What of this file goes into the page. */
export const BYTES_FUNCTIONS = [pointsUntil, bytesAt, stepPath, curvesOf, bytesChart];
