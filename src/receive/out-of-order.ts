// Frames that a reader waits for now, fetched by Range beside the stream. What does not live here:
// the stream itself (transfer.ts), and whether it would bring the frame soon enough (wants.ts).
import { FirstlightError, toFirstlightError } from '../errors/errors.ts';
import type { Logger } from '../log/log.ts';
import { backoffMs } from './backoff.ts';
import type { DeltaClient } from './delta-client.ts';
import type { FramePlan } from './frame-plan.ts';
import type { Intake } from './intake.ts';
import { SureRange } from './sure-range.ts';

/** Requests at a time. */
const AT_ONCE = 4;
/** Compressed bytes of neighbouring wanted frames that go into one request. */
const JOIN_BYTES = 1 << 20;
/** Frames that are fetched ahead of a reader who goes through a large file. */
const AHEAD_MAX = 8;

/** What the fetcher needs of its transfer. */
export interface FetchOwner {
  readonly client: DeltaClient;
  readonly intake: Intake;
  /** The present plan, or undefined while there is none. */
  plan(): FramePlan | undefined;
  /** True where the stream brings a frame about as soon: to fetch it would bring it twice. */
  isNear(frame: number): boolean;
  /** The same of one that may have stalled: worth a second request for what is waited for, no more. */
  isInStream(frame: number): boolean;
  /** The bundle is gone: a new one is needed. */
  bundleGone(plan: FramePlan): void;
  received(bytes: number): void;
  requested(): void;
  failed(error: FirstlightError): void;
}

/** Fetches wanted frames, those wanted last first. */
export class OutOfOrder {
  readonly #owner: FetchOwner;
  readonly #log: Logger;
  readonly #signal: AbortSignal;
  /** Frames to fetch; the last one is next. */
  #stack: number[] = [];
  #running = 0;
  #failures = 0;
  #retryTimer: NodeJS.Timeout | undefined;
  /** For contents of several parts: the frame wanted last, and how many to fetch beyond the next. */
  readonly #runs = new Map<number, { frame: number; ahead: number }>();

  constructor(owner: FetchOwner, log: Logger, signal: AbortSignal) {
    this.#owner = owner;
    this.#log = log;
    this.#signal = signal;
    signal.addEventListener('abort', () => clearTimeout(this.#retryTimer), { once: true });
  }

  /** Wants frames (ascending) of a content; those that are not missing are left out. */
  want(plan: FramePlan, content: number, frames: number[]): void {
    const all = [...frames, ...this.#ahead(plan, content, frames)];
    const fresh = new Set(all.filter((frame) => plan.isMissing(frame)));
    if (fresh.size === 0) return;
    this.#stack = this.#stack.filter((frame) => !fresh.has(frame));
    this.#stack.push(...[...fresh].sort((a, b) => b - a));
    this.#start();
  }

  /** Frames beyond `frames` that a reader who goes through the content will want: 1, 2, 4, ... */
  #ahead(plan: FramePlan, content: number, frames: number[]): number[] {
    const { toc } = plan.header;
    const parts = toc.partCount(content);
    const last = frames.at(-1);
    if (parts === 1 || last === undefined) return [];
    const run = this.#runs.get(content);
    const goesOn =
      run !== undefined && frames[0]! > run.frame && frames[0]! <= run.frame + run.ahead + 1;
    const ahead = goesOn ? Math.min(AHEAD_MAX, Math.max(1, run.ahead * 2)) : 0;
    this.#runs.set(content, { frame: last, ahead });
    if (ahead === 0) return [];
    return plan
      .framesOf(content, 0, parts - 1)
      .filter((frame) => frame > last && !this.#owner.isInStream(frame))
      .slice(0, ahead);
  }

  #start(): void {
    if (this.#retryTimer !== undefined || this.#signal.aborted) return;
    while (this.#running < AT_ONCE) {
      const plan = this.#owner.plan();
      if (plan === undefined || this.#owner.intake.failure !== undefined) return;
      const frames = this.#next(plan);
      if (frames.length === 0) return;
      this.#running++;
      for (const frame of frames) plan.busy(frame, 1);
      this.#fetch(plan, frames).finally(() => {
        this.#running--;
        this.#start();
      });
    }
  }

  /** Takes the newest wanted frame and wanted neighbours after it off the stack. */
  #next(plan: FramePlan): number[] {
    this.#stack = this.#stack.filter((frame) => plan.isMissing(frame));
    // The stream may have asked for some since they were wanted. They stay, should it stall.
    const fetched = this.#stack.filter((frame) => !this.#owner.isNear(frame));
    const first = fetched.at(-1);
    if (first === undefined) return [];
    const frames = [first];
    let bytes = plan.frames[first]!.bytes;
    const wanted = new Set(fetched);
    for (let frame = first + 1; wanted.has(frame); frame++) {
      bytes += plan.frames[frame]!.bytes;
      if (bytes > JOIN_BYTES) break;
      frames.push(frame);
    }
    this.#stack = this.#stack.filter((frame) => !frames.includes(frame));
    return frames;
  }

  async #fetch(plan: FramePlan, frames: number[]): Promise<void> {
    const first = plan.frames[frames[0]!]!;
    const last = plan.frames[frames.at(-1)!]!;
    // Frames count as busy until their bytes are with the intake, which counts them on its own.
    let released = 0;
    const release = () => plan.busy(frames[released++]!, -1);
    try {
      this.#owner.requested();
      const { client, intake } = this.#owner;
      const range = new SureRange(
        (from, to, signal) => client.range(plan.bundlePath, plan.etag, from, to, signal),
        first.offset,
        last.offset + last.bytes,
        client.silentMs,
        this.#signal,
      );
      try {
        for (const frame of frames) {
          const bytes = await range.take(plan.frames[frame]!.bytes);
          if (bytes === 'gone') {
            this.#owner.bundleGone(plan);
            return;
          }
          this.#owner.received(bytes.length);
          if (!intake.take(plan, frame, bytes)) {
            throw new FirstlightError('corrupt', `frame ${frame} came wrong`);
          }
          release();
        }
        await range.end();
        this.#failures = 0;
      } catch (error) {
        range.destroy();
        throw error;
      }
    } catch (error) {
      if (this.#signal.aborted) return;
      const failure = toFirstlightError(error);
      this.#log.warn({ err: failure, frames }, 'frames wanted out of order did not come');
      this.#owner.failed(failure);
      this.#stack.push(...frames.slice(released).reverse());
      this.#pause();
    } finally {
      while (released < frames.length) release();
    }
  }

  #pause(): void {
    this.#failures++;
    if (this.#retryTimer !== undefined) return;
    this.#retryTimer = setTimeout(() => {
      this.#retryTimer = undefined;
      this.#start();
    }, backoffMs(this.#failures));
  }

  /** Goes on with what was wanted: the plan is new, the store can be written again, the stream has stalled. */
  resume(): void {
    this.#start();
  }

  /** Forgets what was wanted by frame number: the numbers of a new plan are others. */
  reset(): void {
    this.#stack = [];
    this.#runs.clear();
  }
}
