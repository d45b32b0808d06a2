// What of an image's contents is there, in JavaScript: the counterpart of native's table
// (native/content_table.h), for readers that live on this thread. Every mark goes to both, in the
// same call (template.ts). What does not live here: where the bytes are (store/), and fetching.
import { constants } from 'node:os';
import type { Toc } from '../delta/toc.ts';
import { CONTENT_STATE, type NativeTemplate } from '../native/index.ts';

/** Why a wait ended without bytes. */
export class ContentError extends Error {
  /** Positive errno for whoever reads. */
  readonly errno: number;
  /** True where nothing came within the bound. */
  readonly timedOut: boolean;

  constructor(errno: number, timedOut = false) {
    super(`the content cannot be read (errno ${errno})`);
    this.errno = errno;
    this.timedOut = timedOut;
  }
}

/** Parts of one content that a reader needs; numbers within the content. */
export interface Needed {
  content: number;
  firstPart: number;
  lastPart: number;
}

interface Waiter extends Needed {
  settle(error: ContentError | undefined): void;
}

/** States of all contents of one template. One byte a content and a bit a part. */
export class ContentStates implements NativeTemplate {
  readonly #toc: Toc;
  readonly #states: Uint8Array;
  readonly #parts: Uint8Array;
  readonly #failures = new Map<number, number>();
  readonly #waiters = new Map<number, Set<Waiter>>();
  #waiting = 0;
  #epoch = 0;
  #ready = 0;

  constructor(toc: Toc) {
    this.#toc = toc;
    this.#states = new Uint8Array(toc.contents);
    this.#parts = new Uint8Array(Math.ceil(toc.parts / 8));
  }

  get rows(): number {
    return this.#toc.rows;
  }
  get contents(): number {
    return this.#toc.contents;
  }
  get parts(): number {
    return this.#toc.parts;
  }

  /**
   * Changes whenever a complete content is lost, a failure is cleared, or what had arrived of a content is
   * forgotten: a file that was opened before may not be the one that is filled since.
   */
  get epoch(): number {
    return this.#epoch;
  }

  /** Makes another table, whatever it holds, the same as this one. */
  replay(other: Pick<NativeTemplate, 'forget' | 'markReady' | 'markParts' | 'markFailed'>): void {
    const ready: number[] = [];
    const others: number[] = [];
    const failed = new Map<number, number[]>();
    for (const [content, state] of this.#states.entries()) {
      (state === CONTENT_STATE.RoLayer ? ready : others).push(content);
      if (state !== CONTENT_STATE.Failed) continue;
      const errno = this.failure(content);
      failed.set(errno, [...(failed.get(errno) ?? []), content]);
    }
    const parts: number[] = [];
    for (let part = 0; part < this.#toc.parts; part++) {
      // Those of a content that is whole have no file of their own any more.
      if (!this.#hasPart(part)) continue;
      if (this.state(this.#toc.contentOfPart(part)) !== CONTENT_STATE.RoLayer) parts.push(part);
    }
    // It may have been told by somebody who had more than is there now.
    if (others.length > 0) other.forget(Uint32Array.from(others));
    if (parts.length > 0) other.markParts(Uint32Array.from(parts));
    if (ready.length > 0) other.markReady(Uint32Array.from(ready));
    for (const [errno, contents] of failed) other.markFailed(Uint32Array.from(contents), errno);
  }

  /** True where every content can be read. */
  get complete(): boolean {
    return this.#ready === this.#states.length;
  }

  /** CONTENT_STATE of one content. */
  state(content: number): number {
    return this.#states[content] ?? CONTENT_STATE.Empty;
  }

  /** Errno of a failed content (EIO where the failure has been cleared meanwhile). */
  failure(content: number): number {
    return this.#failures.get(content) ?? constants.errno.EIO;
  }

  /** True where all the parts can be read. */
  readable({ content, firstPart, lastPart }: Needed): boolean {
    const state = this.#states[content];
    if (state === CONTENT_STATE.RoLayer) return true;
    if (state !== CONTENT_STATE.Partial) return false;
    const base = this.#toc.firstPart(content);
    for (let part = base + firstPart; part <= base + lastPart; part++) {
      if (!this.#hasPart(part)) return false;
    }
    return true;
  }

  #hasPart(part: number): boolean {
    return ((this.#parts[part >> 3]! >> (part & 7)) & 1) === 1;
  }

  /** Number of readers that wait now. */
  waiting(): number {
    return this.#waiting;
  }

  /**
   * Resolves when the parts can be read. Those that are readable already take no turn of the loop:
   * ask `readable` first.
   * @param timeoutMs  0 = no bound
   * @throws ContentError with the errno of a content that has failed or fails, or EIO after the bound or
   * when `signal` is aborted
   */
  wait(needed: Needed, timeoutMs: number, signal: AbortSignal): Promise<void> {
    return new Promise((resolve, reject) => {
      const { content } = needed;
      if (this.readable(needed)) return resolve();
      if (this.state(content) === CONTENT_STATE.Failed) {
        return reject(new ContentError(this.failure(content)));
      }
      if (signal.aborted) return reject(new ContentError(constants.errno.EIO));
      const settle = (error: ContentError | undefined) => {
        this.#remove(waiter);
        clearTimeout(timer);
        signal.removeEventListener('abort', onAbort);
        if (error === undefined) resolve();
        else reject(error);
      };
      const waiter: Waiter = { ...needed, settle };
      const onAbort = () => settle(new ContentError(constants.errno.EIO));
      const onTimeout = () => settle(new ContentError(constants.errno.EIO, true));
      const timer = timeoutMs > 0 ? setTimeout(onTimeout, timeoutMs) : undefined;
      signal.addEventListener('abort', onAbort, { once: true });
      this.#add(waiter);
    });
  }

  #add(waiter: Waiter): void {
    const waiters = this.#waiters.get(waiter.content);
    if (waiters === undefined) this.#waiters.set(waiter.content, new Set([waiter]));
    else waiters.add(waiter);
    this.#waiting++;
  }

  #remove(waiter: Waiter): void {
    const waiters = this.#waiters.get(waiter.content);
    if (waiters?.delete(waiter) !== true) return;
    this.#waiting--;
    if (waiters.size === 0) this.#waiters.delete(waiter.content);
  }

  /** Lets those go on who have what they need; all of them, with the errno, where there is one. */
  #wake(content: number, errno?: number): void {
    for (const waiter of [...(this.#waiters.get(content) ?? [])]) {
      if (errno !== undefined) waiter.settle(new ContentError(errno));
      else if (this.readable(waiter)) waiter.settle(undefined);
    }
  }

  markReady(contents: Uint32Array): void {
    for (const content of contents) {
      if (this.#states[content] !== CONTENT_STATE.RoLayer) this.#ready++;
      this.#states[content] = CONTENT_STATE.RoLayer;
      this.#failures.delete(content);
      this.#wake(content);
    }
  }

  markParts(parts: Uint32Array): void {
    const touched = new Set<number>();
    for (const part of parts) {
      const byte = part >> 3;
      this.#parts[byte] = this.#parts[byte]! | (1 << (part & 7));
      touched.add(this.#toc.contentOfPart(part));
    }
    for (const content of touched) {
      if (this.#states[content] === CONTENT_STATE.Empty) {
        this.#states[content] = CONTENT_STATE.Partial;
      }
      this.#wake(content);
    }
  }

  markFailed(contents: Uint32Array, errno: number): void {
    let lost = false;
    for (const content of contents) {
      if (this.#states[content] === CONTENT_STATE.RoLayer) {
        lost = true;
        this.#ready--;
        this.#forgetParts(content);
      }
      this.#states[content] = CONTENT_STATE.Failed;
      this.#failures.set(content, errno);
      this.#wake(content, errno);
    }
    if (lost) this.#epoch++;
  }

  clearFailed(contents: Uint32Array): void {
    for (const content of contents) {
      if (this.#states[content] !== CONTENT_STATE.Failed) continue;
      this.#failures.delete(content);
      this.#states[content] = this.#hasAnyPart(content)
        ? CONTENT_STATE.Partial
        : CONTENT_STATE.Empty;
    }
    this.#epoch++;
  }

  forget(contents: Uint32Array): void {
    let changed = false;
    for (const content of contents) {
      const before = this.#states[content];
      if (before === CONTENT_STATE.Empty) continue;
      changed = true;
      if (before === CONTENT_STATE.RoLayer) this.#ready--;
      this.#states[content] = CONTENT_STATE.Empty;
      this.#failures.delete(content);
      this.#forgetParts(content);
    }
    if (changed) this.#epoch++;
  }

  /** They were those of the file that is gone, and would be read as holes of the next one. */
  #forgetParts(content: number): void {
    const first = this.#toc.firstPart(content);
    for (let part = first; part < first + this.#toc.partCount(content); part++) {
      this.#parts[part >> 3] = this.#parts[part >> 3]! & ~(1 << (part & 7));
    }
  }

  #hasAnyPart(content: number): boolean {
    const first = this.#toc.firstPart(content);
    for (let part = first; part < first + this.#toc.partCount(content); part++) {
      if (this.#hasPart(part)) return true;
    }
    return false;
  }

  /** Nothing is held outside of this object. */
  close(): void {}
}
