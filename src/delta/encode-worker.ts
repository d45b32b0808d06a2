// The body of the thread that encode-thread.ts starts: one bundle, then it ends.
import { open } from 'node:fs/promises';
import { constants, setPriority } from 'node:os';
import { join } from 'node:path';
import { parentPort, workerData } from 'node:worker_threads';
import { toFirstlightError } from '../errors/errors.ts';
import { type EncodeInput, encodeBundle } from './bundle-encode.ts';
import type { ThreadAnswer, ThreadJob } from './encode-thread.ts';
import { Toc } from './toc.ts';

const port = parentPort!;
const { input, path } = workerData as ThreadJob;
const aborter = new AbortController();

function answer(message: ThreadAnswer): void {
  port.postMessage(message);
}

/** Buffers cross between threads as plain Uint8Arrays. */
function buffer(bytes: Uint8Array): Buffer {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length);
}

async function readContent(digest: string, offset: number, bytes: number): Promise<Buffer> {
  const file = await open(join(input.contentDirectory, digest.slice(0, 2), digest.slice(2)), 'r');
  try {
    const data = Buffer.allocUnsafe(bytes);
    let length = 0;
    while (length < bytes) {
      const { bytesRead } = await file.read(data, length, bytes - length, offset + length);
      if (bytesRead === 0) break;
      length += bytesRead;
    }
    return data.subarray(0, length);
  } finally {
    await file.close();
  }
}

// Of this thread alone, and of those that it starts (setpriority(2), on Linux).
if (input.background === true) setPriority(constants.priority.PRIORITY_BELOW_NORMAL);

const { contentDirectory: _, background: __, ...rest } = input;
const encodeInput: EncodeInput = {
  ...rest,
  manifest: buffer(input.manifest),
  config: buffer(input.config),
  toc: new Toc(buffer(input.toc)),
  digests: buffer(input.digests),
  bases: input.bases.map(({ digest, toc, digests }) => ({
    digest,
    toc: new Toc(buffer(toc)),
    digests: buffer(digests),
  })),
  readContent,
  onProgress: (framesDone, frames) => answer({ progress: [framesDone, frames] }),
  signal: aborter.signal,
};

port.on('message', () => aborter.abort());
try {
  answer({ done: await encodeBundle(encodeInput, path) });
} catch (error) {
  const { kind, message, hint } = toFirstlightError(error);
  answer({ error: { kind, message, hint } });
}
