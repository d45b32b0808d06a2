// Takes frames in: decodes them on this thread while the thread pool writes the ones before, with a
// bound on what is in flight. What does not live here: where frames come from (transfer.ts,
// out-of-order.ts), and the order of bytes, slots and marks (arrivals.ts).
import { type DecodedPart, FRAME_KIND, type FrameInfo } from '../delta/bundle.ts';
import { checkFrame, decodeFrame } from '../delta/bundle-decode.ts';
import { PATCH_BASE_MAX_BYTES } from '../delta/patch-table.ts';
import { FirstlightError, toFirstlightError } from '../errors/errors.ts';
import type { Logger } from '../log/log.ts';
import { Lanes } from '../store/lanes.ts';
import type { LayerStore } from '../store/layer-store.ts';
import { type Arrivals, WrongContentError } from './arrivals.ts';
import type { FramePlan } from './frame-plan.ts';

/** Raw bytes that may be decoded and not yet written. */
const IN_FLIGHT_BYTES = 8 << 20;
/** Patches decoded at a time: each holds what it stands on, up to PATCH_BASE_MAX_BYTES. */
const PATCHES_AT_ONCE = 2;
/** A frame that came wrong this often is given up. */
const WRONG_MAX = 5;

/** What the intake tells its owner. */
export interface IntakeEvents {
  /** A frame has been stored, or its write has ended without success. */
  changed(): void;
  /** A write failed; nothing more is taken until `retry` has worked. */
  storeFailed(error: unknown): void;
  /** A frame came wrong too often: its missing contents cannot be had. */
  gaveUp(plan: FramePlan, frame: number, error: FirstlightError): void;
  /** A patch came right and does not give what it should: what it stands on is damaged or gone. */
  patchFailed(plan: FramePlan, frame: number, error: FirstlightError): void;
}

/** One transfer's way from compressed frames to the store. */
export class Intake {
  readonly #store: LayerStore;
  readonly #arrivals: Arrivals;
  readonly #log: Logger;
  readonly #events: IntakeEvents;
  readonly #wrong = new Map<string, number>();
  readonly #patches = new Lanes(PATCHES_AT_ONCE);
  #inFlight = 0;
  #writes = new Set<Promise<void>>();
  #roomWaiters: (() => void)[] = [];
  /** Parts whose write failed: the first thing that is tried again. */
  #unwritten: DecodedPart[] | undefined;
  #failure: unknown;

  constructor(store: LayerStore, arrivals: Arrivals, log: Logger, events: IntakeEvents) {
    this.#store = store;
    this.#arrivals = arrivals;
    this.#log = log;
    this.#events = events;
  }

  /** The error of the write that stopped the intake, or undefined. */
  get failure(): unknown {
    return this.#failure;
  }

  /**
   * Takes one frame. A wrong one is logged and counted, and counts as missing afterwards.
   * @returns whether its bytes were right
   */
  take(plan: FramePlan, frame: number, bytes: Buffer): boolean {
    if (plan.isDone(frame) || this.#failure !== undefined) return true;
    const info = plan.frames[frame]!;
    const isPatch = info.kind === FRAME_KIND.patch;
    let parts: DecodedPart[] = [];
    try {
      if (isPatch) checkFrame(info, bytes);
      else parts = decodeFrame(plan.header, info, bytes);
    } catch (error) {
      if (!(error instanceof FirstlightError)) throw error;
      this.#wrongFrame(plan, frame, error);
      return false;
    }
    plan.busy(frame, 1);
    const held = info.rawBytes + (isPatch ? PATCH_BASE_MAX_BYTES / PATCHES_AT_ONCE : 0);
    this.#inFlight += held;
    const work = isPatch ? this.#openPatch(plan, info, bytes) : this.#write(plan, frame, parts);
    const write = work.finally(() => {
      plan.busy(frame, -1);
      this.#inFlight -= held;
      this.#writes.delete(write);
      this.#wake();
      this.#events.changed();
    });
    this.#writes.add(write);
    return true;
  }

  /** Decodes a patch, whose bytes are right, against what the store has, and writes its parts. */
  async #openPatch(plan: FramePlan, info: FrameInfo, bytes: Buffer): Promise<void> {
    let parts: DecodedPart[];
    try {
      parts = await this.#patches.run(async () =>
        decodeFrame(plan.header, info, bytes, await plan.bases?.read(info)),
      );
    } catch (error) {
      this.#events.patchFailed(plan, info.index, toFirstlightError(error));
      return;
    }
    await this.#write(plan, info.index, parts);
  }

  async #write(plan: FramePlan, frame: number, parts: DecodedPart[]): Promise<void> {
    try {
      await this.#store.guard(() => this.#arrivals.store(parts));
    } catch (error) {
      if (error instanceof WrongContentError) return this.#wrongContent(plan, error);
      this.#unwritten ??= parts;
      if (this.#failure !== undefined) return;
      this.#failure = error;
      this.#log.error(
        { err: error, frame },
        'the store cannot be written: reads of what is missing fail until there is room again',
      );
      this.#events.storeFailed(error);
    }
  }

  #wrongFrame(plan: FramePlan, frame: number, error: FirstlightError): void {
    const times = this.timesWrong(plan, frame) + 1;
    this.#wrong.set(wrongKey(plan, frame), times);
    this.#log.warn({ err: error, frame, times }, 'a frame came wrong and is asked for again');
    if (times < WRONG_MAX) return;
    plan.giveUp(frame);
    this.#events.gaveUp(plan, frame, error);
  }

  /** Every frame of the content is in doubt: the digests of one of them are false. */
  #wrongContent(plan: FramePlan, error: WrongContentError): void {
    const parts = plan.header.toc.partCount(error.content);
    for (const frame of plan.framesOf(error.content, 0, parts - 1)) {
      this.#wrongFrame(plan, frame, error);
    }
  }

  /** How often a frame came wrong. */
  timesWrong(plan: FramePlan, frame: number): number {
    return this.#wrong.get(wrongKey(plan, frame)) ?? 0;
  }

  /** Forgets how often frames came wrong. */
  forgive(): void {
    this.#wrong.clear();
  }

  /** Resolves when another frame may be taken. @throws the error that stopped the intake */
  async room(): Promise<void> {
    while (this.#inFlight >= IN_FLIGHT_BYTES && this.#failure === undefined) {
      await new Promise<void>((resolve) => this.#roomWaiters.push(resolve));
    }
    if (this.#failure !== undefined) throw this.#failure;
  }

  #wake(): void {
    const waiters = this.#roomWaiters;
    this.#roomWaiters = [];
    for (const waiter of waiters) waiter();
  }

  /**
   * Tries the write that failed again, and what was left unfinished.
   * @throws its error where it fails again: the intake stays stopped
   */
  async retry(): Promise<void> {
    await this.idle();
    for (;;) {
      const parts = this.#unwritten;
      try {
        if (parts !== undefined) await this.#store.guard(() => this.#arrivals.store(parts));
        this.#unwritten = undefined;
        await this.#store.guard(() => this.#arrivals.finishRest());
        break;
      } catch (error) {
        // The store works; what came wrong counts as missing again and is asked for like the rest.
        if (!(error instanceof WrongContentError)) {
          this.#failure = error;
          throw error;
        }
        this.#unwritten = undefined;
        this.#log.warn({ err: error }, 'a content came wrong and is asked for again');
      }
    }
    this.#failure = undefined;
  }

  /** Resolves when no write is under way. */
  async idle(): Promise<void> {
    while (this.#writes.size > 0) await Promise.allSettled(this.#writes);
  }
}

function wrongKey(plan: FramePlan, frame: number): string {
  return `${plan.etag} ${frame}`;
}
