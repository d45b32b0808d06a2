// Encoding in a thread of its own, so that a server's event loop never waits for it: the caller's
// side. The thread's side is encode-worker.ts.
import { Worker } from 'node:worker_threads';
import { FirstlightError } from '../errors/errors.ts';
import type { EncodedBundle, EncodeInput } from './bundle-encode.ts';
import { fromThread, type ThreadError, threadUrl } from './frame-pool.ts';

/** An image whose contents the worker has, as plain bytes. */
export interface ThreadBase {
  /** Manifest digest, `sha256:...`. */
  digest: string;
  /** Flat TOC, as `buildToc` made it. */
  toc: Buffer;
  digests: Buffer;
}

/** As EncodeInput, with bytes and a directory in place of objects and functions. */
export interface ThreadInput
  extends Pick<
    EncodeInput,
    'manifest' | 'config' | 'digests' | 'ranks' | 'patches' | 'level' | 'threads'
  > {
  /** Flat TOC, as `buildToc` made it. */
  toc: Buffer;
  bases: readonly ThreadBase[];
  /** Directory with the contents, each at `<2 hex>/<62 hex>` of its digest. */
  contentDirectory: string;
  /** Nobody waits for it: it takes little of the processor where others want that. */
  background?: boolean;
}

/** What the caller wants to hear, and how it can stop the work. */
export interface ThreadOptions {
  onProgress?(framesDone: number, frames: number): void;
  signal?: AbortSignal;
}

/** What the thread is given. */
export interface ThreadJob {
  input: ThreadInput;
  path: string;
}

/** What the thread answers. */
export type ThreadAnswer =
  | { progress: [framesDone: number, frames: number] }
  | { done: EncodedBundle }
  | { error: ThreadError };

/**
 * `encodeBundle` in a thread of its own. Rejects with what `encodeBundle` throws; after an abort with
 * the signal's reason, once the thread has removed what it had written.
 */
export async function encodeBundleInWorker(
  input: ThreadInput,
  path: string,
  options: ThreadOptions = {},
): Promise<EncodedBundle> {
  const { signal, onProgress } = options;
  signal?.throwIfAborted();
  const job: ThreadJob = { input, path };
  // Flags of the main thread are not for this one (--input-type would even stop it).
  const worker = new Worker(threadUrl('encode-worker'), { workerData: job, execArgv: [] });
  const abort = () => worker.postMessage('abort');
  signal?.addEventListener('abort', abort);
  try {
    return await new Promise<EncodedBundle>((resolve, reject) => {
      worker.on('message', (answer: ThreadAnswer) => {
        if ('progress' in answer) onProgress?.(...answer.progress);
        else if ('done' in answer) resolve(answer.done);
        else reject(signal?.aborted === true ? signal.reason : fromThread(answer.error));
      });
      worker.on('error', reject);
      worker.on('exit', (code) =>
        reject(new FirstlightError('internal', `the encoding thread ended (code ${code})`)),
      );
    });
  } finally {
    signal?.removeEventListener('abort', abort);
    await worker.terminate();
  }
}
