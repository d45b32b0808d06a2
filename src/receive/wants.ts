// What readers wait for: left to the stream where it brings it about as soon as a request of its own
// would, else fetched out of order. What does not live here: fetching (out-of-order.ts).
import type { BodyReader } from './body-reader.ts';
import type { FramePlan } from './frame-plan.ts';

/** A stream of consecutive frames: the next one, and the one after its last. */
export interface FrameStream {
  body: BodyReader;
  frame: number;
  end: number;
}

/** Parts of a content that somebody waits for: content, first and last part within it. */
export type Want = [content: number, firstPart: number, lastPart: number];

/** What is asked of the transfer. */
export interface WantOwner {
  plan(): FramePlan | undefined;
  stream(): FrameStream | undefined;
  /** Of the stream, and of the way to the server; undefined while not measured. */
  bytesPerMs(): number | undefined;
  roundTripMs(): number | undefined;
  fetch(plan: FramePlan, content: number, frames: number[]): void;
}

/** While nothing has been measured, the stream is trusted to bring what is at most this far ahead. */
const NEAR_BYTES = 1 << 20;
/** A stream that has brought nothing for this long is not waited for. */
const STALL_MS = 300;
/** How often it is asked again whether the stream still brings a waited-for frame soon. */
const RECHECK_MS = 250;

/** The wants of one transfer. */
export class Wants {
  readonly #owner: WantOwner;
  /** Wants that have not been seen satisfied, and whether the stream is to bring them. */
  readonly #open = new Map<string, { want: Want; near: boolean }>();
  #recheck: NodeJS.Timeout | undefined;

  /** @param signal  the transfer's end */
  constructor(owner: WantOwner, signal: AbortSignal) {
    this.#owner = owner;
    signal.addEventListener('abort', () => clearInterval(this.#recheck), { once: true });
  }

  add(want: Want): void {
    const plan = this.#owner.plan();
    const open = { want, near: false };
    this.#open.set(want.join(' '), open);
    this.#recheck ??= setInterval(() => this.#check(), RECHECK_MS);
    this.#recheck.unref();
    // Without a plan it is looked at when there is one.
    if (plan === undefined) return;
    const missing = plan.framesOf(...want).filter((frame) => plan.isMissing(frame));
    const far = missing.filter((frame) => !this.#isNear(plan, frame));
    open.near = far.length < missing.length;
    if (far.length > 0) this.#owner.fetch(plan, want[0], far);
  }

  /** True where the stream brings the frame about as soon as a request of its own would. */
  #isNear(plan: FramePlan, frame: number): boolean {
    const stream = this.#owner.stream();
    if (stream === undefined || frame < stream.frame || frame >= stream.end) return false;
    if (stream.body.idleMs > STALL_MS) return false;
    const ahead = plan.frames[frame]!.offset - plan.frames[stream.frame]!.offset;
    const bytesPerMs = this.#owner.bytesPerMs();
    const roundTripMs = this.#owner.roundTripMs();
    if (bytesPerMs === undefined || roundTripMs === undefined) return ahead <= NEAR_BYTES;
    // Both have to bring the frame itself; what differs is what comes before it.
    return ahead / bytesPerMs <= roundTripMs;
  }

  /** Forgets what has come, and looks again at what was left to a stream that may be slower now. */
  #check(): void {
    const plan = this.#owner.plan();
    if (plan === undefined) return;
    for (const [key, { want, near }] of [...this.#open]) {
      if (plan.framesOf(...want).every((frame) => plan.isDone(frame))) this.#open.delete(key);
      else if (near) this.add(want);
    }
    if (this.#open.size > 0) return;
    clearInterval(this.#recheck);
    this.#recheck = undefined;
  }

  /** Looks at every want again: the plan is another. */
  retry(): void {
    for (const { want } of [...this.#open.values()]) this.add(want);
  }
}
