// Records one run: keeps the first sight of each file in memory and appends it to a journal
// (`<id>.part`, one JSON object a line), so that a crash loses at most the last half second. When
// the run ends, the whole trace becomes `<id>.json` and the journal goes. What a dead recorder left
// is recover.ts.
//
// Journal lines: the head; then {"f",...} a new item; {"i",...keys} more of item number i;
// {"i","n","r"} its range number n, new or grown; {"recv"} bytes received.
import { type FileHandle, mkdir, open, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { type FirstlightError, toFirstlightError } from '../errors/errors.ts';
import { JOURNAL_SUFFIX, saveTrace, traceId } from './files.ts';
import { headJson, itemJson, rangeJson, receivedJson } from './format.ts';
import { labelFault, pathFault } from './names.ts';
import { Touched } from './touched.ts';
import {
  byAccessTime,
  type ReceivedPoint,
  TRACE_ITEMS_MAX,
  TRACE_NS_MAX,
  TRACE_RANGES_MAX,
  type TraceItem,
  type TraceRange,
  type Tracer,
  type TracerHead,
} from './tracer.ts';

/** A record is in the file this long after it came. */
const FLUSH_MS = 250;
/** The file is on the disk (fdatasync) within this time of being written; each sync costs the disk a flush. */
const SYNC_MS = 500;
/** Bytes that wait while the disk cannot be written; beyond them records are counted as lost. */
const PENDING_MAX_BYTES = 4 << 20;
const RECEIVED_MAX = 10_000;

/** First sight of a file, as a session reports it. */
export type Opened = Omit<TraceItem, 'ranges'>;

/** What {@link TraceWriter.create} takes. */
export interface TraceWriterOptions {
  /** `<root>/traces`; made (mode 0700) where it is missing. */
  directory: string;
  head: TracerHead;
  /** The journal could not be written; told once for each run of failures. Recording goes on. */
  onError?: (error: FirstlightError) => void;
}

/** Recorder of one run. */
export class TraceWriter {
  readonly id: string;
  readonly directory: string;
  readonly head: TracerHead;
  readonly #onError: (error: FirstlightError) => void;
  readonly #file: FileHandle;
  readonly #items: TraceItem[] = [];
  readonly #index = new Map<string, number>();
  readonly #touched = new Map<number, Touched>();
  readonly #received: ReceivedPoint[] = [];
  /** Lines that are not in the file yet. */
  #pending: string[] = [];
  #pendingBytes = 0;
  /** Ranges that are new or have grown since the last flush: item and index. */
  #dirty = new Map<TraceRange, { item: number; range: number }>();
  #ranges = 0;
  #lost = 0;
  /** End of what is known to be in the file; a retry writes from here. */
  #position = 0;
  #timer: NodeJS.Timeout | undefined;
  #syncedAtMs = Number.NEGATIVE_INFINITY;
  #unsynced = false;
  /** The sync that is under way; never rejects. */
  #syncing: Promise<void> | undefined;
  #failing = false;
  #closed = false;
  /** The write that is under way; never rejects. */
  #work: Promise<void> = Promise.resolve();

  private constructor(id: string, options: TraceWriterOptions, file: FileHandle) {
    this.id = id;
    this.directory = options.directory;
    this.head = options.head;
    this.#onError = options.onError ?? (() => {});
    this.#file = file;
    this.#line(headJson(options.head));
  }

  /** Begins a journal. @throws FirstlightError of the errno, `no-space` among them */
  static async create(options: TraceWriterOptions): Promise<TraceWriter> {
    const { directory, head } = options;
    for (const label of [head.group, head.image, head.platform ?? '']) {
      const fault = labelFault(label);
      if (fault !== undefined) throw new TypeError(`a label of the trace ${fault}`);
    }
    const id = traceId(head);
    try {
      await mkdir(directory, { recursive: true, mode: 0o700 });
      const file = await open(join(directory, id + JOURNAL_SUFFIX), 'wx', 0o600);
      return new TraceWriter(id, options, file);
    } catch (error) {
      throw toFirstlightError(error);
    }
  }

  /** Files seen so far. */
  get items(): number {
    return this.#items.length;
  }

  /** Events that could not be kept so far. */
  get lost(): number {
    return this.#lost;
  }

  /** Counts events that were lost before they came here. */
  addLost(count: number): void {
    this.#lost += count;
  }

  /** A file was opened. Only its first sight is kept, which need not be told first. */
  opened(sight: Opened): void {
    const index = this.#index.get(sight.path);
    if (index === undefined) {
      this.#add({ ...sight });
      return;
    }
    const item = this.#items[index]!;
    if (sight.accessNs >= item.accessNs || !validTimes(sight)) return;
    Object.assign(item, sight);
    const { r: _, ...keys } = itemJson(item);
    this.#line({ i: index, ...keys });
  }

  /**
   * Bytes of a file were read, or waited for; for files of more than one part. An open that was not
   * told before counts as come with the read. Times need not be in order.
   */
  read(path: string, read: TraceRange, layer = 0): void {
    let index = this.#index.get(path);
    if (index === undefined) {
      index = this.#add({ path, layer, accessNs: read.accessNs, waitNs: 0, ranges: [] });
    }
    // Where it could not be added, that has been counted.
    if (index === undefined) return;
    if (!validTimes(read) || this.#ranges >= TRACE_RANGES_MAX) {
      this.#lost++;
      return;
    }
    const item = this.#items[index]!;
    let touched = this.#touched.get(index);
    if (touched === undefined) {
      touched = new Touched();
      this.#touched.set(index, touched);
      item.ranges = touched.ranges;
    }
    const known = touched.ranges.length;
    const changed = touched.add(read, item.sizeBytes ?? Number.POSITIVE_INFINITY);
    this.#ranges += touched.ranges.length - known;
    if (changed === undefined) this.#lost++;
    for (const range of changed ?? []) {
      this.#dirty.set(range, { item: index, range: touched.ranges.lastIndexOf(range) });
    }
    this.#schedule();
  }

  /**
   * Says that reads of a file are seen from its open on, so that one without reads needs nothing;
   * without it a file with no range counts as read whole.
   */
  seesReads(path: string): void {
    const index = this.#index.get(path);
    const item = index === undefined ? undefined : this.#items[index];
    if (item === undefined || item.ranges !== undefined) return;
    item.ranges = [];
    this.#line({ i: index, r: [] });
  }

  /**
   * All bytes of a file are there since `atNs`, where that file has been seen. The digest of one that
   * arrives in parts may be known only then.
   */
  arrived(path: string, atNs: number, digest?: string): void {
    const index = this.#index.get(path);
    const item = index === undefined ? undefined : this.#items[index];
    if (item === undefined || item.arrivedNs !== undefined || !validTime(atNs)) return;
    item.arrivedNs = atNs;
    const late = item.digest === undefined ? digest : undefined;
    if (late !== undefined) item.digest = late;
    this.#line({ i: index, v: atNs, ...(late === undefined ? {} : { d: late }) });
  }

  /** Bytes that have come from the server, all in all, up to a moment. Equal ones are left out. */
  received(point: ReceivedPoint): void {
    const last = this.#received.at(-1);
    if (last?.bytes === point.bytes || this.#received.length >= RECEIVED_MAX) return;
    if (!validTime(point.atNs)) return;
    this.#received.push({ ...point });
    this.#line({ recv: receivedJson(point) });
  }

  /** The run as it stands now. */
  snapshot(endNs: bigint): Tracer {
    return {
      ...this.head,
      endNs,
      seq: [...this.#items].sort(byAccessTime),
      ...(this.#received.length === 0 ? {} : { received: [...this.#received] }),
      ...(this.#lost === 0 ? {} : { lost: this.#lost }),
    };
  }

  /** Writes what is pending to the journal now; resolves whether or not that works. */
  async flush(): Promise<void> {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    this.#work = this.#work.then(() => this.#write());
    await this.#work;
  }

  /**
   * Ends the run: `<id>.json` takes the journal's place.
   * @param endNs  ns since 1970
   * @returns its path, or undefined where nothing was seen and nothing is left
   * @throws FirstlightError where it cannot be written; the journal stays, for recovery to try again
   */
  async finish(endNs: bigint): Promise<string | undefined> {
    if (this.#closed) throw new Error('a trace is finished once');
    this.#closed = true;
    await this.flush();
    await this.#close();
    const path =
      this.#items.length === 0
        ? undefined
        : await saveTrace(this.directory, this.id, this.snapshot(endNs));
    await rm(join(this.directory, this.id + JOURNAL_SUFFIX), { force: true });
    return path;
  }

  /** Ends the run and leaves nothing of it. */
  async discard(): Promise<void> {
    this.#closed = true;
    clearTimeout(this.#timer);
    await this.#work;
    await this.#close();
    await rm(join(this.directory, this.id + JOURNAL_SUFFIX), { force: true });
  }

  #add(item: TraceItem): number | undefined {
    const { accessNs, waitNs } = item;
    const full = this.#items.length >= TRACE_ITEMS_MAX;
    if (this.#closed || full || !validTimes({ accessNs, waitNs }) || pathFault(item.path)) {
      this.#lost++;
      return undefined;
    }
    const index = this.#items.push(item) - 1;
    this.#index.set(item.path, index);
    this.#line(itemJson(item));
    return index;
  }

  #line(object: unknown): void {
    const line = `${JSON.stringify(object)}\n`;
    const bytes = Buffer.byteLength(line);
    if (this.#pendingBytes + bytes > PENDING_MAX_BYTES) {
      // Items are numbered by their lines, so the journal ends here; memory still has them.
      this.#pendingBytes = Number.POSITIVE_INFINITY;
      return;
    }
    this.#pending.push(line);
    this.#pendingBytes += bytes;
    this.#schedule();
  }

  #schedule(): void {
    if (this.#timer !== undefined || this.#closed) return;
    this.#timer = setTimeout(() => void this.flush(), FLUSH_MS);
    this.#timer.unref();
  }

  #rangeLines(): void {
    const dirty = this.#dirty;
    this.#dirty = new Map();
    for (const [range, { item, range: n }] of dirty) {
      this.#line({ i: item, n, r: [rangeJson(range)] });
    }
  }

  async #write(): Promise<void> {
    this.#rangeLines();
    try {
      if (this.#pending.length > 0) await this.#append();
    } catch (error) {
      // The lines stay pending and are written again from the same position, over what was torn.
      this.#failed(error);
    }
    this.#sync();
  }

  #failed(error: unknown): void {
    if (!this.#failing) this.#onError(toFirstlightError(error));
    this.#failing = true;
    this.#schedule();
  }

  async #append(): Promise<void> {
    const lines = this.#pending.length;
    const bytes = Buffer.from(this.#pending.join(''));
    for (let done = 0; done < bytes.length; ) {
      const at = this.#position + done;
      done += (await this.#file.write(bytes, done, bytes.length - done, at)).bytesWritten;
    }
    this.#position += bytes.length;
    this.#pending = this.#pending.slice(lines);
    this.#pendingBytes -= bytes.length;
    this.#unsynced = true;
  }

  /** Begins a sync where one is due. Writes do not wait for it: a busy disk may take seconds. */
  #sync(): void {
    if (!this.#unsynced || this.#syncing !== undefined || this.#closed) return;
    if (performance.now() - this.#syncedAtMs < SYNC_MS) {
      this.#schedule();
      return;
    }
    this.#unsynced = false;
    this.#syncing = this.#file
      .datasync()
      .then(
        () => {
          this.#failing = false;
        },
        (error: unknown) => {
          this.#unsynced = true;
          this.#failed(error);
        },
      )
      .finally(() => {
        this.#syncing = undefined;
        this.#syncedAtMs = performance.now();
        if (this.#unsynced) this.#schedule();
      });
  }

  async #close(): Promise<void> {
    await this.#syncing;
    // Every error of a write has been told by then, and the trace itself is a file of its own.
    await this.#file.close().catch(() => undefined);
  }
}

function validTime(ns: number): boolean {
  return Number.isSafeInteger(ns) && ns >= 0 && ns <= TRACE_NS_MAX;
}

function validTimes(of: { accessNs: number; waitNs: number }): boolean {
  return validTime(of.accessNs) && validTime(of.waitNs);
}
