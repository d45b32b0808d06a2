// The stream of a transfer: missing frames in the bundle's order, asked for in runs that follow each other on a few
// connections. What does not live here: which of these (stream-lanes.ts), what becomes of the frames, and how far
// ahead to ask (transfer.ts).
//
// A run is asked for only shortly before the one ahead of it has come: what a reader has fetched out of
// order by then is left out of it. One request for all that follows would bring all of that again.
import { FirstlightError } from '../errors/errors.ts';
import type { BodyReader } from './body-reader.ts';
import type { FramePlan } from './frame-plan.ts';

/** Frames that are here already are asked around, unless they are fewer bytes than this together. */
const GAP_BYTES = 64 << 10;

/** Asked for at most (or one frame) while the first answer is not nearly taken. */
const EARLY_BYTES = 512 << 10;

/** A run is not made longer than this, or a frame, without need. */
const RUN_BYTES = 512 << 10;

/** Asks for bytes `from` to `to` (exclusive), which come behind whatever was asked for before. */
export type AskRun = (
  from: number,
  to: number,
  signal: AbortSignal,
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
}

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

/** One pass over what is missing. After an error or `destroy` it brings nothing more. */
export class FrameStream {
  readonly plan: FramePlan;
  readonly #ask: AskRun;
  readonly #done: () => void;
  readonly #abort = new AbortController();
  readonly #runs: Run[] = [];
  /** Frames before this one have been asked for, or were not missing. */
  #askedTo = 0;
  #lastMoveAt = performance.now();

  /**
   * @param ask   on connections that are this stream's alone
   * @param done  called once, when the stream needs its connections no more
   */
  constructor(plan: FramePlan, ask: AskRun, done: () => void, first?: FirstRun) {
    this.plan = plan;
    this.#ask = ask;
    this.#done = once(done);
    if (first === undefined) return;
    const { body, end } = first;
    const answer = Promise.resolve(body);
    this.#runs.push({ next: 0, end, answer, body, first: true, soonBytes: 0 });
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
    const answer = this.#ask(this.plan.frames[from]!.offset, to, this.#abort.signal);
    const run: Run = { next: from, end, answer, body: undefined, first: false, soonBytes };
    answer.then(
      (body) => {
        if (body === 'gone') return;
        run.body = body;
        this.#lastMoveAt = performance.now();
        if (this.#abort.signal.aborted) body.destroy();
      },
      // Whoever takes this run's frames hears of it.
      () => undefined,
    );
    this.#runs.push(run);
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
        const body = await run.answer;
        if (body === 'gone') {
          this.destroy();
          return 'gone';
        }
        if (run.next < run.end) return await this.#take(run, body);
        await body.end();
        this.#runs.shift();
      }
    } catch (error) {
      this.destroy();
      throw error;
    }
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
    const reason = new FirstlightError('unreachable', 'the stream was given up');
    this.#abort.abort(reason);
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
