// The transfer of one image: a stream of frames from the first missing one on, frames out of order
// for readers that wait, retries, and the end. Several mounts share it. What does not live here:
// opening (receiver.ts), HTTP (delta-client.ts), asking anew (replan.ts), decoding and storing (intake.ts, arrivals.ts),
// what readers are told meanwhile (denials.ts).
import { setTimeout as sleep } from 'node:timers/promises';
import type { BundleHeader } from '../delta/bundle.ts';
import { FirstlightError, toFirstlightError } from '../errors/errors.ts';
import type { Logger } from '../log/log.ts';
import type { StoredImage } from '../store/image.ts';
import type { LayerStore } from '../store/layer-store.ts';
import type { Template } from '../tree/template.ts';
import type { Arrivals } from './arrivals.ts';
import { type BackoffBounds, backoffMs, DEFAULT_BACKOFF } from './backoff.ts';
import type { DeltaAnswer, DeltaClient, StreamLane } from './delta-client.ts';
import { Denials } from './denials.ts';
import { FramePlan } from './frame-plan.ts';
import { type FirstRun, FrameStream } from './frame-stream.ts';
import { findInBases } from './header.ts';
import { Intake } from './intake.ts';
import { OutOfOrder } from './out-of-order.ts';
import { Pace } from './pace.ts';
import { hasPatches, PatchBases } from './patch-bases.ts';
import type { Progress } from './progress.ts';
import { askAnew } from './replan.ts';
import { Wants } from './wants.ts';
import { isRefusal } from './worker-token.ts';

/** What a transfer is made of. */
export interface TransferParts {
  store: LayerStore;
  image: StoredImage;
  template: Template;
  arrivals: Arrivals;
  client: DeltaClient;
  log: Logger;
  progress: Progress;
  /** Aborted when the transfer is to stop; requests made before it began hang on it too. */
  abort: AbortController;
  backoff?: BackoffBounds;
}

/** Frames of a stream came wrong: the one that has done so most often, so many times. */
class WrongFramesError extends FirstlightError {
  readonly times: number;

  constructor(times: number) {
    super('corrupt', 'frames came wrong');
    this.times = times;
  }
}

/** One image on its way. Starts by `start`, ends by itself or by `stop`. */
export class Transfer {
  readonly #parts: TransferParts;
  readonly #intake: Intake;
  readonly #fetcher: OutOfOrder;
  readonly #wants: Wants;
  readonly #pace: Pace;
  readonly #denials: Denials;
  readonly #signal: AbortSignal;
  readonly progress: Progress;
  #complete = Promise.withResolvers<void>();
  #plan: FramePlan | undefined;
  /** What the plan's patches stand on, held from collections. */
  #bases: PatchBases | undefined;
  #stream: FrameStream | undefined;
  #running: Promise<void> = Promise.resolve();
  /** Asked for without bases, because a base lacked what it should have had. */
  #withoutBases = false;
  /** Asked for without patches, because what one stood on was damaged or gone. */
  #withoutPatches = false;
  #wakeUp: (() => void) | undefined;
  /** Ends the pause before the next attempt. */
  #hurry: () => void = () => undefined;
  /** Frames of streams that came and were right. */
  #moved = 0;

  constructor(parts: TransferParts) {
    this.#parts = parts;
    this.#signal = parts.abort.signal;
    this.progress = parts.progress;
    const { store, arrivals, template, log, client } = parts;
    this.#denials = new Denials(arrivals, template, log);
    this.#pace = new Pace(() => client.roundTripMs);
    this.#intake = new Intake(store, arrivals, log, {
      changed: () => this.#changed(),
      storeFailed: (error) => this.#denials.storeFailed(error),
      gaveUp: (plan, frame, error) => {
        this.#denials.gaveUp(plan, frame, error);
        this.#changed();
      },
      patchFailed: (plan, frame, error) => this.#patchFailed(plan, frame, error),
    });
    this.#fetcher = new OutOfOrder(
      {
        client,
        intake: this.#intake,
        plan: () => this.#plan,
        isNear: (frame) => this.#wants.isNear(frame),
        isInStream: (frame) => this.#wants.isInStream(frame),
        bundleGone: (plan) => this.#bundleGone(plan),
        received: (bytes) => this.#received(bytes),
        requested: () => this.progress.outOfOrder++,
        failed: (error) => this.#attemptFailed(error),
      },
      log,
      this.#signal,
    );
    this.#wants = new Wants(
      {
        plan: () => this.#plan,
        stream: () => this.#stream,
        soonBytes: () => this.#pace.soonBytes,
        fetch: (plan, content, frames) => this.#fetcher.want(plan, content, frames),
        fetchRest: () => this.#fetcher.resume(),
      },
      this.#signal,
    );
    // Whoever waits for the end gets the error; that nobody does is no error.
    this.#complete.promise.catch(() => undefined);
  }

  /** Resolves when every content is durable; rejects when some cannot be had, or by `stop`. */
  get complete(): Promise<void> {
    return this.#complete.promise;
  }

  /**
   * Begins.
   * @param header  what is to be fetched, or undefined to ask the server first
   * @param answer  the rest of the answer that brought the header
   */
  start(
    header: BundleHeader | undefined,
    from: { bundlePath: string; etag: string },
    answer?: DeltaAnswer,
  ): void {
    let stream: FrameStream | undefined;
    if (header !== undefined) {
      this.#setPlan(header, from);
      // A base has lost since what it gave: only a bundle that leaves nothing out helps.
      if (!this.#covered()) {
        this.#plan = undefined;
        this.#withoutBases = true;
        answer?.body.destroy();
      } else if (answer !== undefined) stream = this.#streamOf(answer);
    }
    this.#running = this.#run(stream);
  }

  /** Contents of the store (digests, hex) were found damaged and are gone: they are fetched again. */
  lose(hexes: Set<string>): void {
    if (this.#parts.arrivals.lose(hexes).length === 0) return;
    this.retry();
    if (this.#plan !== undefined && !this.#covered()) {
      this.#plan = undefined;
      this.#withoutBases = true;
    }
    this.#changed();
  }

  /**
   * Asks anew for what was given up or refused: the server, or the token for it, may have been mended since. Reads of
   * what was given up wait again. Nothing where the transfer goes on.
   */
  retry(): void {
    if (this.#denials.isRefused) {
      // Until the next attempt has come out, nothing is known to stand in the way.
      delete this.progress.errorKind;
      this.#hurry();
    }
    if (this.progress.state !== 'failed' || this.#signal.aborted) return;
    this.#parts.log.info('what was given up is asked for again');
    this.#complete = Promise.withResolvers();
    this.#complete.promise.catch(() => undefined);
    this.#plan = undefined;
    this.#intake.forgive();
    this.progress.state = 'receiving';
    delete this.progress.error;
    delete this.progress.errorKind;
    this.#denials.forgive();
    this.#running = this.#run(undefined);
  }

  /** Ends the transfer where it stands; what has arrived stays in the store. */
  async stop(): Promise<void> {
    this.#parts.abort.abort();
    this.#changed();
    await this.#running;
    await this.#intake.idle();
    this.#bases?.release();
    await this.#parts.arrivals.close();
    this.#complete.reject(new FirstlightError('unreachable', 'the transfer was stopped'));
  }

  /** Parts `firstPart` to `lastPart` (within the content) are waited for by a reader. */
  wanted(content: number, firstPart: number, lastPart: number): void {
    this.#wants.add([content, firstPart, lastPart]);
  }

  #setPlan(header: BundleHeader, from: { bundlePath: string; etag: string }): void {
    const { arrivals, template, store } = this.#parts;
    this.#bases?.release();
    this.#bases = hasPatches(header) ? new PatchBases(store, header) : undefined;
    // The same table stands in memory once, however many headers come.
    const plan = new FramePlan(
      { ...header, toc: template.toc },
      from,
      (part) => arrivals.hasPart(part),
      this.#bases,
    );
    this.#plan = plan;
    arrivals.listener = {
      partArrived: (part) => plan.partArrived(part),
      partLost: (part) => plan.partLost(part),
    };
    this.#count();
    this.#fetcher.reset();
    this.#wants.retry();
  }

  #count(): void {
    const plan = this.#plan;
    if (plan === undefined) return;
    const { progress } = this;
    progress.frames = plan.frames.length;
    progress.framesDone = plan.framesDone;
    progress.bytes = plan.header.preamble.bodyBytes;
    progress.bytesDone = plan.bytesDone;
    progress.rawBytes = plan.rawBytes;
    progress.rawBytesDone = plan.rawBytesDone;
  }

  #received(bytes: number): void {
    const now = Date.now();
    if (this.#denials.isRefused && this.#intake.failure === undefined) this.#denials.accepted();
    this.progress.receivedBytes += bytes;
    if (this.progress.firstFrameAt === 0) this.progress.firstFrameAt = now;
  }

  #changed(): void {
    const before = this.progress.framesDone;
    this.#count();
    if (this.progress.framesDone > before) this.progress.lastFrameAt = Date.now();
    this.#wakeUp?.();
    this.#wakeUp = undefined;
  }

  #attemptFailed(error: FirstlightError): void {
    this.progress.retries++;
    this.progress.error = error.line;
    this.progress.errorKind = error.kind;
    if (isRefusal(error)) this.#denials.refused(error);
    this.#changed();
  }

  #bundleGone(plan: FramePlan): void {
    if (this.#plan !== plan) return;
    this.#parts.log.info('the server no longer has the bundle; asking for a new one');
    this.#plan = undefined;
    this.#stream?.destroy();
    this.#changed();
  }

  /** The rest comes without patches: of the same bases, which have given what they have whole. */
  #patchFailed(plan: FramePlan, frame: number, error: FirstlightError): void {
    if (this.#plan !== plan) return;
    this.#parts.log.warn(
      { err: error, frame },
      'an image of the store is not what a patch stands on; asking without patches (see "firstlight verify")',
    );
    this.#withoutPatches = true;
    this.#plan = undefined;
    this.#stream?.destroy();
    this.#changed();
  }

  async #run(first: FrameStream | undefined): Promise<void> {
    let stream = first;
    let failures = 0;
    while (!this.#signal.aborted) {
      const moved = this.#moved;
      try {
        if (this.#intake.failure !== undefined) await this.#retryStore();
        stream ??= await this.#nextStream();
        if (stream !== undefined) {
          await this.#pump(stream);
        } else if (this.#plan?.settled === true) {
          return await this.#finish(this.#plan);
        }
        stream = undefined;
        failures = 0;
      } catch (error) {
        stream?.destroy();
        stream = undefined;
        if (this.#signal.aborted) return;
        if (error instanceof WrongFramesError) failures = error.times;
        else failures = this.#moved > moved ? 1 : failures + 1;
        await this.#backOff(error, failures);
      }
    }
    // Stopped before it was read at all: its connection is for others.
    stream?.destroy();
  }

  async #backOff(error: unknown, failures: number): Promise<void> {
    const { log, backoff } = this.#parts;
    const failure = toFirstlightError(error);
    const ms = backoffMs(failures, backoff ?? DEFAULT_BACKOFF);
    // A store that cannot be written has had its line already.
    if (error !== this.#intake.failure) {
      log.warn({ err: failure, failures, waitMs: Math.round(ms) }, 'the transfer was interrupted');
    }
    this.progress.state = 'retrying';
    this.#attemptFailed(failure);
    const hurry = new AbortController();
    this.#hurry = () => hurry.abort();
    // Stopping ends the wait early; the loop sees the signal.
    const signal = AbortSignal.any([this.#signal, hurry.signal]);
    await sleep(ms, undefined, { signal }).catch(() => undefined);
    this.#hurry = () => undefined;
  }

  async #retryStore(): Promise<void> {
    await this.#intake.retry();
    this.#denials.storeMended();
    this.#fetcher.resume();
  }

  /** The stream to read next, or undefined where nothing is missing that is not under way. */
  async #nextStream(): Promise<FrameStream | undefined> {
    if (this.#plan === undefined) {
      const stream = await this.#replan();
      if (stream !== undefined) return stream;
    }
    const plan = this.#plan;
    if (plan === undefined) return undefined;
    const frame = plan.nextMissing(0);
    if (frame < 0) {
      if (!plan.settled) await new Promise<void>((resolve) => (this.#wakeUp = resolve));
      return undefined;
    }
    return this.#makeStream(plan);
  }

  #makeStream(
    plan: FramePlan,
    lane: StreamLane = this.#parts.client.takeLane(),
    first?: FirstRun,
  ): FrameStream {
    const { bundlePath, etag } = plan;
    const ask = (from: number, to: number, signal: AbortSignal, apart: boolean) =>
      lane.range(bundlePath, etag, from, to, AbortSignal.any([signal, this.#signal]), apart);
    return new FrameStream(plan, ask, () => lane.release(), first, lane.silentMs);
  }

  /** Reads a stream to its end, or until going on costs more than asking anew. */
  async #pump(stream: FrameStream): Promise<void> {
    const { plan } = stream;
    this.#stream = stream;
    this.progress.state = 'receiving';
    let wrong = 0;
    try {
      this.#pace.rate.start();
      for (;;) {
        await this.#intake.room();
        if (this.#plan !== plan || stream.uselessBytes > this.#pace.leaveBytes) return;
        const came = await stream.next(this.#pace.soonBytes);
        if (came === 'gone') return this.#bundleGone(plan);
        if (came === undefined) break;
        const { frame, bytes, data } = came;
        if (data !== undefined) {
          if (this.#intake.take(plan, frame, data)) this.#moved++;
          else wrong = Math.max(wrong, this.#intake.timesWrong(plan, frame));
        }
        this.#received(bytes);
        this.#pace.rate.add(bytes);
        // The bytes may have lain ready: let timers, answers and callbacks have their turn.
        await new Promise((resolve) => setImmediate(resolve));
      }
    } catch (error) {
      // Given up because its bundle is not used any more: that is no failure of the stream.
      if (this.#plan !== plan && !this.#signal.aborted) return;
      throw error;
    } finally {
      // Where it has ended by itself, nothing is under way that this could break off.
      stream.destroy();
      this.#stream = undefined;
    }
    if (wrong > 0) throw new WrongFramesError(wrong);
    delete this.progress.error;
    delete this.progress.errorKind;
  }

  /** Asks for a bundle of the same image anew; only its missing frames will be fetched. */
  async #replan(): Promise<FrameStream | undefined> {
    const { store, image, client, arrivals } = this.#parts;
    for (;;) {
      const without = { bases: this.#withoutBases, patches: this.#withoutPatches };
      const { answer, header, raw } = await askAnew(this.#parts, without, this.#signal);
      try {
        await store.guard(async () => arrivals.adopt((await findInBases(store, header)).found));
        const { bundlePath, etag } = answer;
        await image.setBundle(raw, { server: client.server, bundlePath, etag });
        this.#setPlan(header, { bundlePath, etag });
      } catch (error) {
        answer.body.destroy();
        throw error;
      }
      if (this.#covered()) return this.#streamOf(answer);
      answer.body.destroy();
      this.#plan = undefined;
      if (this.#withoutBases) {
        throw new FirstlightError('corrupt', `the bundle of ${client.server} lacks contents`);
      }
      this.#withoutBases = true;
    }
  }

  /** True where the plan brings everything that is missing. */
  #covered(): boolean {
    const plan = this.#plan;
    const { arrivals, template } = this.#parts;
    if (plan === undefined) return false;
    return arrivals.incomplete().every((content) => plan.brings(template.toc.firstPart(content)));
  }

  /** The rest of an answer as a stream, where its first missing frame is near enough. */
  #streamOf({ body, pieces }: DeltaAnswer): FrameStream | undefined {
    const plan = this.#plan!;
    const { frames } = plan;
    const first = plan.nextMissing(0);
    const useless = first < 0 ? plan.bytesDone : frames[first]!.offset - frames[0]!.offset;
    if (useless > this.#pace.leaveBytes) {
      body.destroy();
      return undefined;
    }
    const last = frames.find(
      ({ offset, bytes }) => offset + bytes >= (pieces?.leastEnd ?? Infinity),
    );
    const end = last === undefined ? frames.length : last.index + 1;
    const lane = last && pieces?.stopAt(last.offset + last.bytes);
    return this.#makeStream(plan, lane, { body, end });
  }

  /** Everything has been received: makes it last, and says so. */
  async #finish(plan: FramePlan): Promise<void> {
    const { store, image, arrivals, log } = this.#parts;
    await this.#intake.idle();
    if (!arrivals.complete) {
      this.progress.state = 'failed';
      this.progress.error ??= 'some contents came wrong again and again';
      this.#complete.reject(new FirstlightError('corrupt', this.progress.error));
      return;
    }
    await store.contents.makeDurable();
    await image.setComplete();
    this.#bases?.release();
    await store.removePartials(image.digest);
    await arrivals.close();
    this.#count();
    this.progress.state = 'complete';
    delete this.progress.error;
    delete this.progress.errorKind;
    log.info({ frames: plan.frames.length, bytes: this.progress.receivedBytes }, 'complete');
    this.#complete.resolve();
  }
}
