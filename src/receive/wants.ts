// What readers wait for: left to the stream where it brings it about as soon as a request of its own
// would, else fetched out of order. What does not live here: fetching (out-of-order.ts).
import type { FramePlan } from './frame-plan.ts';
import type { FrameStream } from './frame-stream.ts';

/** Parts of a content that somebody waits for: content, first and last part within it. */
export type Want = [content: number, firstPart: number, lastPart: number];

/** What is asked of the transfer. */
export interface WantOwner {
  plan(): FramePlan | undefined;
  stream(): Pick<FrameStream, 'ahead' | 'idleMs'> | undefined;
  /** Bytes that the stream brings in about the time that a request of its own takes. */
  soonBytes(): number;
  fetch(plan: FramePlan, content: number, frames: number[]): void;
  /** Frames to be fetched that were left to the stream meanwhile are looked at again. */
  fetchRest(): void;
}

/** A stream that has brought nothing for this long is not waited for. */
const STALL_MS = 300;
/** How often it is asked again whether the stream still brings a waited-for frame soon. */
const RECHECK_MS = 250;

/** The wants of one transfer. */
export class Wants {
  readonly #owner: WantOwner;
  /** Wants that have not been seen satisfied, and whether the stream is to bring them. */
  readonly #open = new Map<string, { want: Want; near: boolean }>();
  readonly #signal: AbortSignal;
  #recheck: NodeJS.Timeout | undefined;

  /** @param signal  the transfer's end */
  constructor(owner: WantOwner, signal: AbortSignal) {
    this.#owner = owner;
    this.#signal = signal;
    signal.addEventListener('abort', () => clearInterval(this.#recheck), { once: true });
  }

  add(want: Want): void {
    // The last readers of a mount may still wait while it ends: nothing would stop the timer.
    if (this.#signal.aborted) return;
    this.#open.set(want.join(' '), { want, near: false });
    if (this.#recheck === undefined) {
      // Not in the timer's own turn: after a busy while the bytes that have come meanwhile are read first.
      this.#recheck = setInterval(() => setImmediate(() => this.#check()), RECHECK_MS);
      this.#recheck.unref();
    }
    this.#look(want);
  }

  /** Has what the stream does not bring soon fetched. */
  #look(want: Want): void {
    const plan = this.#owner.plan();
    // Without a plan it is looked at when there is one.
    if (plan === undefined) return;
    const missing = plan.framesOf(...want).filter((frame) => plan.isMissing(frame));
    const far = missing.filter((frame) => !this.isNear(frame));
    this.#open.set(want.join(' '), { want, near: far.length < missing.length });
    if (far.length > 0) this.#owner.fetch(plan, want[0], far);
  }

  /** True where the stream brings the frame about as soon as a request of its own would. */
  isNear(frame: number): boolean {
    const stream = this.#owner.stream();
    return stream !== undefined && stream.idleMs <= STALL_MS && this.isInStream(frame);
  }

  /** True where the frame stands shortly ahead in the stream, though that may have stalled. */
  isInStream(frame: number): boolean {
    const ahead = this.#owner.stream()?.ahead(frame);
    if (ahead === undefined) return false;
    // Both have to bring the frame itself; what differs is what comes before it.
    return ahead.bytes <= Math.max(ahead.soonBytes, this.#owner.soonBytes());
  }

  /** Forgets what has come, and looks again at what was left to a stream that may be slower now. */
  #check(): void {
    const plan = this.#owner.plan();
    if (plan === undefined) return;
    for (const [key, { want, near }] of [...this.#open]) {
      if (plan.framesOf(...want).every((frame) => plan.isDone(frame))) this.#open.delete(key);
      else if (near) this.#look(want);
    }
    this.#owner.fetchRest();
    if (this.#open.size > 0) return;
    clearInterval(this.#recheck);
    this.#recheck = undefined;
  }

  /** Looks at every want again: the plan is another. */
  retry(): void {
    for (const { want } of [...this.#open.values()]) this.#look(want);
  }
}
