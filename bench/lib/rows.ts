// Rows of a bench: a table for people on standard output and, where JSON=FILE is set, one JSON
// object a line in that file. What does not live here: how a row is measured.
import { appendFileSync, writeFileSync } from 'node:fs';

/** What a bench says of one row. */
export interface Measured {
  /** Stable identifier; scripts find the row by it. */
  row: string;
  value: number;
  unit: string;
  /** What the value is compared with, in the same run; absent where the budget is absolute. */
  baseline?: { name: string; value: number };
  /** Which direction is good. */
  better: 'lower' | 'higher';
  /** Bound of the ratio where there is a baseline, else of the value; absent where there is none. */
  budget?: number;
}

/** One line of the JSON file. */
export interface Row {
  bench: string;
  row: string;
  value: number;
  unit: string;
  baseline: string | null;
  baseline_value: number | null;
  /** value / baseline_value. */
  ratio: number | null;
  better: 'lower' | 'higher';
  budget: number | null;
  met: boolean | null;
}

/** Four significant digits: more is noise, fewer hides a difference. */
function rounded(value: number): number {
  return Number(value.toPrecision(4));
}

/** A measured row with its ratio, and whether the budget is met (decided before rounding). */
export function makeRow(bench: string, m: Measured): Row {
  if (!Number.isFinite(m.value) || (m.baseline && !(m.baseline.value > 0))) {
    throw new Error(`row ${m.row} of bench ${bench} was not measured: ${JSON.stringify(m)}`);
  }
  const ratio = m.baseline ? m.value / m.baseline.value : null;
  const judged = ratio ?? m.value;
  const met =
    m.budget === undefined ? null : m.better === 'lower' ? judged <= m.budget : judged >= m.budget;
  return {
    bench,
    row: m.row,
    value: rounded(m.value),
    unit: m.unit,
    baseline: m.baseline?.name ?? null,
    baseline_value: m.baseline ? rounded(m.baseline.value) : null,
    ratio: ratio === null ? null : rounded(ratio),
    better: m.better,
    budget: m.budget ?? null,
    met,
  };
}

/** The verdict of a row in one word, for tables. */
export function verdict(row: Row): string {
  return row.met === null ? '' : row.met ? 'met' : 'MISSED';
}

/** Bound of a row with its direction, such as `<= 3 x` or `>= 0.95 x`. */
export function bound(row: Row): string {
  if (row.budget === null) return '';
  const sign = row.better === 'lower' ? '<=' : '>=';
  return `${sign} ${row.budget} ${row.ratio === null ? row.unit : 'x'}`;
}

/** Collects the rows of one bench and writes each as soon as it is known. */
export class RowWriter {
  readonly bench: string;
  readonly rows: Row[] = [];
  readonly #file: string | undefined;

  /**
   * @param bench  name of the bench, as in `make bench-NAME`
   * @param file   path of the JSON file, emptied here; none where undefined or ''
   */
  constructor(bench: string, file: string | undefined = process.env.JSON) {
    this.bench = bench;
    this.#file = file === undefined || file === '' ? undefined : file;
    if (this.#file !== undefined) writeFileSync(this.#file, '');
  }

  /** Adds one row; throws where the figure is no number, so that no empty row passes for a result. */
  add(measured: Measured): Row {
    const row = makeRow(this.bench, measured);
    if (this.rows.some((r) => r.row === row.row)) throw new Error(`row ${row.row} stands twice`);
    this.rows.push(row);
    if (this.#file !== undefined) appendFileSync(this.#file, `${JSON.stringify(row)}\n`);
    process.stderr.write(`  ${row.row}: ${row.value} ${row.unit} ${verdict(row)}\n`);
    return row;
  }

  /** Prints the table of all rows. */
  print(): void {
    process.stdout.write(`${textTable(this.rows)}\n`);
  }
}

/** Rows as text columns. */
export function textTable(rows: Row[]): string {
  const lines = [['row', 'value', 'baseline', 'ratio', 'budget', '']];
  for (const row of rows) {
    lines.push([
      row.row,
      `${row.value} ${row.unit}`,
      row.baseline === null ? '' : `${row.baseline_value} ${row.unit} (${row.baseline})`,
      row.ratio === null ? '' : String(row.ratio),
      bound(row),
      verdict(row),
    ]);
  }
  const widths = lines[0]!.map((_, i) => Math.max(...lines.map((line) => line[i]!.length)));
  return lines
    .map((line) =>
      line
        .map((c, i) => c.padEnd(widths[i]!))
        .join('  ')
        .trimEnd(),
    )
    .join('\n');
}
