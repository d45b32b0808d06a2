// What a tree needs of whoever puts it before the kernel: src/fuse implements it, and so will the
// portable session. The tree itself knows nothing of FUSE.
import type { Opens, SessionFeatures, SessionStats } from '../native/index.ts';
import type { Template } from './template.ts';

/** First open of a file, or first read of a part of a large one. */
export interface Access {
  kind: 'open' | 'read';
  /** Row of the TOC (the inode's). */
  row: number;
  /** ns since tracing was turned on. */
  atNs: number;
  /** How long it waited for bytes, ns. */
  waitNs: number;
  /** Bytes that a read asked for; 0 of an open. */
  offsetBytes: number;
  lengthBytes: number;
  /** Of an open: the reads that follow are seen. */
  readsSeen: boolean;
}

/** What was recorded since the last call. */
export interface Accesses {
  accesses: Access[];
  /** Accesses that found no room. */
  lost: number;
}

/** Counters of a writable tree's requests since the mount. */
export interface TreeStats {
  /** Requests that came to the tree: every change, and whatever is asked of files that have changed. */
  upcalls: number;
  /** Those that had to wait for a content or a copy. */
  waits: number;
  /** Those that ended in an error that no program caused. */
  failures: number;
}

/** One kernel mount of a template. */
export interface Session {
  /** Mounts; resolves when the tree answers. Rejects with nothing left mounted. */
  start(): Promise<SessionFeatures>;
  /**
   * Unmounts. One that is gone already is success.
   * @param detach  lazily, also where files are open
   * @throws an error of kind 'busy' where it is in use and not to be detached
   */
  unmount(detach: boolean): Promise<void>;
  stats(): SessionStats;
  /** undefined of a read-only session. */
  treeStats?(): TreeStats | undefined;
  /**
   * Says what is to become of opens, also before `start`. A session without it sees them all.
   * @returns false where they are unseen already, for good
   */
  setOpens?(opens: Opens): boolean;
  /**
   * Where opens are unseen: hears of those that the kernel makes, for a trace.
   * @throws an errno as `code`, where the kernel does not let it
   */
  watchOpens?(): Promise<void>;
  /** Ends that, when opens that have been made are recorded. */
  unwatchOpens?(): Promise<void>;
  /** Reads of large files come again, also where the kernel has them cached. */
  forgetReads?(): Promise<void>;
  /** Records first accesses from now on, as if nothing had been seen before; or stops. Also before `start`. */
  setTracing(on: boolean): void;
  /** What was recorded since the last call; also after the end. */
  takeTrace(): Accesses;
}

/** What a mount wants of its session. */
export interface SessionRequest {
  /** Absolute path of an existing directory, free of symlinks. */
  mountPoint: string;
  /** Shown as the source in /proc/mounts. */
  source: string;
  /** Bound of a single wait for content, in ms; 0 = none. */
  waitTimeoutMs: number;
  /** Changes are kept here, in overlayfs' format; without it the session is read-only. Absolute paths. */
  writable?: { upper: string; work: string };
  /** A reader waits for parts (numbers within the content). */
  onWanted(content: number, firstPart: number, lastPart: number): void;
  /** A wait ended in EIO after `waitedMs`. */
  onTimeout(content: number, waitedMs: number): void;
  /** The kernel has ended the session, or it died of `error`. */
  onClosed(error: string | undefined): void;
}

/** Makes a session; it does nothing before `start`. */
export type SessionFactory = (template: Template, request: SessionRequest) => Session;
