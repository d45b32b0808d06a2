// Trace files in a directory: their names, writing one so that it is there whole or not at all,
// and reading all of them with the broken ones told apart. Journals are writer.ts and recover.ts.
import { randomBytes } from 'node:crypto';
import { constants, open, readdir, rename, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { FirstlightError, toFirstlightError } from '../errors/errors.ts';
import { tracerChunks } from './format.ts';
import { parseTracer } from './parse.ts';
import { TRACE_MAX_BYTES, type Tracer, type TracerHead } from './tracer.ts';

/** Ending of a finished trace. */
export const TRACE_SUFFIX = '.json';
/** Ending of the journal of a trace that is being recorded. */
export const JOURNAL_SUFFIX = '.part';

/** A trace and where it stands. */
export interface StoredTrace {
  /** File name without its ending. */
  id: string;
  path: string;
  tracer: Tracer;
}

/** A file that could not be used, and why. */
export interface BrokenTrace {
  path: string;
  error: FirstlightError;
}

/** A fresh id: start, image, and a few random digits; safe as a file name. */
export function traceId(head: TracerHead): string {
  const start = new Date(Number(head.startNs / 1_000_000n)).toISOString().replace(/[-:]/g, '');
  const name = head.image.slice(head.image.lastIndexOf('/') + 1).slice(0, 40);
  const safe = name.replace(/[^A-Za-z0-9.]+/g, '_');
  return `${start}-${safe}-${randomBytes(4).toString('hex')}`;
}

/** True for what {@link traceId} and Starlight's recorder make; false for anything with a path in it. */
export function isTraceId(id: string): boolean {
  return /^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$/.test(id);
}

/** fsync of a directory, so that a rename in it lasts. */
export async function syncDirectory(path: string): Promise<void> {
  const directory = await open(path, 'r');
  try {
    await directory.sync();
  } finally {
    await directory.close();
  }
}

/**
 * Writes `<directory>/<id>.json` aside and renames it, both made to last.
 * @returns its path
 * @throws FirstlightError `no-space` and the kinds of other errnos; nothing half-written stays
 */
export async function saveTrace(directory: string, id: string, tracer: Tracer): Promise<string> {
  const path = join(directory, id + TRACE_SUFFIX);
  const aside = join(directory, `${id}.${randomBytes(4).toString('hex')}.new`);
  try {
    const file = await open(aside, 'wx', 0o600);
    try {
      // Not by stream or generator of the file API: a piece at a time keeps the loop free.
      for (const chunk of tracerChunks(tracer)) await file.appendFile(chunk);
      await file.sync();
    } finally {
      await file.close();
    }
    await rename(aside, path);
  } catch (error) {
    // The first error is the one that matters.
    await rm(aside, { force: true }).catch(() => undefined);
    throw toFirstlightError(error);
  }
  await syncDirectory(directory);
  return path;
}

/** A whole file of at most `limit` bytes; reads no more than that, whatever stat says. */
export async function readBounded(path: string, limit: number): Promise<Buffer> {
  // Without O_NONBLOCK, a fifo of that name would never be open.
  const file = await open(path, constants.O_RDONLY | constants.O_NONBLOCK);
  try {
    const stat = await file.stat();
    if (!stat.isFile()) throw new FirstlightError('corrupt', `${path} is no regular file`);
    if (stat.size > limit) {
      const message = `${path} has ${stat.size} bytes, more than the ${limit} allowed`;
      throw new FirstlightError('corrupt', message);
    }
    const buffer = Buffer.allocUnsafe(stat.size);
    let done = 0;
    while (done < buffer.length) {
      const { bytesRead } = await file.read(buffer, done, buffer.length - done, done);
      if (bytesRead === 0) break;
      done += bytesRead;
    }
    return buffer.subarray(0, done);
  } finally {
    await file.close();
  }
}

/** Reads one trace file. @throws FirstlightError as parseTracer, `not-found` */
export async function loadTrace(path: string): Promise<Tracer> {
  try {
    return parseTracer(await readBounded(path, TRACE_MAX_BYTES), path);
  } catch (error) {
    throw toFirstlightError(error);
  }
}

/** Names in a directory with an ending, sorted; none where the directory is missing. */
export async function namesIn(directory: string, suffix: string): Promise<string[]> {
  try {
    const names = await readdir(directory);
    return names.filter((name) => name.endsWith(suffix) && name !== suffix).sort();
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return [];
    throw toFirstlightError(error);
  }
}

/** Every finished trace of a directory, by file name; broken ones are told apart, never fatal. */
export async function loadTraces(
  directory: string,
): Promise<{ traces: StoredTrace[]; broken: BrokenTrace[] }> {
  const traces: StoredTrace[] = [];
  const broken: BrokenTrace[] = [];
  for (const name of await namesIn(directory, TRACE_SUFFIX)) {
    const path = join(directory, name);
    try {
      traces.push({ id: name.slice(0, -TRACE_SUFFIX.length), path, tracer: await loadTrace(path) });
    } catch (error) {
      broken.push({ path, error: toFirstlightError(error) });
    }
  }
  return { traces, broken };
}
