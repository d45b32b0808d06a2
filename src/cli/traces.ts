// Recorded runs as commands name them: by id, by the start of one, by file or directory. They are
// read from where the daemon writes them; no daemon is needed.
import { readdir, stat } from 'node:fs/promises';
import { basename, join } from 'node:path';
import { FirstlightError, toFirstlightError } from '../errors/errors.ts';
import {
  type BrokenTrace,
  loadTrace,
  loadTraces,
  type StoredTrace,
  TRACE_SUFFIX,
} from '../trace/files.ts';
import type { Tracer } from '../trace/tracer.ts';
import type { Context } from './context.ts';

export interface FoundTraces {
  /** The oldest first. */
  traces: StoredTrace[];
  broken: BrokenTrace[];
}

function byStart(x: StoredTrace, y: StoredTrace): number {
  return x.tracer.startNs < y.tracer.startNs ? -1 : x.tracer.startNs > y.tracer.startNs ? 1 : 0;
}

/** Where this worker's runs are recorded. */
export function tracesDirectory(context: Context): string {
  return join(context.settings.text('root'), 'traces');
}

/** Tells of files that could not be used. */
export function noteBroken(context: Context, broken: readonly BrokenTrace[]): void {
  for (const { error } of broken) context.note(`firstlight: left out: ${error.line}`);
}

/** All runs of this worker. @throws 'permission' */
export async function localTraces(context: Context): Promise<FoundTraces> {
  const directory = tracesDirectory(context);
  const { traces, broken } = await loadTraces(directory);
  return { traces: traces.sort(byStart), broken };
}

async function kindOf(path: string): Promise<'file' | 'directory' | undefined> {
  try {
    return (await stat(path)).isDirectory() ? 'directory' : 'file';
  } catch {
    // Then it is no path: an id, or nothing.
    return undefined;
  }
}

/** The file of this worker whose id begins with `start`. */
async function byId(context: Context, start: string): Promise<StoredTrace> {
  const directory = tracesDirectory(context);
  const names = await readdir(directory).catch((error: NodeJS.ErrnoException) => {
    if (error.code === 'ENOENT') return [];
    throw toFirstlightError(error);
  });
  const ids = names
    .filter((name) => name.endsWith(TRACE_SUFFIX))
    .map((name) => name.slice(0, -TRACE_SUFFIX.length));
  const fitting = ids.includes(start) ? [start] : ids.filter((id) => id.startsWith(start));
  if (fitting.length > 1) {
    throw new FirstlightError('usage', `${fitting.length} traces begin with ${start}`, {
      hint: `say more of the id, such as ${fitting.sort()[0]}`,
    });
  }
  const [id] = fitting;
  if (id === undefined || start === '') {
    throw new FirstlightError('not-found', `there is no trace ${start}`, {
      hint: 'see "firstlight trace ls", or give the path of a file',
    });
  }
  const path = join(directory, id + TRACE_SUFFIX);
  return { id, path, tracer: await loadTrace(path) };
}

/**
 * The runs that arguments name; all of this worker where there are none. A broken file in a directory is told apart,
 * one that is named itself is an error.
 * @throws 'not-found', 'usage' where an id is not whole enough, 'corrupt'
 */
export async function findTraces(context: Context, args: readonly string[]): Promise<FoundTraces> {
  const found: FoundTraces = { traces: [], broken: [] };
  if (args.length === 0) return localTraces(context);
  for (const arg of args) {
    const kind = await kindOf(arg);
    if (kind === 'directory') {
      const { traces, broken } = await loadTraces(arg);
      found.traces.push(...traces.sort(byStart));
      found.broken.push(...broken);
    } else if (kind === 'file') {
      const id = basename(arg).replace(/\.json$/, '');
      found.traces.push({ id, path: arg, tracer: await loadTrace(arg) });
    } else {
      found.traces.push(await byId(context, arg));
    }
  }
  return found;
}

/** One run: the one that is named, or the newest of this worker. @throws as {@link findTraces} */
export async function findTrace(context: Context, arg: string | undefined): Promise<StoredTrace> {
  const { traces, broken } = await findTraces(context, arg === undefined ? [] : [arg]);
  noteBroken(context, broken);
  const newest = traces.at(-1);
  if (newest !== undefined) return newest;
  throw new FirstlightError('not-found', 'no run has been recorded here', {
    hint: 'record one with "firstlight run NAME:TAG --trace GROUP"',
  });
}

/** Sum of all waits of a run, ms. */
export function waitedMs(tracer: Tracer): number {
  let ns = 0;
  for (const { waitNs, ranges } of tracer.seq) {
    ns += waitNs;
    for (const range of ranges ?? []) ns += range.waitNs;
  }
  return ns / 1e6;
}

/** Whole milliseconds that a run took. */
export function durationMs(tracer: Tracer): number {
  return Number((tracer.endNs - tracer.startNs) / 1_000_000n);
}
