// What one start gave, as a line of the samples file; and how samples become rows: medians, spreads and
// ratios against the ordinary pull. What does not live here: starting anything, drawing.
import { median } from '../lib/measure.ts';
import type { Measured } from '../lib/rows.ts';
import type { Breakdown, Mode } from './system.ts';

/** One start. */
export interface Sample {
  kind: 'sample';
  service: string;
  system: string;
  mode: Mode;
  rtt_ms: number;
  round: number;
  /** From the command to ready. */
  ready_ms: number;
  /** IP bytes that had come over the link by then, and that had gone out; TCP connections opened. */
  bytes_received: number;
  bytes_sent: number;
  connects: number;
  breakdown: Breakdown;
}

/** First line of a samples file: where and with what it was measured. */
export interface RunFacts {
  kind: 'run';
  machine: Record<string, string | number>;
  systems: Record<string, string>;
  services: string[];
  mbit: number;
  rounds: number;
  seed: number;
  /** Runnable processes beside the bench when it began: 1-minute load average. */
  load: number;
}

/** A failed start: it is no sample, and nobody may think there was none. */
export interface Failure {
  kind: 'failure';
  service: string;
  system: string;
  mode: Mode;
  rtt_ms: number;
  round: number;
  error: string;
}

/** A proof of the link, see Wan.check. */
export interface LinkLine {
  kind: 'link';
  rtt_ms: number;
  connect_ms: number;
  mbit_per_second: number;
  relay_cpu: number;
}

export type Line = Sample | RunFacts | Failure | LinkLine;

export const BASELINE = 'containerd';

/** Budgets of the deploy and the update (docs/PERFORMANCE.md says which rows they are about). */
export const BUDGETS = { deploy: 0.25, update: 0.08, download: 1.0 };

/** Everything measured of one cell of the table. */
export interface Cell {
  service: string;
  system: string;
  mode: Mode;
  rttMs: number;
  readyMs: number;
  minMs: number;
  maxMs: number;
  bytes: number;
  connects: number;
  samples: Sample[];
}

export function readLines(text: string): Line[] {
  return text
    .split('\n')
    .filter((line) => line !== '')
    .map((line) => JSON.parse(line) as Line);
}

/** Medians over the rounds. */
export function cells(samples: Sample[]): Cell[] {
  const groups = new Map<string, Sample[]>();
  for (const sample of samples) {
    const key = [sample.service, sample.system, sample.mode, sample.rtt_ms].join(' ');
    groups.set(key, [...(groups.get(key) ?? []), sample]);
  }
  return [...groups.values()].map((group) => {
    const { service, system, mode, rtt_ms } = group[0]!;
    const times = group.map((sample) => sample.ready_ms);
    return {
      ...{ service, system, mode, rttMs: rtt_ms },
      readyMs: median(times),
      minMs: Math.min(...times),
      maxMs: Math.max(...times),
      bytes: median(group.map((sample) => sample.bytes_received)),
      connects: median(group.map((sample) => sample.connects)),
      samples: group,
    };
  });
}

/** The cell of another system beside this one. */
export function beside(all: Cell[], cell: Cell, system: string): Cell | undefined {
  return all.find(
    (other) =>
      other.system === system &&
      other.service === cell.service &&
      other.mode === cell.mode &&
      other.rttMs === cell.rttMs,
  );
}

/** Median over the services of the ratio of one system to another; undefined where both never ran. */
export function medianRatio(
  all: Cell[],
  which: { system: string; mode: Mode; rttMs: number },
  against: string,
): number | undefined {
  const ratios = all
    .filter(
      (cell) =>
        cell.system === which.system && cell.mode === which.mode && cell.rttMs === which.rttMs,
    )
    .flatMap((cell) => {
      const other = beside(all, cell, against);
      return other === undefined ? [] : [cell.readyMs / other.readyMs];
    });
  return ratios.length === 0 ? undefined : median(ratios);
}

/** Rows of the bench format: each cell against the ordinary pull, then the medians with their budgets. */
export function rowsOf(all: Cell[]): Measured[] {
  const order = (cell: Cell) =>
    `${cell.service} ${cell.mode} ${String(cell.rttMs).padStart(5, '0')} ${cell.system}`;
  const sorted = [...all].sort((a, b) => (order(a) < order(b) ? -1 : 1));
  const rows: Measured[] = sorted.map((cell) => {
    const base = cell.system === BASELINE ? undefined : beside(all, cell, BASELINE);
    return {
      row: `${cell.service}-${cell.mode}-${cell.rttMs}ms-${cell.system}`,
      value: cell.readyMs,
      unit: 'ms',
      better: 'lower',
      ...(base === undefined ? {} : { baseline: { name: BASELINE, value: base.readyMs } }),
    };
  });
  return [...rows, ...summaryRows(all)];
}

function summaryRows(all: Cell[]): Measured[] {
  const rows: Measured[] = [];
  const systems = [...new Set(all.map((cell) => cell.system))].filter((s) => s !== BASELINE);
  const links = [...new Set(all.map((cell) => cell.rttMs))].sort((a, b) => a - b);
  for (const mode of ['deploy', 'update'] as const) {
    for (const rttMs of links) {
      for (const system of systems) {
        for (const against of [BASELINE, 'curl-bundle']) {
          const value = medianRatio(all, { system, mode, rttMs }, against);
          if (value === undefined || system === against || system === 'curl-bundle') continue;
          const budget = budgetOf(mode, rttMs, system, against);
          rows.push({
            row: `median-${mode}-${rttMs}ms-${system}-to-${against}`,
            value,
            unit: 'x',
            better: 'lower',
            ...(budget === undefined ? {} : { budget }),
          });
        }
      }
    }
  }
  return rows;
}

/** Budgets are about 150 ms and the daemon as it runs: traced order, its connections kept. */
function budgetOf(mode: Mode, rttMs: number, system: string, against: string): number | undefined {
  if (rttMs !== 150) return undefined;
  if (against === 'curl-bundle') {
    return mode === 'deploy' && system.startsWith('firstlight-traced')
      ? BUDGETS.download
      : undefined;
  }
  if (!system.startsWith('firstlight-traced')) return undefined;
  return mode === 'deploy' ? BUDGETS.deploy : mode === 'update' ? BUDGETS.update : undefined;
}
