// The read-only tree by path, as fuse-native asks for it: attributes, listings, links and reads, over
// TemplateEntry. It knows nothing of mounts, and is tested by calling it. What does not live here:
// mounting (session.ts).
//
// Everything runs on the JavaScript thread; a read that has to wait is a promise, and holds up nothing
// but the program that reads. Opens never wait: libfuse 2 cannot end an open that waits when its caller
// is killed, while the kernel lets go of a caller that waits for a page.
import type { FileHandle } from 'node:fs/promises';
import { constants } from 'node:os';
import { PART_BYTES } from '../../delta/toc-layout.ts';
import { bytesOf, fromText } from '../../image/tree.ts';
import { CONTENT_STATE, NO_STATS, type SessionStats } from '../../native/index.ts';
import { ContentError, type Needed } from '../../tree/content-states.ts';
import { TemplateEntry } from '../../tree/entry.ts';
import type { SessionRequest } from '../../tree/session.ts';
import type { Template } from '../../tree/template.ts';
import { AccessLog } from './accesses.ts';
import { ContentFiles } from './content-files.ts';
import type { Stat, StatFs } from './library.ts';

const { ENOENT, ENOTDIR, EINVAL, EROFS, EIO, EBADF, ENAMETOOLONG } = constants.errno;
/** open(2): the bits that say what a file is opened for; 0 = reading. */
const O_ACCMODE = 3;
const BLOCK_BYTES = 4096;
const NAME_MAX = 255;

/** An error with the errno that a program gets. */
export class OperationError extends Error {
  /** Positive. */
  readonly errno: number;
  constructor(errno: number) {
    super(`errno ${errno}`);
    this.errno = errno;
  }
}

/** The errno of whatever went wrong; EIO where nothing better is known. */
export function errnoOf(error: unknown): number {
  if (error instanceof OperationError || error instanceof ContentError) return error.errno;
  const { errno } = error as NodeJS.ErrnoException;
  return typeof errno === 'number' && errno < 0 ? -errno : EIO;
}

/** Text that stands for a byte string exactly; undefined where the bytes are no UTF-8. */
function exactText(name: string): string | undefined {
  const bytes = bytesOf(name);
  const text = bytes.toString('utf8');
  return Buffer.from(text, 'utf8').equals(bytes) ? text : undefined;
}

interface Handle {
  /** Row of the inode. */
  row: number;
  content: number;
  bytes: number;
  openedMs: number;
  /** Of a file of one part: its open is in the trace. */
  noted: boolean;
  file: Promise<FileHandle> | undefined;
  /** Of the moment of `file`'s opening. */
  epoch: number;
  whole: boolean;
}

/** What the operations need of a session's request. */
export type Waits = Pick<SessionRequest, 'waitTimeoutMs' | 'onWanted' | 'onTimeout'>;

/** One mount's operations. `close` ends what waits. */
export class Operations {
  readonly accesses = new AccessLog();
  readonly #template: Template;
  readonly #root: TemplateEntry;
  readonly #files: ContentFiles | undefined;
  readonly #waits: Waits;
  readonly #handles = new Map<number, Handle>();
  /** What may no longer wait. */
  readonly #end = new AbortController();
  #nextHandle = 1;
  /** Names that cannot be told to the library. */
  #hidden = 0;
  readonly #stats: SessionStats = { ...NO_STATS };

  constructor(template: Template, waits: Waits) {
    this.#template = template;
    this.#root = new TemplateEntry(template.toc, 0);
    this.#files = template.places === undefined ? undefined : new ContentFiles(template.places);
    this.#waits = waits;
  }

  stats(): SessionStats {
    return { ...this.#stats };
  }

  /** Number of names seen in listings that are no UTF-8, and so were left out. */
  get hiddenNames(): number {
    return this.#hidden;
  }

  #find(path: string): TemplateEntry {
    this.#stats.lookups++;
    let entry = this.#root;
    for (const text of path.split('/')) {
      if (text === '') continue;
      const name = fromText(text);
      if (name.length > NAME_MAX) throw new OperationError(ENAMETOOLONG);
      if (!entry.isDirectory) throw new OperationError(ENOTDIR);
      const next = entry.lookup(name);
      if (next === undefined) throw new OperationError(ENOENT);
      entry = next;
    }
    return entry;
  }

  /** Attributes of a path. Times before 1970 are shown as 1970: the library cannot tell them. */
  getattr(path: string): Stat {
    const a = this.#find(path).attributes();
    const ms = Math.max(0, a.mtimeSec * 1000 + Math.floor(a.mtimeNsec / 1e6));
    const { mode, uid, gid, size, nlink, ino, rdev, blocks } = a;
    const times = { mtime: ms, atime: ms, ctime: ms };
    return { mode, uid, gid, size, nlink, ino, rdev, blocks, blksize: BLOCK_BYTES, ...times };
  }

  /** Names of a directory. Those that are no UTF-8 cannot be told, nor asked for, and are left out. */
  readdir(path: string): string[] {
    const directory = this.#find(path);
    if (!directory.isDirectory) throw new OperationError(ENOTDIR);
    const names = ['.', '..'];
    for (const { name } of directory.children()) {
      const text = exactText(name);
      if (text === undefined) this.#hidden++;
      else names.push(text);
    }
    return names;
  }

  /** Target of a symlink; EIO for one that is no UTF-8. */
  readlink(path: string): string {
    const target = this.#find(path).target();
    if (target === undefined) throw new OperationError(EINVAL);
    const text = exactText(target);
    if (text === undefined) throw new OperationError(EIO);
    return text;
  }

  statfs(): StatFs {
    const { totalBytes, inodes } = this.#template.toc;
    const blocks = Math.min(0xffffffff, Math.ceil(totalBytes / BLOCK_BYTES));
    return { bsize: BLOCK_BYTES, frsize: BLOCK_BYTES, blocks, files: inodes, namemax: NAME_MAX };
  }

  /** Opens for reading; a handle. @throws OperationError EROFS, the errno of a content that has failed */
  open(path: string, flags: number): number {
    if ((flags & O_ACCMODE) !== 0) throw new OperationError(EROFS);
    const entry = this.#find(path);
    const { states, toc } = this.#template;
    const { content } = entry;
    if (content >= 0 && states.state(content) === CONTENT_STATE.Failed) {
      throw new OperationError(states.failure(content));
    }
    const openedMs = performance.now();
    const row = toc.inode(entry.row);
    const large = content >= 0 && toc.partCount(content) > 1;
    this.#stats.opens++;
    if (large || content < 0) this.accesses.opened(row, large, openedMs, 0);
    const handle = this.#nextHandle;
    // The library keeps handles as positive 32-bit numbers.
    do this.#nextHandle = this.#nextHandle >= 0x7fffffff ? 1 : this.#nextHandle + 1;
    while (this.#handles.has(this.#nextHandle));
    this.#handles.set(handle, {
      row,
      content,
      bytes: toc.size(entry.row),
      openedMs,
      noted: large || content < 0,
      file: undefined,
      epoch: 0,
      whole: false,
    });
    return handle;
  }

  /**
   * Reads into `buffer`, after a wait where the bytes have not arrived; their number.
   * @throws OperationError, ContentError, errors of the disk
   */
  async read(number: number, buffer: Buffer, length: number, offset: number): Promise<number> {
    const handle = this.#handles.get(number);
    if (handle === undefined) throw new OperationError(EBADF);
    this.#stats.reads++;
    const bytes = Math.min(length, Math.max(0, handle.bytes - offset));
    if (bytes === 0) return 0;
    const { content } = handle;
    const atMs = performance.now();
    const firstPart = Math.floor(offset / PART_BYTES);
    const lastPart = Math.floor((offset + bytes - 1) / PART_BYTES);
    const waitMs = await this.#arrived({ content, firstPart, lastPart });
    const file = await this.#file(handle);
    await readWhole(file, buffer, bytes, offset);
    this.#stats.bytesRead += bytes;
    if (this.#stats.firstReadAt === 0) this.#stats.firstReadAt = Date.now();
    if (this.#template.toc.partCount(content) > 1) {
      this.accesses.read(handle.row, offset, bytes, atMs, waitMs);
    } else this.#noteOpen(handle, waitMs);
    return bytes;
  }

  #noteOpen(handle: Handle, waitMs: number): void {
    if (handle.noted) return;
    handle.noted = true;
    this.accesses.opened(handle.row, false, handle.openedMs, waitMs);
  }

  /** Waits for parts; for how many ms. */
  async #arrived(needed: Needed): Promise<number> {
    const { states } = this.#template;
    if (states.readable(needed)) return 0;
    const startMs = performance.now();
    const missing = this.#missing(needed);
    const wait = states.wait(needed, this.#waits.waitTimeoutMs, this.#end.signal);
    this.#stats.waits++;
    if (states.state(needed.content) !== CONTENT_STATE.Failed) {
      this.#waits.onWanted(needed.content, missing.firstPart, missing.lastPart);
    }
    try {
      await wait;
    } catch (error) {
      if (error instanceof ContentError && error.timedOut) {
        this.#stats.timeouts++;
        this.#waits.onTimeout(needed.content, Math.round(performance.now() - startMs));
      }
      throw error;
    } finally {
      this.#stats.waitedMs += performance.now() - startMs;
    }
    return performance.now() - startMs;
  }

  /** From the first of the parts that is missing to the last. */
  #missing({ content, firstPart, lastPart }: Needed): Needed {
    const { states } = this.#template;
    const has = (part: number) => states.readable({ content, firstPart: part, lastPart: part });
    let first = firstPart;
    let last = lastPart;
    while (first < last && has(first)) first++;
    while (last > first && has(last)) last--;
    return { content, firstPart: first, lastPart: last };
  }

  /** The open file of a handle; opened anew where a content was lost since, or has become whole. */
  #file(handle: Handle): Promise<FileHandle> {
    const { states } = this.#template;
    const whole = states.state(handle.content) === CONTENT_STATE.RoLayer;
    const stale = handle.epoch !== states.epoch || (whole && !handle.whole);
    if (handle.file !== undefined && !stale) return handle.file;
    const files = this.#files;
    if (files === undefined) return Promise.reject(new OperationError(EIO));
    // Reads that are under way on the old one end before it is closed.
    const old = handle.file;
    const { content, bytes } = handle;
    const opening = whole ? files.openWhole(content, bytes) : files.openArriving(content, bytes);
    handle.file = opening;
    handle.epoch = states.epoch;
    handle.whole = whole;
    // A failed opening is told to this read; the next one tries again.
    opening.catch(() => {
      if (handle.file === opening) handle.file = undefined;
    });
    void closeLater(old);
    return opening;
  }

  /** Closes a handle. */
  async release(number: number): Promise<void> {
    const handle = this.#handles.get(number);
    if (handle === undefined) return;
    this.#handles.delete(number);
    this.#noteOpen(handle, 0);
    await closeLater(handle.file);
  }

  /** Whoever waits gets EIO, as does whoever would; what is there stays readable. */
  endWaits(): void {
    this.#end.abort();
  }

  /** Ends everything. */
  async close(): Promise<void> {
    this.endWaits();
    for (const number of [...this.#handles.keys()]) await this.release(number);
    await this.#files?.close();
  }
}

/** Closes a file that may not have been opened: that error was its reader's. */
async function closeLater(file: Promise<FileHandle> | undefined): Promise<void> {
  const open = await file?.catch(() => undefined);
  // FileHandle.close waits for the reads that are under way. It was open for reading only: nothing can be lost.
  await open?.close().catch(() => undefined);
}

async function readWhole(
  file: FileHandle,
  buffer: Buffer,
  bytes: number,
  offset: number,
): Promise<void> {
  for (let have = 0; have < bytes; ) {
    const { bytesRead } = await file.read(buffer, have, bytes - have, offset + have);
    // Shorter than it was when it was verified: zeros or a short read would be a lie.
    if (bytesRead === 0) throw new OperationError(EIO);
    have += bytesRead;
  }
}
