// What a transfer tells about itself.
import type { ErrorKind } from '../errors/errors.ts';

/** State of a transfer. */
export type TransferState =
  /** Frames arrive, or the first connection is being made. */
  | 'receiving'
  /** The last attempt failed (`error` says why); the next one follows by itself. */
  | 'retrying'
  /** Every content is verified and durable. */
  | 'complete'
  /** Some contents cannot be had; the others are there. */
  | 'failed';

/** A moment of a transfer. Times are ms since 1970, 0 where it has not happened. */
export interface Progress {
  state: TransferState;
  framesDone: number;
  frames: number;
  /** Compressed bytes of the frames that are done, and of all frames of the bundle. */
  bytesDone: number;
  bytes: number;
  /** The same, decompressed. */
  rawBytesDone: number;
  rawBytes: number;
  /** Bytes of preamble and header; 0 where the image was in the store. */
  headerBytes: number;
  /** Bytes of frames that came over the network since open, those that came twice included. */
  receivedBytes: number;
  requestedAt: number;
  headerAt: number;
  firstFrameAt: number;
  lastFrameAt: number;
  /** Attempts that failed since open. */
  retries: number;
  /** Requests for frames out of order. */
  outOfOrder: number;
  /** Why the transfer is retrying or has failed: one line. */
  error?: string;
  /** Kind of that error: whoever waits for the end may give up on some. */
  errorKind?: ErrorKind;
}

/** A transfer in which nothing has happened yet. */
export function newProgress(requestedAt: number): Progress {
  return {
    state: 'receiving',
    framesDone: 0,
    frames: 0,
    bytesDone: 0,
    bytes: 0,
    rawBytesDone: 0,
    rawBytes: 0,
    headerBytes: 0,
    receivedBytes: 0,
    requestedAt,
    headerAt: 0,
    firstFrameAt: 0,
    lastFrameAt: 0,
    retries: 0,
    outOfOrder: 0,
  };
}
