// An image on its way in by HTTP: the body goes to a file in a scratch directory, a stream at a
// time, and is opened there as the kind that the client said it is.
import { type FileHandle, open } from 'node:fs/promises';
import type { IncomingMessage } from 'node:http';
import { join } from 'node:path';
import { FirstlightError } from '../errors/errors.ts';
import { openDockerArchive } from '../image/docker-archive.ts';
import { tarFiles } from '../image/files.ts';
import { openLayout } from '../image/oci-layout.ts';
import { openRootfs } from '../image/rootfs.ts';
import type { ImageSource } from '../image/source.ts';

/** Kinds of body. */
export type UploadKind = 'oci' | 'docker-archive' | 'rootfs';

export interface UploadLimits {
  /** Bytes of a body. */
  maxBytes: number;
  /** A body may stand still for this long. */
  stallMs: number;
  /** What a client can do whose body is too large, and one that sends none. */
  hints: { tooLarge: string; empty: string };
}

/** What is to be done about bodies that are images. */
export const IMAGE_HINTS = {
  tooLarge: 'let the server pull the image from a registry, or raise its limit',
  empty: 'send the image as the body, or use kind=docker',
};

function tooLarge({ maxBytes, hints }: UploadLimits): FirstlightError {
  return new FirstlightError('usage', `the upload is larger than ${maxBytes} bytes`, {
    hint: hints.tooLarge,
  });
}

/**
 * Calls `take` with each chunk of a request's body, one at a time. Not a pipeline: that would wait for the request to
 * end, or destroy it, and one that has failed must still be answered.
 */
function eachChunk(
  request: IncomingMessage,
  take: (chunk: Buffer) => Promise<void>,
  signal: AbortSignal,
): Promise<void> {
  return new Promise((resolve, reject) => {
    const finish = (settle: () => void) => {
      request.off('data', onData).off('end', onEnd).off('close', onClose).off('error', onError);
      signal.removeEventListener('abort', onAbort);
      request.pause();
      settle();
    };
    const onError = (error: unknown) => finish(() => reject(error));
    const onAbort = () => onError(signal.reason);
    // A stream that is paused on its last chunk ends all the same: what takes the chunk comes first.
    let taking: Promise<void> = Promise.resolve();
    const onEnd = () => {
      request.off('close', onClose);
      taking.then(() => finish(resolve), onError);
    };
    const onClose = () => onError(new FirstlightError('unreachable', 'the client has gone'));
    const onData = (chunk: Buffer) => {
      request.pause();
      taking = take(chunk);
      taking.then(() => {
        // After an abort nobody wants more.
        if (!signal.aborted) request.resume();
      }, onError);
    };
    if (signal.aborted) return onAbort();
    if (request.destroyed) return onClose();
    signal.addEventListener('abort', onAbort);
    request.on('error', onError).on('close', onClose).on('end', onEnd).on('data', onData);
  });
}

async function writeWhole(file: FileHandle, chunk: Buffer): Promise<void> {
  for (let at = 0; at < chunk.length; ) at += (await file.write(chunk, at)).bytesWritten;
}

/**
 * Writes a request's body to `path`.
 * @param onBytes  told of every chunk's size
 * @throws 'usage' where it is too large or empty, 'no-space', 'timeout' where it stands still, the reason of `signal`
 */
export async function receiveBody(
  request: IncomingMessage,
  path: string,
  limits: UploadLimits,
  signal: AbortSignal,
  onBytes: (bytes: number) => void,
): Promise<number> {
  const { maxBytes, stallMs } = limits;
  if (Number(request.headers['content-length'] ?? 0) > maxBytes) throw tooLarge(limits);
  const stalled = new AbortController();
  const stop = () => {
    const what = `no byte of the upload came for ${stallMs / 1000} s`;
    stalled.abort(new FirstlightError('timeout', what, { hint: 'check the network, try again' }));
  };
  let timer = setTimeout(stop, stallMs);
  let bytes = 0;
  let over = false;
  const file = await open(path, 'wx');
  try {
    const take = async (chunk: Buffer) => {
      clearTimeout(timer);
      bytes += chunk.length;
      if (bytes > maxBytes) throw tooLarge(limits);
      onBytes(chunk.length);
      await writeWhole(file, chunk);
      // A write that ends after the intake has must not start the clock again.
      if (!over) timer = setTimeout(stop, stallMs);
    };
    await eachChunk(request, take, AbortSignal.any([signal, stalled.signal]));
  } catch (error) {
    // Broken framing or a reset: whoever sent it hears nothing of this, the log does.
    throw (error as NodeJS.ErrnoException).code === 'ECONNRESET'
      ? new FirstlightError('unreachable', 'the client has gone', { cause: error })
      : error;
  } finally {
    over = true;
    clearTimeout(timer);
    await file.close();
  }
  if (bytes === 0) {
    throw new FirstlightError('usage', 'the request has no body', {
      hint: limits.hints.empty,
    });
  }
  return bytes;
}

/** Names the upload, not the server's file, in what a client is told. */
function withoutPath(error: unknown, path: string): unknown {
  if (!(error instanceof FirstlightError) || !error.message.includes(path)) return error;
  return new FirstlightError(error.kind, error.message.replaceAll(path, 'the upload'), {
    ...(error.hint === undefined ? {} : { hint: error.hint }),
    cause: error,
  });
}

async function openKind(
  kind: UploadKind,
  path: string,
  tag: string | undefined,
  platform: string,
): Promise<ImageSource> {
  switch (kind) {
    case 'rootfs':
      return openRootfs(path, { platform });
    case 'docker-archive':
      return openDockerArchive(path, tag, { platform });
    case 'oci': {
      // The layout is read in place: nothing is unpacked, so no entry can lead out of anywhere.
      const handle = await open(path, 'r');
      const files = await tarFiles(handle, () => handle.close()).catch(async (error: unknown) => {
        await handle.close();
        throw error;
      });
      return openLayout(files, tag, platform, 'the upload');
    }
  }
}

/** Opens an uploaded file as an image. */
export async function openUpload(
  kind: UploadKind,
  path: string,
  tag: string | undefined,
  platform: string,
): Promise<ImageSource> {
  try {
    return await openKind(kind, path, tag, platform);
  } catch (error) {
    throw withoutPath(error, path);
  }
}

/** Where a body is kept below its scratch directory. */
export const bodyPath = (scratch: string) => join(scratch, 'body');
