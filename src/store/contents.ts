// File contents by digest: how verified bytes get on disk, become durable, and go again. What does
// not live here: who needs a content (gc.ts), where bytes come from, and large contents while
// their parts arrive (receive/partial.ts); they enter by `adoptFile` when they are whole.
//
// A content's way: bytes in memory, verified -> incoming/<64 hex> -> syncfs -> renamed to
// content/<2>/<62>.
//
// What survives kill -9 of the daemon: everything written, since the page cache is the kernel's. Of
// a batch that was being written a file may be short; all that stand in incoming/ are hashed again
// at the next start and the wrong ones dropped.
// What survives power loss: everything under content/, because a rename follows the syncfs of what
// it renames. The rename itself may be lost: the file then stands in incoming/ with its bytes, and
// start-up hashes it and renames it again. So no directory is ever fsynced for a content.
import { createHash } from 'node:crypto';
import { open, readdir, stat } from 'node:fs/promises';
import { setTimeout as sleep } from 'node:timers/promises';
import type { Logger } from '../log/log.ts';
import type { BatchFile } from '../native/index.ts';
import { DigestSet } from './digest-set.ts';
import type { StoreIo } from './io.ts';
import { Lanes } from './lanes.ts';
import { HEX64, type Layout } from './layout.ts';

/** Verified bytes on their way into the store. */
export interface NewContent {
  /** sha256 of `data`, 64 hex digits; the caller has checked it. */
  hex: string;
  data: Buffer;
}

/** Contents written but not durable are made so when they reach this many bytes ... */
const DURABLE_BYTES = 256 << 20;
/** ... or after this long. Only power loss can make them be fetched again. */
const DURABLE_MS = 10_000;
/**
 * Batches written at a time. All go to one directory, whose lock they share: four at once cost more
 * CPU time than two and end no earlier, and leave the thread pool nothing for anything else.
 */
const WRITERS = 2;
/** Bytes read at once when a file is hashed. */
const HASH_CHUNK_BYTES = 1 << 20;
/** Renames in one native call. */
const RENAME_BATCH = 4096;

/** sha256 of a file, hex, read in chunks so that the event loop goes on. */
export async function hashFile(path: string): Promise<string> {
  const hash = createHash('sha256');
  const file = await open(path, 'r');
  try {
    const chunk = Buffer.allocUnsafe(HASH_CHUNK_BYTES);
    for (;;) {
      const { bytesRead } = await file.read(chunk, 0, chunk.length, null);
      if (bytesRead === 0) break;
      hash.update(chunk.subarray(0, bytesRead));
    }
  } finally {
    await file.close();
  }
  return hash.digest('hex');
}

/** The contents of one store. */
export class ContentStore {
  readonly #io: StoreIo;
  readonly #layout: Layout;
  readonly #log: Logger;
  readonly #writers = new Lanes(WRITERS);
  /** Every content that is verified and on disk, durable or not. */
  readonly #present = new DigestSet();
  /** Verified contents in incoming/. */
  readonly #pending = new DigestSet();
  /** Bytes put since the last flush began. */
  #unflushedBytes = 0;
  /** Contents being written, so that a second image does not take a half-written file for whole. */
  readonly #writing = new Map<string, Promise<void>>();
  /** Contents being removed; a write of the same one waits for the unlink. */
  readonly #removing = new Map<string, Promise<void>>();
  /** Digests used since a collection began, which it must leave; undefined where none runs. */
  #touched: Set<string> | undefined;
  /** End of the newest flush, and whether one is at work. */
  #durable: Promise<void> = Promise.resolve();
  #flushing = false;
  #timer: NodeJS.Timeout | undefined;

  constructor(io: StoreIo, layout: Layout, log: Logger) {
    this.#io = io;
    this.#layout = layout;
    this.#log = log;
  }

  /** Number of contents. */
  get count(): number {
    return this.#present.size;
  }

  /** True where the content named by the 32 bytes at `offset` is on disk and verified. */
  has(digests: Buffer, offset = 0): boolean {
    return this.#present.has(digests, offset);
  }

  /** As `has`, and keeps the content from a collection that is under way. */
  claim(digests: Buffer, offset = 0): boolean {
    if (!this.#present.has(digests, offset)) return false;
    this.#touched?.add(digests.toString('hex', offset, offset + 32));
    return true;
  }

  /**
   * Writes verified contents; what the store has already is not written again. All are readable
   * by name in incoming/ when it resolves.
   * @throws the errno of the first write that failed; none is half-written then, some may be there
   */
  async put(contents: NewContent[]): Promise<void> {
    const others: Promise<void>[] = [];
    const mine = new Map<string, NewContent>();
    for (const content of contents) {
      const { hex } = content;
      if (this.claim(Buffer.from(hex, 'hex')) || mine.has(hex)) continue;
      this.#touched?.add(hex);
      const writing = this.#writing.get(hex);
      if (writing !== undefined) others.push(writing);
      else mine.set(hex, content);
    }
    if (mine.size > 0) {
      const write = this.#write([...mine.values()]);
      for (const hex of mine.keys()) this.#writing.set(hex, write);
      others.push(write);
      write
        // The same rejection reaches the caller through `others`.
        .catch(() => undefined)
        .finally(() => {
          for (const hex of mine.keys()) this.#writing.delete(hex);
        });
    }
    await settleAll(others);
  }

  async #write(contents: NewContent[]): Promise<void> {
    const removing = contents.flatMap(({ hex }) => this.#removing.get(hex) ?? []);
    if (removing.length > 0) await Promise.all(removing);
    // The parts of a frame are views of one buffer: one native call writes them all.
    const batches = new Map<ArrayBufferLike, NewContent[]>();
    for (const content of contents) {
      const batch = batches.get(content.data.buffer);
      if (batch === undefined) batches.set(content.data.buffer, [content]);
      else batch.push(content);
    }
    for (const [buffer, batch] of batches) {
      const files: BatchFile[] = batch.map(({ hex, data }) => ({
        name: hex,
        offset: data.byteOffset,
        length: data.length,
      }));
      await this.#writers.run(() =>
        this.#io.writeFiles(this.#layout.incoming, new Uint8Array(buffer), files),
      );
      for (const { hex, data } of batch) this.#add(hex, data.length);
    }
  }

  #add(hex: string, bytes: number): void {
    const digest = Buffer.from(hex, 'hex');
    if (!this.#present.add(digest)) return;
    this.#pending.add(digest);
    this.#unflushedBytes += bytes;
    if (this.#unflushedBytes >= DURABLE_BYTES) this.#flushSoon(0);
    else this.#flushSoon(DURABLE_MS);
  }

  /**
   * Takes over a file in incoming/ whose digest the caller has verified, under its own name.
   * @param path  file in incoming/; gone from there afterwards
   */
  async adoptFile(path: string, hex: string, bytes: number): Promise<void> {
    this.#touched?.add(hex);
    await this.#removing.get(hex);
    if (this.has(Buffer.from(hex, 'hex'))) {
      await this.#io.remove(path);
      return;
    }
    await this.#io.rename(path, this.#layout.incomingFile(hex));
    this.#add(hex, bytes);
  }

  #flushSoon(ms: number): void {
    if (this.#timer !== undefined && ms > 0) return;
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => {
      this.#timer = undefined;
      this.makeDurable().catch((error: unknown) => {
        // Nothing is lost by it yet: the contents stay in incoming/, and the next batch tries again.
        this.#log.error({ err: error }, 'contents could not be made durable');
        if (this.#pending.size > 0) this.#flushSoon(DURABLE_MS);
      });
    }, ms);
    this.#timer.unref();
  }

  /**
   * Makes all that was put before the call durable: one syncfs, then the renames.
   * @throws the errno of syncfs or of a rename; what was not renamed stays in incoming/
   */
  async makeDurable(): Promise<void> {
    const flush = this.#durable.then(() => this.#flush());
    // The chain only orders; each caller gets its own flush's error.
    this.#durable = flush.catch(() => undefined);
    await flush;
  }

  async #flush(): Promise<void> {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    if (this.#pending.size === 0) return;
    this.#flushing = true;
    try {
      await this.#flushBatch([...this.#pending.values()]);
    } finally {
      this.#flushing = false;
    }
  }

  async #flushBatch(batch: Buffer[]): Promise<void> {
    this.#unflushedBytes = 0;
    await this.#io.syncfs(this.#layout.root);
    for (let at = 0; at < batch.length; at += RENAME_BATCH) {
      const some = batch.slice(at, at + RENAME_BATCH).filter((digest) => this.#pending.has(digest));
      const pairs = some.map((digest): [string, string] => {
        const hex = digest.toString('hex');
        return [`incoming/${hex}`, `content/${hex.slice(0, 2)}/${hex.slice(2)}`];
      });
      await this.#io.renameFiles(this.#layout.root, pairs);
      for (const digest of some) this.#pending.delete(digest);
    }
  }

  /**
   * Reads what is on disk: everything under content/, and of incoming/ the contents whose bytes
   * match their names; others are removed. Partial files are left to their images.
   */
  async load(): Promise<{ kept: number; dropped: number }> {
    const shards = (await readdir(this.#layout.content)).filter((name) =>
      /^[0-9a-f]{2}$/.test(name),
    );
    await eachOf(shards, 16, async (shard) => {
      for (const name of await readdir(`${this.#layout.content}/${shard}`)) {
        if (HEX64.test(shard + name)) this.#present.add(Buffer.from(shard + name, 'hex'));
      }
    });
    const arrived = (await readdir(this.#layout.incoming)).filter((name) => HEX64.test(name));
    let kept = 0;
    await eachOf(arrived, 4, async (hex) => {
      const path = this.#layout.incomingFile(hex);
      if ((await hashFile(path)) === hex && !this.has(Buffer.from(hex, 'hex'))) {
        this.#add(hex, (await stat(path)).size);
        kept++;
      } else {
        await this.#io.remove(path);
      }
    });
    return { kept, dropped: arrived.length - kept };
  }

  /** Where a content's bytes are now, or undefined where the store has it not. */
  path(hex: string): string | undefined {
    const digest = Buffer.from(hex, 'hex');
    if (this.#pending.has(digest)) return this.#layout.incomingFile(hex);
    return this.has(digest) ? this.#layout.contentFile(hex) : undefined;
  }

  /** Every content as 64 hex digits. */
  *names(): Generator<string> {
    for (const digest of this.#present.values()) yield digest.toString('hex');
  }

  /** From now until `endCollection`, what is put or claimed is remembered and not removed. */
  beginCollection(): void {
    this.#touched = new Set();
  }

  endCollection(): void {
    this.#touched = undefined;
  }

  /**
   * Removes contents that nobody uses, except those used since `beginCollection`.
   * @returns number removed, and their bytes
   */
  async removeUnused(unused: string[]): Promise<{ contents: number; bytes: number }> {
    let contents = 0;
    let bytes = 0;
    await eachOf(unused, 8, async (hex) => {
      const size = await this.sizeOf(hex);
      const free = () => !this.#touched?.has(hex) && !this.#writing.has(hex);
      if (!(await this.#take(hex, (path) => this.#io.remove(path), free))) return;
      contents++;
      bytes += size;
    });
    return { contents, bytes };
  }

  /** Moves a damaged content out of the way, so that it counts as not there. */
  async quarantine(hex: string): Promise<void> {
    await this.#io.makeDirectory(this.#layout.quarantine);
    const move = (path: string) => this.#io.rename(path, `${this.#layout.quarantine}/${hex}`);
    await this.#take(hex, move, () => true);
  }

  /**
   * Takes a content out of the books, then off its place by `remove`; `still` is asked at the
   * moment from which nobody can find it any more. False where it was left or not there.
   */
  async #take(
    hex: string,
    remove: (path: string) => Promise<void>,
    still: () => boolean,
  ): Promise<boolean> {
    // A flush may be renaming it this moment: let that end, then the place is certain.
    while (this.#flushing) await this.#durable;
    const path = this.path(hex);
    if (path === undefined || !still()) return false;
    const digest = Buffer.from(hex, 'hex');
    this.#present.delete(digest);
    const wasPending = this.#pending.delete(digest);
    const removing = remove(path);
    this.#removing.set(hex, removing);
    try {
      await removing;
    } catch (error) {
      // ENOENT: someone cleaned by hand; gone is what was wanted. Else it is still there: book it.
      if ((error as NodeJS.ErrnoException).code !== 'ENOENT') {
        this.#present.add(digest);
        if (wasPending) this.#pending.add(digest);
        throw error;
      }
    } finally {
      this.#removing.delete(hex);
    }
    return true;
  }

  /** Bytes of a content on disk; 0 where it is gone. */
  async sizeOf(hex: string): Promise<number> {
    const path = this.path(hex);
    if (path === undefined) return 0;
    try {
      return (await stat(path)).size;
    } catch (error) {
      // It may have been renamed between the two lines above; a second look settles it.
      if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error;
      const again = this.path(hex);
      return again === undefined || again === path ? 0 : (await stat(again)).size;
    }
  }

  /** Stops the timer and makes the rest durable. */
  async close(): Promise<void> {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    while (this.#writing.size > 0) {
      await Promise.allSettled(this.#writing.values());
      await sleep(0);
    }
    await this.makeDurable();
  }
}

/** Waits for all, then throws the first rejection: no write is left running behind an error. */
async function settleAll(promises: Promise<void>[]): Promise<void> {
  const results = await Promise.allSettled(promises);
  for (const result of results) if (result.status === 'rejected') throw result.reason;
}

/** Runs `work` on every item, at most `width` at a time; stops at the first error. */
export async function eachOf<T>(
  items: Iterable<T>,
  width: number,
  work: (item: T) => Promise<void>,
): Promise<void> {
  const iterator = items[Symbol.iterator]();
  let failed = false;
  const lane = async () => {
    for (let next = iterator.next(); !next.done && !failed; next = iterator.next()) {
      try {
        await work(next.value);
      } catch (error) {
        failed = true;
        throw error;
      }
    }
  };
  await settleAll(Array.from({ length: width }, lane));
}
