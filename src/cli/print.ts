// Output of the command line: synchronous writes, error lines, tables, human units. Not through
// process.stdout, whose set-up alone costs a client several milliseconds.
import { writeSync } from 'node:fs';
import { exitCode, toFirstlightError } from '../errors/errors.ts';
import { Interrupted } from './context.ts';

/** Writes all of `text`; a reader that has gone ends the program without a word. */
export function writeAll(fd: 1 | 2, text: string): void {
  let rest = Buffer.from(text);
  while (rest.length > 0) {
    try {
      rest = rest.subarray(writeSync(fd, rest));
    } catch (error) {
      const code = (error as NodeJS.ErrnoException).code;
      if (code === 'EPIPE') process.exit(0);
      // A pipe that somebody made non-blocking is full: wait a moment, then go on.
      if (code !== 'EAGAIN') throw error;
      Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 2);
    }
  }
}

/** JSON shape of an error. */
export function errorJson(error: unknown): { kind: string; message: string; hint?: string } {
  const e = toFirstlightError(error);
  return { kind: e.kind, message: e.message, ...(e.hint === undefined ? {} : { hint: e.hint }) };
}

/** The one line on stderr: `firstlight: WHAT; WHAT TO DO`. */
export function errorLine(error: unknown): string {
  return `firstlight: ${toFirstlightError(error).line.replace(/\s*\n\s*/g, ' ')}`;
}

/** Tells the user, and gives the exit code. */
export function reportError(error: unknown, json: boolean): number {
  if (error instanceof Interrupted) return error.exitCode;
  if (json) writeAll(1, `${JSON.stringify({ error: errorJson(error) })}\n`);
  writeAll(2, `${errorLine(error)}\n`);
  const e = toFirstlightError(error);
  // A bug of ours, not a situation: the stack is what a report needs.
  if (e.kind === 'internal' && process.env.FIRSTLIGHT_LOG === 'debug') {
    writeAll(2, `${e.stack ?? ''}\n${String((e.cause as Error | undefined)?.stack ?? '')}\n`);
  }
  return exitCode(error);
}

/** `1.4 GB`, in powers of ten, as links and disks are sold. */
export function formatBytes(bytes: number): string {
  const units = ['B', 'kB', 'MB', 'GB', 'TB', 'PB'];
  let value = bytes;
  let unit = 0;
  while (value >= 999.5 && unit < units.length - 1) {
    value /= 1000;
    unit++;
  }
  return `${unit === 0 || value >= 99.5 ? value.toFixed(0) : value.toFixed(1)} ${units[unit]}`;
}

/** `850 ms`, `12.3 s`, `4 min 5 s`, `3 h 20 min`. */
export function formatMs(ms: number): string {
  if (ms < 999.5) return `${Math.round(ms)} ms`;
  if (ms < 59_950) return `${(ms / 1000).toFixed(1)} s`;
  const s = Math.round(ms / 1000);
  if (s < 3600) return `${Math.floor(s / 60)} min ${s % 60} s`;
  return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
}

/** `sha256:` and twelve digits, as people compare them. */
export function shortDigest(digest: string): string {
  return digest.replace(/^(sha256:[0-9a-f]{12})[0-9a-f]+$/, '$1');
}

/** Columns of text, padded; the first row is the heading. */
export function formatTable(rows: string[][]): string {
  const widths: number[] = [];
  for (const row of rows) {
    for (const [i, cell] of row.entries()) widths[i] = Math.max(widths[i] ?? 0, cell.length);
  }
  return rows
    .map((row) =>
      row
        .map((cell, i) => (i === row.length - 1 ? cell : cell.padEnd(widths[i] ?? 0)))
        .join('  ')
        .trimEnd(),
    )
    .join('\n');
}
