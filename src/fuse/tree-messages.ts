// What the daemon's main thread and the tree's thread say to each other. Only types live here.
import type { ErrorKind } from '../errors/errors.ts';
import type { TemplateOptions } from '../native/index.ts';

/** A writable mount, before its session begins. */
export interface AttachRequest {
  /** Of the native session. */
  channel: number;
  /** Manifest digest of the image: mounts of one image share what was read of it. */
  digest: string;
  places: TemplateOptions;
  /** Absolute paths of the snapshot's directories. */
  upper: string;
  work: string;
  /** For the log. */
  mountPoint: string;
  /** COUNTERS doubles (upcalls.ts), which both threads see. */
  counters: SharedArrayBuffer;
}

export type TreeRequest =
  | { do: 'attach'; request: AttachRequest }
  | { do: 'detach'; channel: number };

/** One request with the number under which it is answered. */
export interface ToTree {
  id: number;
  request: TreeRequest;
}

/** The answer; an error travels as its parts. */
export type FromTree =
  | { id: number; error: undefined }
  | { id: number; error: { kind: ErrorKind; message: string; hint: string | undefined } };
