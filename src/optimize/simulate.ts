// Predicts when each wait of a traced run would end if its image came in another order, over a line
// of given bandwidth and round trip. The line is line.ts, orders are layout.ts.
//
// The run is replayed by its own computing time: what it did between two reads takes as long as it
// did, what it waited then is taken out, and what it would wait now is put in. While anything waits,
// the whole run stands still; a run with several threads is no slower than that.
import { byAccessTime, firstSights, TRACE_PART_BYTES, type Tracer } from '../trace/tracer.ts';
import { type Layout, type LayoutOptions, layOut, type OrderName } from './layout.ts';
import { Clock, type Connection, Line, type LineOptions } from './line.ts';
import { type RankTarget, rankImage } from './ranks.ts';
import { partsOfRange } from './units.ts';

/** The network and how the worker uses it. */
export interface SimulationOptions extends LineOptions {
  /** Frames that a reader waits for are fetched beside the stream; true unless told otherwise. */
  outOfOrder?: boolean;
  /** The connections are open and have moved megabytes; false unless told otherwise. */
  warm?: boolean;
}

/** A moment at which a run needed bytes. */
export interface Want {
  path: string;
  /** Part of a large file; absent for the whole file. */
  part?: number;
  /** When it was wanted in the traced run, ns since its start, and how long it waited then. */
  accessNs: number;
  waitNs: number;
}

/** How a want fares in the simulation; times in ms since the request for the bundle. */
export interface SimulatedWait extends Want {
  wantedMs: number;
  endedMs: number;
}

/** One simulated transfer. */
export interface Simulation {
  /** In order of wanting. */
  waits: SimulatedWait[];
  /** When the header is in and the run starts. */
  startedMs: number;
  /** When the last want of the run has what it wants, and the same had nothing had to be waited for. */
  doneMs: number;
  /** When the last byte of the bundle is there. */
  lastByteMs: number;
  /** Time in which at least one want waited, and the sum over all wants. */
  blockedMs: number;
  summedWaitMs: number;
  /** Bytes that had been received when the run was done, frames fetched twice counted twice. */
  bytesWhenDone: number;
  /** Frames that were fetched beside the stream. */
  fetched: number;
}

/** Wants of one run that are replayed; what lies beyond is left out. */
const WANTS_MAX = 1_000_000;
/** Frames fetched at a time. */
const FETCHES = 4;

/** The wants of a run: each file, or each part of a large one that was read, once. */
export function wantsOf(tracer: Tracer): Want[] {
  const wants: Want[] = [];
  for (const { path, accessNs, waitNs, ranges } of firstSights(tracer)) {
    if (ranges === undefined) wants.push({ path, accessNs, waitNs });
    const seen = new Set<number>();
    for (const range of ranges ?? []) {
      if (range.lengthBytes === 0) continue;
      const [first, last] = partsOfRange(range.offsetBytes, range.lengthBytes);
      for (let part = first; part <= last && wants.length < WANTS_MAX; part++) {
        if (seen.has(part)) continue;
        seen.add(part);
        wants.push({ path, part, accessNs: range.accessNs, waitNs: range.waitNs });
      }
    }
  }
  return wants.sort(byAccessTime);
}

/** Milliseconds of the run's own work before each want: its access time less what was waited before. */
export function workBeforeMs(wants: readonly Want[]): number[] {
  let blockedNs = 0;
  let waitedUntilNs = 0;
  let workNs = 0;
  return wants.map(({ accessNs, waitNs }) => {
    // Within a wait that is under way, the run stands where that wait began.
    workNs = Math.max(workNs, accessNs - blockedNs);
    const end = Math.max(waitedUntilNs, accessNs + waitNs);
    blockedNs += end - Math.max(waitedUntilNs, accessNs);
    waitedUntilNs = end;
    return workNs / 1e6;
  });
}

class Transfer {
  readonly clock = new Clock();
  readonly #layout: Layout;
  readonly #options: SimulationOptions;
  readonly #line: Line;
  readonly #stream: Connection;
  /** Connections for fetching that are idle, and those that have been used: a new one costs a round trip. */
  readonly #fetchers: Connection[] = [];
  readonly #used = new Set<Connection>();
  readonly #arrived: boolean[];
  readonly #waiting = new Map<number, (() => void)[]>();
  /** Frames asked for beside the stream that are not there yet, and those that still have to be. */
  readonly #asked = new Set<number>();
  #stack: number[] = [];
  #running = 0;
  /** Bytes of the stream before each frame, and next frame that it brings. */
  readonly #offsets: number[] = [];
  #nextOfStream = 0;
  receivedBytes = 0;
  lastByteMs = 0;
  fetched = 0;

  constructor(layout: Layout, options: SimulationOptions) {
    this.#layout = layout;
    this.#options = options;
    const total = layout.frames.reduce((sum, bytes) => sum + bytes, layout.headerBytes);
    this.#line = new Line(this.clock, options, total);
    this.#stream = this.#line.connect(options.warm === true);
    for (let i = 0; i < FETCHES; i++)
      this.#fetchers.push(this.#line.connect(options.warm === true));
    this.#arrived = layout.frames.map(() => false);
    let offset = 0;
    for (const bytes of layout.frames) {
      this.#offsets.push(offset);
      offset += bytes;
    }
  }

  /** Sends the request; `headerIn` runs when the header is there. */
  start(headerIn: () => void): void {
    const { roundTripMs, warm } = this.#options;
    // A new connection costs a round trip before the request can go.
    this.clock.after((warm ? 0 : roundTripMs) + roundTripMs / 2, () => {
      const { headerBytes, frames } = this.#layout;
      this.#stream.send(Math.max(1, headerBytes), () => {
        this.receivedBytes += headerBytes;
        headerIn();
      });
      for (const [frame, bytes] of frames.entries()) {
        this.#stream.send(bytes, () => {
          this.#nextOfStream = frame + 1;
          this.lastByteMs = this.clock.nowMs;
          this.#bring(frame, bytes);
        });
      }
    });
  }

  isMissing(frame: number): boolean {
    return !this.#arrived[frame];
  }

  /** Runs `then` when a frame is there; fetches it where the stream would bring it late. */
  want(frame: number, then: () => void): void {
    const list = this.#waiting.get(frame);
    if (list === undefined) this.#waiting.set(frame, [then]);
    else list.push(then);
    this.#hurry(frame);
  }

  #hurry(frame: number): void {
    const { outOfOrder = true, roundTripMs } = this.#options;
    if (!outOfOrder || !this.isMissing(frame) || this.#asked.has(frame)) return;
    const aheadBytes = this.#offsets[frame]! - (this.#offsets[this.#nextOfStream] ?? 0);
    // As the worker decides: both would have to bring the frame itself. It looks again from time to
    // time, which matters where a stream stalls; here none does.
    if (aheadBytes / this.#line.bytesPerMs(this.#stream) <= roundTripMs) return;
    this.#asked.add(frame);
    this.#stack.push(frame);
    this.#fetch();
  }

  #fetch(): void {
    if (this.#running >= FETCHES) return;
    this.#stack = this.#stack.filter((frame) => this.isMissing(frame));
    const frame = this.#stack.pop();
    if (frame === undefined) return;
    this.#running++;
    this.fetched++;
    const connection = this.#fetchers.pop()!;
    const bytes = this.#layout.frames[frame]!;
    const { roundTripMs, warm } = this.#options;
    const connectMs = warm || this.#used.has(connection) ? 0 : roundTripMs;
    this.#used.add(connection);
    this.clock.after(connectMs + roundTripMs / 2, () => {
      connection.send(bytes, () => {
        this.#running--;
        this.#fetchers.push(connection);
        this.#bring(frame, bytes);
        this.#fetch();
      });
    });
  }

  #bring(frame: number, bytes: number): void {
    this.receivedBytes += bytes;
    this.#asked.delete(frame);
    this.#arrived[frame] = true;
    const waiting = this.#waiting.get(frame) ?? [];
    this.#waiting.delete(frame);
    for (const then of waiting) then();
  }
}

/** The traced run, replayed. */
class Run {
  readonly waits: SimulatedWait[] = [];
  blockedMs = 0;
  bytesWhenDone = 0;
  startedMs = 0;
  doneMs = 0;
  readonly #transfer: Transfer;
  readonly #layout: Layout;
  readonly #wants: readonly Want[];
  readonly #workMs: readonly number[];
  #next = 0;
  /** Wants that wait now, and since when any has. */
  #open = 0;
  #blockedSinceMs = 0;

  constructor(transfer: Transfer, layout: Layout, wants: readonly Want[]) {
    this.#transfer = transfer;
    this.#layout = layout;
    this.#wants = wants;
    this.#workMs = workBeforeMs(wants);
  }

  start(): void {
    this.startedMs = this.#transfer.clock.nowMs;
    this.doneMs = this.startedMs;
    this.#goOn(0);
  }

  /** Goes on from a point of the run's own work to the next want. */
  #goOn(workMs: number): void {
    const next = this.#workMs[this.#next];
    if (next === undefined) {
      this.doneMs = this.#transfer.clock.nowMs;
      this.bytesWhenDone = this.#transfer.receivedBytes;
      return;
    }
    this.#transfer.clock.after(next - workMs, () => this.#step(next));
  }

  /** All wants of one moment; those that were made while another waited have its moment. */
  #step(workMs: number): void {
    this.#open++;
    this.#blockedSinceMs = this.#transfer.clock.nowMs;
    while (this.#workMs[this.#next] === workMs) this.#want(this.#wants[this.#next++]!);
    this.#close(workMs);
  }

  #want(want: Want): void {
    const { clock } = this.#transfer;
    const wait = { ...want, wantedMs: clock.nowMs, endedMs: clock.nowMs };
    this.waits.push(wait);
    const frames = this.#layout.framesOf(want.path, want.part);
    const workMs = this.#workMs[this.#next - 1]!;
    for (const frame of frames) {
      if (!this.#transfer.isMissing(frame)) continue;
      this.#open++;
      this.#transfer.want(frame, () => {
        wait.endedMs = clock.nowMs;
        this.#close(workMs);
      });
    }
  }

  #close(workMs: number): void {
    if (--this.#open > 0) return;
    this.blockedMs += this.#transfer.clock.nowMs - this.#blockedSinceMs;
    this.#goOn(workMs);
  }
}

/**
 * Simulates one transfer with one run reading from it.
 * @throws FirstlightError `usage` where bandwidth or round trip are no sensible numbers
 */
export function simulate(
  layout: Layout,
  wants: readonly Want[],
  options: SimulationOptions,
): Simulation {
  const transfer = new Transfer(layout, options);
  const run = new Run(transfer, layout, wants);
  transfer.start(() => run.start());
  transfer.clock.run();
  const { waits, startedMs, doneMs, blockedMs, bytesWhenDone } = run;
  return {
    waits,
    startedMs,
    doneMs,
    lastByteMs: Math.max(transfer.lastByteMs, startedMs),
    blockedMs,
    summedWaitMs: waits.reduce((sum, { wantedMs, endedMs }) => sum + endedMs - wantedMs, 0),
    bytesWhenDone,
    fetched: transfer.fetched,
  };
}

/** How long each file was waited for, ms, all its parts together; files that were not waited for too. */
export function waitsByPath(simulation: Simulation): Map<string, number> {
  const waits = new Map<string, number>();
  for (const { path, wantedMs, endedMs } of simulation.waits) {
    waits.set(path, (waits.get(path) ?? 0) + endedMs - wantedMs);
  }
  return waits;
}

/** What {@link simulateOrders} takes. */
export interface OrdersInput {
  /** The run that is replayed. */
  tracer: Tracer;
  /** All runs that are known, for the merged order; the replayed one may be among them. */
  tracers: readonly Tracer[];
  target: RankTarget;
  layout: LayoutOptions;
  line: SimulationOptions;
}

/**
 * Simulates a run under each order: as in the tree, small contents first, as this run itself read,
 * and as all runs together say.
 */
export function simulateOrders(input: OrdersInput): Record<OrderName, Simulation> {
  const { tracer, tracers, target, line } = input;
  const wants = wantsOf(tracer);
  const under = (first: Parameters<typeof layOut>[1]) =>
    simulate(layOut(target.files, first, input.layout), wants, line);
  return {
    tree: under('tree'),
    size: under('size'),
    // The run is taken as one of the target, whatever it was recorded on.
    recorded: under(rankImage([{ ...tracer, digest: target.digest }], target).parts),
    merged: under(rankImage(tracers, target).parts),
  };
}

/** Content bytes that a run needs of an image: whole files, and the parts that it read of large ones. */
export function bytesNeeded(tracer: Tracer, files: RankTarget['files']): number {
  const contents = new Map<string, number>();
  for (const { path, part } of wantsOf(tracer)) {
    const file = files.file(path);
    if (file === undefined) continue;
    const whole = file.digest ?? path;
    const start = (part ?? 0) * TRACE_PART_BYTES;
    const count = part === undefined ? Math.ceil(file.sizeBytes / TRACE_PART_BYTES) : 1;
    for (let at = 0; at < count; at++) {
      const from = start + at * TRACE_PART_BYTES;
      const bytes = Math.min(TRACE_PART_BYTES, file.sizeBytes - from);
      if (bytes > 0) contents.set(`${from}/${whole}`, bytes);
    }
  }
  return [...contents.values()].reduce((sum, bytes) => sum + bytes, 0);
}
