// What is done with traces in a thread of its own, so that neither a hostile one nor a large one ever
// holds up the thread that serves streams, or takes the process down by its memory: the caller's
// side. The thread's side is trace-worker.ts.
import { extname } from 'node:path';
import { Worker } from 'node:worker_threads';
import { type ErrorKind, FirstlightError } from '../errors/errors.ts';
import type { TraceRecord } from './catalog.ts';
import type { Relation } from './trace-relations.ts';

/** Heap of the thread, and the time that one job may take. */
const HEAP_MB = 1024;
const JOB_MS = 120_000;

/** Files of an image as the catalog has them. */
export interface ThreadImage {
  digest: string;
  /** Flat TOC, and sha256 of each content. */
  toc: Uint8Array;
  digests: Uint8Array;
}

/** A stored trace and what it is to the image that is looked at. */
export interface RelatedTrace {
  relation: Relation;
  /** Manifest digest of the traced image, where it is known. */
  digest: string | undefined;
  /** Compressed text. */
  data: Uint8Array;
}

/** A job for the thread. */
export type TraceJob =
  | { op: 'check'; path: string }
  | { op: 'rank'; image: ThreadImage; others: ThreadImage[]; traces: RelatedTrace[] };

/** A trace that has been checked: what its text says, and the text in the project's own form. */
export interface CheckedTrace {
  trace: Omit<TraceRecord, 'name' | 'receivedAt'>;
  data: Uint8Array;
}

/** An order as the thread makes it. */
export interface MadeRanks {
  /** As ranks.ts packs them. */
  data: Uint8Array;
  count: number;
  runs: number;
}

/** What the thread answers. */
export type TraceAnswer =
  | { value: CheckedTrace | MadeRanks }
  | { error: { kind: ErrorKind; message: string; hint: string | undefined } };

function failed(error: NodeJS.ErrnoException): Error {
  if (error.code !== 'ERR_WORKER_OUT_OF_MEMORY') return error;
  return new FirstlightError('unsupported', 'the trace takes too much memory to be read', {
    hint: 'record a shorter run',
    cause: error,
  });
}

async function run<T extends CheckedTrace | MadeRanks>(
  job: TraceJob,
  signal: AbortSignal,
): Promise<T> {
  signal.throwIfAborted();
  // The same ending as this file: .ts in a checkout, .js in the published package.
  const file = `./trace-worker${extname(import.meta.url)}`;
  const worker = new Worker(new URL(file, import.meta.url), {
    name: 'trace',
    workerData: job,
    env: {},
    // Flags of the main thread are not for this one (--input-type would even stop it).
    execArgv: [],
    resourceLimits: { maxOldGenerationSizeMb: HEAP_MB },
  });
  const late = new FirstlightError('timeout', `traces took over ${JOB_MS / 1000} s to be read`);
  let stop = () => {};
  let timer: NodeJS.Timeout | undefined;
  try {
    return await new Promise<T>((resolve, reject) => {
      stop = () => reject(signal.reason);
      signal.addEventListener('abort', stop);
      timer = setTimeout(() => reject(late), JOB_MS);
      worker.on('message', (answer: TraceAnswer) => {
        if ('value' in answer) return resolve(answer.value as T);
        const { kind, message, hint } = answer.error;
        reject(new FirstlightError(kind, message, hint === undefined ? {} : { hint }));
      });
      worker.on('error', (error: NodeJS.ErrnoException) => reject(failed(error)));
      worker.on('exit', (code) =>
        reject(new FirstlightError('internal', `the thread for traces ended (code ${code})`)),
      );
    });
  } finally {
    clearTimeout(timer);
    signal.removeEventListener('abort', stop);
    await worker.terminate();
  }
}

/**
 * Reads a trace file that came from outside.
 * @throws 'corrupt' with the field that is wrong, 'unsupported', 'timeout', the reason of `signal`
 */
export function checkTrace(path: string, signal: AbortSignal): Promise<CheckedTrace> {
  return run({ op: 'check', path }, signal);
}

/**
 * Makes an image's order of the traces that it depends on.
 * @param others  the traced images, so that files can be matched by content
 */
export function rankInThread(
  image: ThreadImage,
  others: ThreadImage[],
  traces: RelatedTrace[],
  signal: AbortSignal,
): Promise<MadeRanks> {
  return run({ op: 'rank', image, others, traces }, signal);
}
