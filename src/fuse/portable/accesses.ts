// First accesses of a portable mount, for traces: what native/access_trace does, seen from JavaScript.
// What does not live here: what becomes of them (tree/recorder.ts).
//
// An open does not wait here, the reads after it do; of a file of one part the wait belongs to its
// open all the same, so such an open is written down when its first read is over, or at its close.
import type { Access, Accesses } from '../../tree/session.ts';

/** Accesses between two takes; beyond them they are counted as lost. */
const ROOM = 65_536;
/** Reads of large files are told by blocks of this many bytes. */
const BLOCK_BYTES = 64 << 10;

export class AccessLog {
  #on = false;
  #startMs = 0;
  #taken: Access[] = [];
  #lost = 0;
  readonly #opened = new Set<number>();
  readonly #blocks = new Map<number, Set<number>>();

  /** Records from now on with no memory of what was seen before; or stops. */
  setTracing(on: boolean): void {
    this.#on = on;
    if (!on) return;
    this.#startMs = performance.now();
    this.#taken = [];
    this.#lost = 0;
    this.#opened.clear();
    this.#blocks.clear();
  }

  take(): Accesses {
    const taken = { accesses: this.#taken, lost: this.#lost };
    this.#taken = [];
    this.#lost = 0;
    return taken;
  }

  #note(access: Omit<Access, 'atNs' | 'waitNs'>, atMs: number, waitMs: number): void {
    if (this.#taken.length >= ROOM) {
      this.#lost++;
      return;
    }
    const atNs = Math.max(0, Math.round((atMs - this.#startMs) * 1e6));
    this.#taken.push({ ...access, atNs, waitNs: Math.round(waitMs * 1e6) });
  }

  /** A file was opened. @param readsSeen  it has several parts, and its reads are told */
  opened(row: number, readsSeen: boolean, atMs: number, waitMs: number): void {
    if (!this.#on || this.#opened.has(row)) return;
    this.#opened.add(row);
    this.#note({ kind: 'open', row, offsetBytes: 0, lengthBytes: 0, readsSeen }, atMs, waitMs);
  }

  /** Bytes of a file of several parts were read; noted where a block of them had not been. */
  read(row: number, offsetBytes: number, lengthBytes: number, atMs: number, waitMs: number): void {
    if (!this.#on || lengthBytes === 0) return;
    let blocks = this.#blocks.get(row);
    if (blocks === undefined) {
      blocks = new Set();
      this.#blocks.set(row, blocks);
    }
    const before = blocks.size;
    const last = Math.floor((offsetBytes + lengthBytes - 1) / BLOCK_BYTES);
    for (let block = Math.floor(offsetBytes / BLOCK_BYTES); block <= last; block++) {
      blocks.add(block);
    }
    if (blocks.size === before) return;
    this.#note({ kind: 'read', row, offsetBytes, lengthBytes, readsSeen: true }, atMs, waitMs);
  }
}
