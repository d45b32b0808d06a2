// Records one run of one mount: takes what its session has seen a few times a second, gives rows
// their names, sizes, layers and digests, and hands them to the trace's writer. What does not live
// here: how accesses are seen (native/), and what a trace file looks like (trace/).
import { toFirstlightError } from '../errors/errors.ts';
import type { Logger } from '../log/log.ts';
import { CONTENT_STATE } from '../native/index.ts';
import { TRACE_PART_BYTES } from '../trace/tracer.ts';
import { type Opened, TraceWriter } from '../trace/writer.ts';
import type { ArrivalWatch } from './arrivals.ts';
import { DigestPages } from './digest-pages.ts';
import type { Access, Session } from './session.ts';
import type { Template } from './template.ts';

/** How often the session is asked. What a crash loses is this and the journal's own half second. */
const DRAIN_MS = 250;

/** Where traces go, and what the mount's owner knows of the run. */
export interface TraceSink {
  /** `<root>/traces`. */
  directory: string;
  /** os/arch[/variant] of the image. */
  platform: string;
  /** Bytes that have come from the server so far. */
  receivedBytes(): number;
}

export interface RecorderOptions {
  sink: TraceSink;
  group: string;
  /** Reference that was mounted. */
  image: string;
  template: Template;
  session: Pick<Session, 'setTracing' | 'takeTrace'>;
  log: Logger;
}

/** One run that is being recorded. */
export class Recorder {
  readonly group: string;
  readonly #options: RecorderOptions;
  readonly #writer: TraceWriter;
  readonly #watch: ArrivalWatch;
  readonly #digests: DigestPages | undefined;
  /** `performance.now()` at the start of the trace. */
  readonly #startMs: number;
  /** From there to the moment from which the session counts. */
  readonly #offsetNs: number;
  /** Files that were opened and not all there yet: path by content. */
  readonly #arriving = new Map<number, string[]>();
  /** Rows that have been told of. */
  readonly #told = new Set<number>();
  /** Rows of large files whose reads could not be seen: they count as read whole. */
  readonly #unseen = new Set<number>();
  readonly #timer: NodeJS.Timeout;
  #draining: Promise<void> | undefined;
  #digestsFailed = false;

  private constructor(
    options: RecorderOptions,
    writer: TraceWriter,
    startMs: number,
    onMs: number,
  ) {
    this.#options = options;
    this.group = options.group;
    this.#writer = writer;
    this.#startMs = startMs;
    this.#offsetNs = Math.round((onMs - startMs) * 1e6);
    const { template } = options;
    this.#watch = template.watchArrivals();
    this.#digests =
      template.digestsPath === undefined ? undefined : new DigestPages(template.digestsPath);
    this.#timer = setInterval(() => void this.drain(), DRAIN_MS);
    this.#timer.unref();
  }

  /**
   * Begins a trace and turns the session's tracing on.
   * @throws FirstlightError `no-space` and others: the trace's journal cannot be made
   */
  static async start(options: RecorderOptions): Promise<Recorder> {
    const { sink, group, image, template, session, log } = options;
    const wallMs = Date.now();
    const startMs = performance.now();
    const writer = await TraceWriter.create({
      directory: sink.directory,
      head: {
        group,
        image,
        digest: template.digest,
        platform: sink.platform,
        startNs: BigInt(wallMs) * 1_000_000n,
      },
      onError: (error) => log.error({ err: error }, 'the journal of a trace cannot be written'),
    });
    session.setTracing(true);
    return new Recorder(options, writer, startMs, performance.now());
  }

  /** Name of the trace's file without its ending. */
  get id(): string {
    return this.#writer.id;
  }

  /** Files seen so far. */
  get items(): number {
    return this.#writer.items;
  }

  /** Takes in what the session has seen; one at a time. Never rejects. */
  drain(): Promise<void> {
    this.#draining ??= this.#drain()
      .catch((error: unknown) => {
        this.#options.log.error({ err: error }, 'a trace has a gap');
      })
      .finally(() => {
        this.#draining = undefined;
      });
    return this.#draining;
  }

  async #drain(): Promise<void> {
    const { session, sink } = this.#options;
    const { accesses, lost } = session.takeTrace();
    if (lost > 0) this.#writer.addLost(lost);
    for (const access of accesses) {
      if (access.kind === 'open') {
        await this.#opened(access);
      } else {
        // Its open was before the trace, or comes after it: events of opens may be slower than requests.
        if (!this.#told.has(access.row)) {
          await this.#opened({ ...access, waitNs: 0, readsSeen: true });
        }
        this.#read(access);
      }
    }
    await this.#lookForArrivals();
    this.#writer.received({ atNs: this.#nowNs(), bytes: sink.receivedBytes() });
  }

  #nowNs(): number {
    return Math.round((performance.now() - this.#startMs) * 1e6);
  }

  async #opened(access: Access): Promise<void> {
    const { toc } = this.#options.template;
    const { row, waitNs } = access;
    const accessNs = access.atNs + this.#offsetNs;
    const path = toc.path(row);
    const sizeBytes = toc.size(row);
    const sight: Opened = { path, layer: toc.layer(row), accessNs, waitNs, sizeBytes };
    const content = toc.content(row);
    const arrivedNs = content < 0 ? undefined : this.#arrivedNs(content);
    // Most files are there by then, and all that can be said of them is said at once.
    if (arrivedNs !== undefined) sight.arrivedNs = arrivedNs;
    const digest =
      content < 0 ? undefined : (this.#knownDigest(content) ?? (await this.#digest(content)));
    if (digest !== undefined) sight.digest = digest;
    this.#told.add(row);
    this.#writer.opened(sight);
    if (content >= 0 && arrivedNs === undefined) {
      const paths = this.#arriving.get(content);
      if (paths === undefined) this.#arriving.set(content, [path]);
      else paths.push(path);
    }
    if (sizeBytes <= TRACE_PART_BYTES) return;
    if (access.readsSeen) this.#writer.seesReads(path);
    else this.#unseen.add(row);
  }

  #read({ row, atNs, waitNs, offsetBytes, lengthBytes }: Access): void {
    if (this.#unseen.has(row)) return;
    const { toc } = this.#options.template;
    this.#writer.read(
      toc.path(row),
      { offsetBytes, lengthBytes, accessNs: atNs + this.#offsetNs, waitNs },
      toc.layer(row),
    );
  }

  #knownDigest(content: number): string | undefined {
    return this.#digestsFailed ? undefined : this.#digests?.known(content);
  }

  async #digest(content: number): Promise<string | undefined> {
    if (this.#digests === undefined || this.#digestsFailed) return undefined;
    try {
      return await this.#digests.get(content);
    } catch (error) {
      // A trace without digests is worth having: files are matched by path first.
      this.#digestsFailed = true;
      const { log } = this.#options;
      log.warn({ err: toFirstlightError(error) }, 'a trace goes on without digests');
      return undefined;
    }
  }

  /** When the last byte of a content came; 0 where it was there before, undefined where it is not yet. */
  #arrivedNs(content: number): number | undefined {
    const atMs = this.#watch.at(content);
    if (atMs !== undefined) return Math.max(0, Math.round((atMs - this.#startMs) * 1e6));
    const state = this.#options.template.native.state(content);
    return state === CONTENT_STATE.RoLayer ? 0 : undefined;
  }

  async #lookForArrivals(): Promise<void> {
    for (const [content, paths] of this.#arriving) {
      const atNs = this.#arrivedNs(content);
      if (atNs === undefined) continue;
      const digest = await this.#digest(content);
      for (const path of paths) this.#writer.arrived(path, atNs, digest);
      this.#arriving.delete(content);
    }
  }

  /**
   * Ends the trace. What is not there by now is left without a time of arrival.
   * @returns path of the trace file; undefined where nothing was seen
   * @throws FirstlightError where it cannot be written; its journal stays for the next daemon
   */
  async stop(): Promise<string | undefined> {
    const { session, template } = this.#options;
    clearInterval(this.#timer);
    session.setTracing(false);
    await this.#draining;
    await this.drain();
    template.unwatchArrivals(this.#watch);
    await this.#digests?.close();
    return this.#writer.finish(this.#writer.head.startNs + BigInt(this.#nowNs()));
  }
}
