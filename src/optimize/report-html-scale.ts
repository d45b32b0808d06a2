// Numbers as people read them, and axes. All of it works in the page as well as here: see
// report-html-dom.ts for what that asks of these functions.

/** `0 s`, `850 µs`, `12.3 ms`, `1.24 s`, `2 min 5 s`. */
export function formatNs(ns: number): string {
  const three = (value: number) => String(Number(value.toPrecision(3)));
  if (ns === 0) return '0 s';
  if (ns < 999.5) return `${Math.round(ns)} ns`;
  if (ns < 999_500) return `${three(ns / 1e3)} µs`;
  if (ns < 999_500_000) return `${three(ns / 1e6)} ms`;
  if (ns < 59_950_000_000) return `${three(ns / 1e9)} s`;
  const s = Math.round(ns / 1e9);
  if (s < 3600) return `${Math.floor(s / 60)} min ${s % 60} s`;
  return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
}

/** `1.4 MB`, in powers of ten. */
export function formatSize(bytes: number): string {
  const units = ['B', 'kB', 'MB', 'GB', 'TB', 'PB'];
  let value = bytes;
  let unit = 0;
  while (value >= 999.5 && unit < units.length - 1) {
    value /= 1000;
    unit++;
  }
  return `${unit === 0 || value >= 99.5 ? value.toFixed(0) : value.toFixed(1)} ${units[unit]}`;
}

/** Round values from `from` to `to`, about `count` of them: 1, 2 or 5 times a power of ten apart. */
export function ticksOf(from: number, to: number, count: number): number[] {
  const span = to - from;
  if (!(span > 0) || count < 1) return [from];
  const rough = span / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * ([1, 2, 5].find((times) => times * power >= rough * 0.999) ?? 10);
  const ticks: number[] = [];
  for (let i = Math.ceil(from / step - 1e-9); i * step <= to * (1 + 1e-12); i++) {
    // Not minus zero, which the first one may be.
    ticks.push(i * step + 0);
  }
  return ticks;
}

/** A moment on an axis whose ticks are `stepNs` apart: every label of one axis in the same unit. */
export function formatTick(ns: number, stepNs: number): string {
  const units: [number, string][] = [
    [1e9, 's'],
    [1e6, 'ms'],
    [1e3, 'µs'],
  ];
  const [size, unit] = units.find(([size]) => stepNs >= size / 100) ?? [1, 'ns'];
  const digits = Math.max(0, Math.ceil(-Math.log10(stepNs / size) - 1e-9));
  return `${(ns / size).toFixed(digits)} ${unit}`;
}

/** `text` in at most `most` characters; what is left out is in its middle, for paths differ at both ends. */
export function cutMiddle(text: string, most: number): string {
  const letters = [...text];
  if (letters.length <= most) return text;
  const head = Math.floor((most - 1) * 0.35);
  return `${letters.slice(0, head).join('')}…${letters.slice(letters.length - (most - 1 - head)).join('')}`;
}

/** What of this file goes into the page. */
export const SCALE_FUNCTIONS = [formatNs, formatSize, ticksOf, formatTick, cutMiddle];
