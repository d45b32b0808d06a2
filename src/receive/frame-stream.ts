// The stream of a transfer: missing frames in the bundle's order, asked for in runs that follow each other on a few
// connections. What does not live here: which of these (stream-lanes.ts), what becomes of the frames, and how far
// ahead to ask (transfer.ts).
//
// Where the connection of the run that comes next has fallen silent, its frames are asked for again, over another. That
// may be as slow to bring them, so each time it is waited for twice as long: what has come of a frame is lost.
//
// A run is asked for only shortly before the one ahead of it has come: what a reader has fetched out of
// order by then is left out of it. One request for all that follows would bring all of that again.
import { FirstlightError } from '../errors/errors.ts';
import type { BodyReader } from './body-reader.ts';
import type { FramePlan } from './frame-plan.ts';
import { awaitSilence, SILENT_MS } from './silence.ts';

/** Frames that are here already are asked around, unless they are fewer bytes than this together. */
const GAP_BYTES = 64 << 10;

/** Asked for at most (or one frame) while the first answer is not nearly taken. */
const EARLY_BYTES = 512 << 10;

/** A run is not made longer than this, or a frame, without need. */
const RUN_BYTES = 512 << 10;

/**
 * Asks for bytes `from` to `to` (exclusive), which come behind whatever was asked for before; `apart`: over a connection
 * that brings nothing else, so that they wait for nothing, and to break them off breaks nothing.
 */
export type AskRun = (
  from: number,
  to: number,
  signal: AbortSignal,
  apart: boolean,
) => Promise<BodyReader | 'gone'>;

/** Consecutive frames of one answer. */
interface Run {
  /** The frame that comes next, and the one after the last. */
  next: number;
  end: number;
  answer: Promise<BodyReader | 'gone'>;
  /** Once its head is in. */
  body: BodyReader | undefined;
  /** It was not asked for by the stream. */
  first: boolean;
  /** Bytes ahead of a frame of this run that count as soon whatever the rate is now. */
  soonBytes: number;
  /** Breaks it off. */
  abort: AbortController;
  /** Its frames have been asked for again: that is done once. */
  isAskedAgain: boolean;
  /** After so many ms of silence. */
  silentMs: number;
}

/** What a run gives: a frame, its end, or news of the bundle. */
type Step = StreamedFrame | 'ended' | 'gone';

/** An answer that brings the first frames: those of a bundle whose header has just been read. */
export interface FirstRun {
  body: BodyReader;
  /** Frame after the last one that it brings. */
  end: number;
}

/** What `next` gives. */
export interface StreamedFrame {
  frame: number;
  /** Compressed bytes that came, and themselves unless the frame was here already. */
  bytes: number;
  data: Buffer | undefined;
}

const GIVEN_UP = new FirstlightError('unreachable', 'the stream was given up');

/** One pass over what is missing. After an error or `destroy` it brings nothing more. */
export class FrameStream {
  readonly plan: FramePlan;
  readonly #ask: AskRun;
  readonly #done: () => void;
  readonly #silentMs: number;
  readonly #abort = new AbortController();
  readonly #runs: Run[] = [];
  /** Frames before this one have been asked for, or were not missing. */
  #askedTo = 0;
  #lastMoveAt = performance.now();

  /**
   * @param ask   on connections that are this stream's alone
   * @param done  called once, when the stream needs its connections no more
   */
  constructor(
    plan: FramePlan,
    ask: AskRun,
    done: () => void,
    first?: FirstRun,
    silentMs = SILENT_MS,
  ) {
    this.plan = plan;
    this.#ask = ask;
    this.#done = once(done);
    this.#silentMs = silentMs;
    if (first === undefined) return;
    const { body, end } = first;
    this.#runs.push({
      ...{ next: 0, end, answer: Promise.resolve(body), body, first: true, soonBytes: 0 },
      abort: new AbortController(),
      // It comes over several connections, and deals with those that break by itself.
      isAskedAgain: true,
      silentMs,
    });
    this.#askedTo = end;
  }

  /** How long nothing has come of what was asked for, in ms. */
  get idleMs(): number {
    const sinceMove = performance.now() - this.#lastMoveAt;
    return Math.min(sinceMove, this.#runs[0]?.body?.idleMs ?? sinceMove);
  }

  /**
   * What comes before a frame in the stream.
   * @returns bytes, and how many of them count as soon; undefined where the frame has not been asked for
   */
  ahead(frame: number): { bytes: number; soonBytes: number } | undefined {
    const { frames } = this.plan;
    let before = 0;
    for (const run of this.#runs) {
      if (frame >= run.next && frame < run.end) {
        const bytes = before + frames[frame]!.offset - frames[run.next]!.offset;
        return { bytes, soonBytes: run.soonBytes };
      }
      before += this.#left(run);
    }
    return undefined;
  }

  /** Asks for more where less than `bytes` (and the frame that comes next) are under way. */
  #fill(bytes: number): void {
    const { frames } = this.plan;
    let underWay = 0;
    let before = 0;
    for (const run of this.#runs) {
      if (run.first) before += this.#left(run);
      else underWay += this.#left(run);
    }
    const head = this.#runs.find(({ next, end }) => next < end);
    // The first answer comes another way: meanwhile this connection gets up to speed, or the line would
    // rest for some round trips when that is in. But what is asked for now comes late: little of it.
    const least =
      before > bytes
        ? Math.min(bytes, EARLY_BYTES)
        : bytes + (head === undefined ? 0 : frames[head.next]!.bytes);
    while (underWay < least) {
      const from = this.plan.nextMissing(this.#askedTo);
      if (from < 0) return;
      // Not a request for every frame that comes: at least a quarter of what is to be under way. And not one for
      // all of it, since several connections may carry it.
      const most = Math.max(Math.min(least - underWay, RUN_BYTES), bytes / 4);
      const end = this.plan.runEnd(from, GAP_BYTES, most);
      const last = frames[end - 1]!;
      const to = last.offset + last.bytes;
      underWay += to - frames[from]!.offset;
      this.#askedTo = end;
      this.#askRun(from, end, to, underWay);
    }
  }

  #askRun(from: number, end: number, to: number, soonBytes: number): void {
    if (this.#runs.length === 0) this.#lastMoveAt = performance.now();
    const run = this.#makeRun(from, end, to, soonBytes);
    run.answer.then(
      (body) => {
        if (body !== 'gone') this.#lastMoveAt = performance.now();
      },
      // Whoever takes this run's frames hears of it.
      () => undefined,
    );
    this.#runs.push(run);
  }

  /** @param before  the run that this one may take the place of */
  #makeRun(from: number, end: number, to: number, soonBytes: number, before?: Run): Run {
    const abort = new AbortController();
    const signal = AbortSignal.any([abort.signal, this.#abort.signal]);
    const { offset } = this.plan.frames[from]!;
    const answer = this.#ask(offset, to, signal, before !== undefined);
    const run: Run = {
      ...{ next: from, end, answer, body: undefined, first: false, soonBytes },
      abort,
      isAskedAgain: false,
      silentMs: before === undefined ? this.#silentMs : before.silentMs * 2,
    };
    answer.then(
      (body) => {
        if (body === 'gone') return;
        run.body = body;
        if (signal.aborted) body.destroy();
      },
      () => undefined,
    );
    return run;
  }

  /** Bytes of a run that have not been taken. */
  #left({ next, end }: Run): number {
    const { frames } = this.plan;
    if (next >= end) return 0;
    return frames[end - 1]!.offset + frames[end - 1]!.bytes - frames[next]!.offset;
  }

  /**
   * The next frame, or undefined at the end.
   * @param aheadBytes  that are to be under way behind it
   * @returns 'gone' where the server no longer has the bundle
   * @throws FirstlightError of the connection or the server
   */
  async next(aheadBytes: number): Promise<StreamedFrame | 'gone' | undefined> {
    try {
      for (;;) {
        this.#fill(aheadBytes);
        const run = this.#runs[0];
        if (run === undefined) {
          this.#done();
          return undefined;
        }
        const step = await this.#stepOrAgain(run);
        if (step === 'gone') {
          this.destroy();
          return 'gone';
        }
        if (typeof step === 'object') return step;
      }
    } catch (error) {
      this.destroy();
      throw error;
    }
  }

  async #step(run: Run): Promise<Step> {
    const body = await run.answer;
    if (body === 'gone') return 'gone';
    if (run.next < run.end) return await this.#take(run, body);
    await body.end();
    // Another may have taken its place meanwhile.
    if (this.#runs[0] === run) this.#runs.shift();
    return 'ended';
  }

  /**
   * What the run that comes next gives; 'ended' also where its connection has fallen silent, and another
   * has begun to bring its frames, which take its place.
   */
  async #stepOrAgain(run: Run): Promise<Step> {
    const step = this.#step(run);
    if (run.isAskedAgain) return await step;
    const silence = awaitSilence(() => this.idleMs, run.silentMs);
    try {
      const first = await Promise.race([step, silence.begun]);
      if (first !== 'silent') return first;
    } finally {
      silence.stop();
    }
    run.isAskedAgain = true;
    const again = this.#askAgain(run);
    const first = await Promise.race([step, again.answered]);
    if (first !== 'again') {
      again.run?.abort.abort(GIVEN_UP);
      return first;
    }
    // Nobody waits for it any more.
    step.catch(() => undefined);
    run.abort.abort(GIVEN_UP);
    run.body?.destroy();
    this.#runs.splice(0, 1, ...(again.run === undefined ? [] : [again.run]));
    this.#lastMoveAt = performance.now();
    return 'ended';
  }

  /**
   * Asks for what is missing of a run, without giving up that one.
   * @returns the new run, none where nothing is missing; `answered` never resolves where it does not come either
   */
  #askAgain(run: Run): { run: Run | undefined; answered: Promise<'again'> } {
    const { plan } = this;
    const from = plan.nextMissing(run.next);
    if (from < 0 || from >= run.end) return { run: undefined, answered: Promise.resolve('again') };
    const last = plan.frames[run.end - 1]!;
    const again = this.#makeRun(from, run.end, last.offset + last.bytes, run.soonBytes, run);
    const { promise, resolve } = Promise.withResolvers<'again'>();
    again.answer.then(
      () => resolve('again'),
      // Then all hangs on the first one, as it did before.
      () => undefined,
    );
    return { run: again, answered: promise };
  }

  async #take(run: Run, body: BodyReader): Promise<StreamedFrame> {
    const frame = run.next;
    const { bytes } = this.plan.frames[frame]!;
    let data: Buffer | undefined;
    if (this.plan.isMissing(frame)) data = await body.take(bytes);
    else await body.skip(bytes);
    run.next = frame + 1;
    this.#lastMoveAt = performance.now();
    return { frame, bytes, data };
  }

  /** Compressed bytes of the frames that come next and are here already, in the answer under way. */
  get uselessBytes(): number {
    const run = this.#runs[0];
    if (run === undefined || run.next >= run.end || this.plan.isMissing(run.next)) return 0;
    const next = this.plan.nextMissing(run.next);
    const to = next < 0 || next >= run.end ? run.end : next;
    const { frames } = this.plan;
    return frames[to - 1]!.offset + frames[to - 1]!.bytes - frames[run.next]!.offset;
  }

  /** Breaks off what is under way; a `next` under way is rejected. */
  destroy(): void {
    this.#done();
    this.#abort.abort(GIVEN_UP);
    for (const { body } of this.#runs) body?.destroy();
  }
}

function once(call: () => void): () => void {
  let called = false;
  return () => {
    if (called) return;
    called = true;
    call();
  };
}
