// What the daemon and the keeper say to each other: types only. A line of JSON each, both ways, on a socket
// that only root may use.
//
// The keeper is a process that answers the kernel for the images that containerd's containers stand on, and
// does nothing else: it outlives the daemon, which can be stopped, killed or replaced while containers run.
// The daemon fetches; it tells the keeper what has arrived and hears from it what is waited for.
import type { Opens, SessionFeatures, SessionStats, TemplateOptions } from '../native/index.ts';

/**
 * Raised with every change that the other side would not understand. A keeper of another version is left alone
 * with what it has mounted: containers go on reading what has arrived, and nothing more arrives in it. A keeper of
 * this version is started beside it, and mounts images anew for containers that start from then on.
 */
export const KEEPER_VERSION = 3;

/** How an image is to be mounted. */
export interface KeptMountOptions {
  mountPoint: string;
  source: string;
  threads: number;
  waitTimeoutMs: number;
  passthrough: boolean;
  opens: Opens;
}

/** Marks of contents or parts; the numbers as little-endian u32 in base64. */
export interface MarkMessage {
  op: 'mark';
  image: string;
  what: 'ready' | 'parts' | 'failed' | 'clear' | 'forget';
  numbers: string;
  /** Of `failed`. */
  errno?: number;
}

export type KeeperRequest =
  /** Answered by the version and what is mounted; the daemon that asked last is the one that hears. */
  | { op: 'hello'; seq: number }
  /** Opens the tables of an image; nothing happens where they are open. */
  | { op: 'open'; image: string; places: TemplateOptions }
  | MarkMessage
  /** What is to become of opens, as in `mount`. */
  | { op: 'opens'; image: string; opens: Opens }
  /** Mounts; answered by its features. One that is mounted stays as it is. */
  | { op: 'mount'; seq: number; image: string; options: KeptMountOptions }
  | { op: 'unmount'; seq: number; image: string; detach: boolean }
  /** Ends the keeper, unless something is mounted. */
  | { op: 'end'; seq: number };

/** What `hello` is answered with. */
export interface KeeperState {
  version: number;
  pid: number;
  mounts: { image: string; mountPoint: string }[];
}

export type KeeperMessage =
  | { seq: number; result: unknown }
  | { seq: number; error: { code: string | undefined; message: string } }
  /** A reader waits for parts of a content. */
  | { event: 'wanted'; image: string; content: number; first: number; last: number }
  /** A wait ended because nothing came. */
  | { event: 'timeout'; image: string; content: number; waitedMs: number }
  /** The kernel has ended the mount, or it died of `error`. */
  | { event: 'closed'; image: string; error?: string | undefined }
  /** `waiting`: requests that wait for contents now; keepers of before do not say it. */
  | { event: 'stats'; image: string; stats: SessionStats; waiting?: number };

export type { SessionFeatures, SessionStats };

export function encodeNumbers(numbers: Uint32Array): string {
  return Buffer.from(numbers.buffer, numbers.byteOffset, numbers.byteLength).toString('base64');
}

export function decodeNumbers(text: string): Uint32Array {
  // A copy: a pooled buffer need not begin where a u32 may.
  const bytes = Uint8Array.from(Buffer.from(text, 'base64'));
  return new Uint32Array(bytes.buffer, 0, bytes.byteLength >> 2);
}

/** Cuts a stream of text into lines. */
export class Lines {
  #rest = '';

  /** Whole lines so far, without their ends. */
  take(chunk: string): string[] {
    const lines = (this.#rest + chunk).split('\n');
    this.#rest = lines.pop() ?? '';
    return lines;
  }
}
