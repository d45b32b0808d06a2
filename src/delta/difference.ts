// Bytewise differences between a frame's contents and what stands behind it: in a program that was
// compiled again, runs of bytes are the old ones but for addresses here and there, and the differences
// of those repeat. What does not live here: compressing them (frame.ts), and which bytes stand behind a
// frame (patch-plan.ts).
//
// The result has as many bytes as the contents: where a run lies over a run of old bytes, the
// difference of each pair, elsewhere the new byte as it is. A control stream says which is which; each
// entry is
//
//   number         bytes that are differences
//   number         bytes after them that are as they are
//   signed number  the old place of the next differences, from the end of these
import { FirstlightError } from '../errors/errors.ts';
import { VarintReader, VarintWriter } from './varint.ts';

/** Bytes that two places must share to be looked at. */
const SEED_BYTES = 8;
const HASH_BITS = 20;
/** Old places of one hash that are looked at. */
const PLACES_MAX = 24;
/** A run must share this many bytes more than the one before would: a change costs an entry. */
const GAIN_BYTES = 8;
/** Bytes that are compared for each new one, at most, on average: repetitive contents would take for ever. */
const COMPARED_PER_BYTE = 300;

/** Most bytes of the control stream of a frame. */
export const CONTROL_MAX_BYTES = 1 << 20;

/** What {@link difference} makes of new bytes. */
export interface Difference {
  /** As many as the new bytes. */
  data: Uint8Array;
  control: Buffer;
}

function hashAt(bytes: Uint8Array, at: number): number {
  const low = bytes[at]! | (bytes[at + 1]! << 8) | (bytes[at + 2]! << 16) | (bytes[at + 3]! << 24);
  const high =
    bytes[at + 4]! | (bytes[at + 5]! << 8) | (bytes[at + 6]! << 16) | (bytes[at + 7]! << 24);
  return (Math.imul(low, 0x9e3779b1) ^ Math.imul(high, 0x85ebca6b)) >>> (32 - HASH_BITS);
}

/** The places of old bytes by the hash of what stands there. */
class Places {
  readonly #old: Uint8Array;
  readonly #first = new Int32Array(1 << HASH_BITS).fill(-1);
  readonly #next: Int32Array;
  /** Bytes compared so far. */
  compared = 0;
  /** The longest run that `find` has found. */
  place = 0;
  length = 0;

  constructor(old: Uint8Array) {
    this.#old = old;
    this.#next = new Int32Array(old.length);
    for (let at = old.length - SEED_BYTES; at >= 0; at--) {
      const hash = hashAt(old, at);
      this.#next[at] = this.#first[hash]!;
      this.#first[hash] = at;
    }
  }

  /** Finds the longest run of equal bytes that begins at `at` of `bytes`, by `place` and `length`. */
  find(bytes: Uint8Array, at: number): void {
    this.length = 0;
    if (at + SEED_BYTES > bytes.length) return;
    const old = this.#old;
    let place = this.#first[hashAt(bytes, at)]!;
    for (let tries = 0; place >= 0 && tries < PLACES_MAX; tries++, place = this.#next[place]!) {
      // A longer one must have this byte, too.
      if (this.length > 0 && bytes[at + this.length] !== old[place + this.length]) continue;
      const most = Math.min(old.length - place, bytes.length - at);
      let length = 0;
      while (length < most && bytes[at + length] === old[place + length]) length++;
      this.compared += length + 1;
      if (length > this.length) {
        this.length = length;
        this.place = place;
      }
    }
  }
}

/** A run of new bytes over old ones: `shift` is old place less new place. */
interface Run {
  from: number;
  end: number;
  shift: number;
}

/** How far beyond `from` a shift is of use: as long as more than half of the bytes are equal. */
function reach(
  old: Uint8Array,
  bytes: Uint8Array,
  from: number,
  to: number,
  shift: number,
  step: 1 | -1,
): number {
  let equal = 0;
  let best = 0;
  let length = 0;
  for (let at = step === 1 ? from : from - 1; at !== (step === 1 ? to : to - 1); at += step) {
    const place = at + shift;
    if (place < 0 || place >= old.length) break;
    if (old[place] === bytes[at]) equal++;
    const count = Math.abs(at - from) + (step === 1 ? 1 : 0);
    if (2 * equal - count > best) {
      best = 2 * equal - count;
      length = count;
    }
  }
  return length;
}

/** Where between `from` and `to`, which two runs both reach over, the first should give way to the second. */
function border(
  old: Uint8Array,
  bytes: Uint8Array,
  from: number,
  to: number,
  first: number,
  second: number,
): number {
  let score = 0;
  let best = 0;
  let at = from;
  for (let i = from; i < to; i++) {
    if (bytes[i] === old[i + first]) score++;
    if (bytes[i] === old[i + second]) score--;
    if (score > best) {
      best = score;
      at = i + 1;
    }
  }
  return at;
}

/** The runs of new bytes that lie over old ones; undefined where finding them takes too long. */
function findRuns(old: Uint8Array, bytes: Uint8Array): Run[] | undefined {
  const places = new Places(old);
  const limit = COMPARED_PER_BYTE * bytes.length;
  const runs: Run[] = [];
  // The run under way: it begins at `from`, and is of use wherever nothing better has been found.
  let run: Run = { from: 0, end: 0, shift: 0 };
  for (let at = 0; at < bytes.length; ) {
    if (places.compared > limit) return undefined;
    places.find(bytes, at);
    const { length, place } = places;
    const shift = place - at;
    if (length > 0 && shift === run.shift) {
      at += length;
      continue;
    }
    let kept = 0;
    for (let i = at; i < at + length; i++) if (bytes[i] === old[i + run.shift]) kept++;
    places.compared += length;
    if (length <= kept + GAIN_BYTES) {
      at++;
      continue;
    }
    let end = run.from + reach(old, bytes, run.from, at, run.shift, 1);
    let from = at - reach(old, bytes, at, run.from, shift, -1);
    if (from < end) from = end = border(old, bytes, from, end, run.shift, shift);
    runs.push({ ...run, end });
    run = { from, end: from, shift };
    at += length;
  }
  runs.push({ ...run, end: run.from + reach(old, bytes, run.from, bytes.length, run.shift, 1) });
  return runs;
}

/**
 * The difference of `bytes` from `old`, or undefined where it would take too long to find. The same
 * bytes give the same difference.
 */
export function difference(old: Uint8Array, bytes: Uint8Array): Difference | undefined {
  const runs = findRuns(old, bytes);
  if (runs === undefined) return undefined;
  const data = Uint8Array.from(bytes);
  const control = new VarintWriter();
  let place = 0;
  for (const [i, { from, end, shift }] of runs.entries()) {
    const next = runs[i + 1];
    for (let at = from; at < end; at++) data[at] = bytes[at]! - old[at + shift]!;
    control.unsigned(end - from);
    control.unsigned((next?.from ?? bytes.length) - end);
    place = end + shift;
    control.signed(next === undefined ? 0 : next.from + next.shift - place);
  }
  return { data, control: control.done() };
}

/**
 * Turns what {@link difference} made back into the new bytes, in place.
 * @throws 'corrupt' naming the field where the control stream leaves the data or the old bytes
 */
export function restore(
  old: Uint8Array,
  data: Uint8Array,
  control: Uint8Array,
  field: string,
): void {
  const reader = new VarintReader(control, `${field}: differences`);
  let at = 0;
  let place = 0;
  while (reader.left > 0) {
    const length = reader.atMost(data.length - at, 'bytes of a run');
    if (length > 0 && (place < 0 || place + length > old.length))
      throw new FirstlightError(
        'corrupt',
        `${field}: differences: ${length} bytes at ${place}, of ${old.length}`,
      );
    // Uint8Array wraps: the sum of two bytes is taken modulo 256.
    for (let i = 0; i < length; i++) data[at + i]! += old[place + i]!;
    at += length;
    at += reader.atMost(data.length - at, 'bytes after a run');
    place += length + reader.signed();
  }
  if (at !== data.length)
    throw new FirstlightError(
      'corrupt',
      `${field}: differences end ${data.length - at} bytes early`,
    );
}
