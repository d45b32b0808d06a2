// The native boundary: every class and function of native/ (C++, N-API), declared in one place.
// native/ holds the FUSE kernel protocol and a read cache over a template, and no policy: which
// frame to fetch, how long to retry and what to log is decided by its callers.
//
// Threads: everything here is called on the JavaScript thread and returns at once; what may block
// runs on native threads and answers by promise or callback. Callbacks run on the JavaScript
// thread.
import { existsSync } from 'node:fs';
import { createRequire } from 'node:module';
import { FirstlightError, toFirstlightError } from '../errors/errors.ts';
import { portableAddon } from './portable.ts';
import type { NativeUpcalls, UpcallHandler } from './upcalls.ts';
import type { NativeUpper } from './upper.ts';

/** State of a content as native keeps it: the numbers are Starlight's. */
export const CONTENT_STATE = { Empty: 0, Partial: 1, RoLayer: 2, Failed: 4 } as const;

/** Where a template's bytes stand. All paths are absolute. */
export interface TemplateOptions {
  /** Flat TOC (delta/toc-layout.ts); mapped read-only, checked again on load. */
  tocPath: string;
  /**
   * sha256 of each content, 32 bytes a slot, in content order; mapped shared and read-only. A slot is
   * read only after `markReady` or `markParts` has named its content, so the caller writes it first.
   */
  digestsPath: string;
  /** <root>/content: a durable content is `<2 hex>/<62 hex>` below it. */
  contentDir: string;
  /**
   * <root>/incoming: a verified content that is not durable yet is `<64 hex>` below it. It is renamed
   * into contentDir at some later moment, so a reader that finds neither looks once more.
   */
  incomingDir: string;
  /** A content of more than one part that is still arriving is `<partialPrefix>.<content index>` in incomingDir. */
  partialPrefix: string;
}

/** The read-only tree of one image, shared by every mount of it. */
export interface NativeTemplate {
  readonly rows: number;
  readonly contents: number;
  readonly parts: number;
  /** Marks whole contents RoLayer and completes what waits for them. */
  markReady(contents: Uint32Array): void;
  /** Marks arrived parts (numbers through all contents) readable in the partial file; completes READs that wait for them. */
  markParts(parts: Uint32Array): void;
  /** Marks contents Failed: what waits for them and every later open or read ends with `errno` (positive). */
  markFailed(contents: Uint32Array, errno: number): void;
  /** Back to Empty (or Partial, where parts have arrived), after a failure that has been mended. */
  clearFailed(contents: Uint32Array): void;
  /** Back to Empty, whatever was there of them: their files are gone. Reads wait for them, and who waits goes on waiting. */
  forget(contents: Uint32Array): void;
  /** CONTENT_STATE of one content. */
  state(content: number): number;
  /** Number of requests that wait for contents now, through all sessions. */
  waiting(): number;
  /**
   * Goes on with the image's files as they stand at these places now: it may have been removed and fetched again.
   * Marks stay as they are. The addon's own has it.
   * @returns false where the image has another TOC there, and nothing was changed
   */
  reopen?(places: TemplateOptions): boolean;
  /** Unmaps everything. Throws while a session uses the template. */
  close(): void;
}

/** What one mount wants. */
export interface SessionOptions {
  /** Absolute path of an existing directory. */
  mountPoint: string;
  /** Shown as the source in /proc/mounts. */
  source: string;
  /** Threads that answer requests; 0 = one for each CPU, at most 4. */
  threads: number;
  /** A request that waits for contents longer than this ends with EIO. 0 = no bound. */
  waitTimeoutMs: number;
  /** false: never offer passthrough, as on a kernel that lacks it. */
  passthrough: boolean;
  /** Mount with allow_other. */
  allowOther: boolean;
  /**
   * Every change, and every request on a node that was thawed, goes to the `Upcalls` that were made for
   * `channel` before `start`; without it every change ends with EROFS.
   */
  writable?: boolean;
  /**
   * A request has begun to wait for parts `firstPart` to `lastPart` (numbers within the content). Called once for
   * each wait, so that the receiver can fetch them out of order.
   */
  onWanted(content: number, firstPart: number, lastPart: number): void;
  /** A wait of `waitedMs` milliseconds ended in EIO because nothing came. */
  onTimeout(content: number, waitedMs: number): void;
  /** The kernel has ended the session (unmounted from anywhere), or a thread died of `error`. No callback comes after it. */
  onClosed(error: string | undefined): void;
}

/** What the kernel offered and what the session uses. */
export interface SessionFeatures {
  /** FUSE protocol of the kernel, such as "7.45". */
  protocol: string;
  transport: 'dev-fuse' | 'io-uring' | 'fuse-native';
  passthrough: boolean;
  directIoAllowMmap: boolean;
  threads: number;
}

/** Counters since the mount; plain numbers, cheap to read. */
export interface SessionStats {
  lookups: number;
  opens: number;
  passthroughOpens: number;
  reads: number;
  bytesRead: number;
  waits: number;
  waitedMs: number;
  interrupted: number;
  timeouts: number;
  /** First time any content's bytes or passthrough handle were given out: ms since 1970, 0 where none was. */
  firstReadAt: number;
  /** The kernel opens files without asking, and no open is counted any more. */
  opensUnseen: boolean;
}

/** Of a session that has just begun, and of one that is not heard of. */
export const NO_STATS: Readonly<SessionStats> = Object.freeze({
  lookups: 0,
  opens: 0,
  passthroughOpens: 0,
  reads: 0,
  bytesRead: 0,
  waits: 0,
  waitedMs: 0,
  interrupted: 0,
  timeouts: 0,
  firstReadAt: 0,
  opensUnseen: false,
});

/** What is to become of opens in a read-only session. */
export const OPENS = {
  /** They come to the session, and what is there is opened with passthrough. */
  Seen: 0,
  /** They come to the session, and go through the kernel's page cache: nothing will bar `Unseen`. */
  Cached: 1,
  /**
   * The kernel is to open alone, and read by node: with the first open that comes while none has
   * passthrough. Then for good.
   */
  Unseen: 2,
} as const;
export type Opens = (typeof OPENS)[keyof typeof OPENS];

/** Kinds of a trace's records. */
export const TRACE_KIND = {
  /** First open of a file; its reads are not seen. */
  Open: 1,
  /** First open of a file whose reads are seen from then on. */
  OpenSeen: 2,
  /** Read that touches a block of 64 KiB for the first time, of a file of several parts. */
  Read: 3,
} as const;

/** Bytes of one record of {@link TraceRecords}. */
export const TRACE_RECORD_BYTES = 40;

/** What was recorded since the last take. */
export interface TraceRecords {
  /**
   * Little-endian: f64 at (ns since `setTracing(true)`), f64 wait (ns), f64 offset (bytes), u32 length (bytes),
   * u32 row of the TOC (the inode's), u32 TRACE_KIND, u32 0. An access that waited comes when its wait is over.
   */
  records: ArrayBuffer;
  /** Records that found no room since the last take. */
  lost: number;
}

/** One kernel mount. */
export interface NativeSession {
  /** Names the session in the whole process: by it another JavaScript thread attaches its `Upcalls`. */
  readonly channel: number;
  /** Mounts and answers; resolves when the kernel has accepted the handshake. */
  start(): Promise<SessionFeatures>;
  /** Unmounts; `detach` = lazily (MNT_DETACH). Rejects with code EBUSY where it is in use and not detached. */
  unmount(detach: boolean): Promise<void>;
  /**
   * Ends the session whatever the kernel says: detaches the mount and closes the device, so that
   * whoever still uses it gets ENOTCONN. For a mount that was detached and does not come to its end.
   */
  abort(): Promise<void>;
  stats(): SessionStats;
  /**
   * Records first accesses from now on, with no memory of what was seen before; or stops. May be called before
   * `start`. While it is on, a file of several parts is opened without passthrough until all of it was read.
   */
  setTracing(on: boolean): void;
  /**
   * Says what is to become of opens; also before `start`. Not of a writable session, which sees them all.
   * @returns false where they are unseen already, which nothing changes
   */
  setOpens(opens: Opens): boolean;
  /**
   * Where opens are unseen: hears of those that the kernel makes (fanotify), and records them as others while
   * tracing is on. Rejects with an errno as `code`: EPERM, ENOSYS, EMFILE and others where the kernel does not
   * let it, ENODEV where the filesystem does not stand at its mount point any more.
   */
  watchOpens(): Promise<void>;
  /** Ends that, when opens that have been made are recorded; also where it was not begun. */
  unwatchOpens(): Promise<void>;
  /** The kernel forgets what it has cached of files of several parts, so that it asks for it again. */
  forgetReads(): Promise<void>;
  /** Takes what was recorded, also after the session's end. There is room for 65,536 records between two takes. */
  takeTrace(): TraceRecords;
}

/** One file of a batch: `length` bytes at `offset` of the batch's data. */
export interface BatchFile {
  name: string;
  offset: number;
  length: number;
}

export interface NativeAddon {
  Template: new (options: TemplateOptions) => NativeTemplate;
  Session: new (template: NativeTemplate, options: SessionOptions) => NativeSession;
  /** The writable tree's side of a session; made on the thread that is to take the upcalls. */
  Upcalls: new (
    channel: number,
    handler: UpcallHandler,
  ) => NativeUpcalls;
  upper: NativeUpper;
  /**
   * Creates the files of a batch in `directory` (mode 0444, replacing none: EEXIST is success, since names are
   * digests) and writes them whole. Runs on the thread pool. On an error the file concerned is removed and the
   * promise rejects with its errno as `code`; files before it in the batch stay.
   */
  writeFiles(directory: string, data: Uint8Array, files: BatchFile[]): Promise<void>;
  /** syncfs(2) of the filesystem that holds `path`. */
  syncfs(path: string): Promise<void>;
  /** Renames each [from, to] pair below `directory` (renameat(2)); a missing `from` whose `to` exists is success. */
  renameFiles(directory: string, pairs: [string, string][]): Promise<void>;
  /** mount(2). Rejects with the errno as `code`. */
  mount(source: string, target: string, type: string, flags: number, data: string): Promise<void>;
  /** umount2(2). */
  umount(target: string, flags: number): Promise<void>;
  /** Gives memory that the C library keeps for later back to the kernel; some milliseconds on the thread pool. */
  trimMemory(): Promise<void>;
  /** Kernel facts for `doctor`, read without mounting: opens /dev/fuse, nothing more. */
  probe(): { devFuse: boolean; error: string | undefined };
}

let loaded: NativeAddon | undefined;
let standIn: { addon: NativeAddon; error: FirstlightError } | undefined;

/** Loads the addon. @throws FirstlightError that says how to build it */
export function loadAddon(): NativeAddon {
  if (loaded !== undefined) return loaded;
  const built = new URL('../../native/build/firstlight.node', import.meta.url).pathname;
  const path = process.env.FIRSTLIGHT_NATIVE ?? built;
  if (!existsSync(path)) {
    throw new FirstlightError('unsupported', `the native part is not built (${path})`, {
      hint: 'run "make native" in the checkout',
    });
  }
  try {
    loaded = createRequire(import.meta.url)(path) as NativeAddon;
  } catch (cause) {
    throw new FirstlightError('unsupported', `the native part cannot be loaded: ${String(cause)}`, {
      hint: 'run "make native" again with this Node.js',
      cause,
    });
  }
  return loaded;
}

/** The addon; where it cannot be loaded, what stands in for it (portable.ts), which has no kernel session. */
export function native(): NativeAddon {
  if (loaded === undefined && standIn === undefined) {
    try {
      loadAddon();
    } catch (cause) {
      const error = toFirstlightError(cause);
      standIn = { addon: portableAddon(error), error };
    }
  }
  return standIn?.addon ?? loaded!;
}

/** Why the addon cannot be loaded; undefined where it can. */
export function addonError(): FirstlightError | undefined {
  native();
  return standIn?.error;
}
