// What workers report, and the orders that come of it. A report is stored with a note for each image
// whose order it can change; the notes are worked off in the background, one at a time, and outlive
// a restart. Until an image's new bundle is there, the one in the old order is the answer
// (bundle-cache.ts). What does not live here: what a trace says (trace-worker.ts), HTTP.
import PQueue from 'p-queue';
import { FirstlightError, toFirstlightError } from '../errors/errors.ts';
import type { Logger } from '../log/log.ts';
import type { BlobStore } from './blobs.ts';
import type { BundleCache, LoadedImage } from './bundle-cache.ts';
import type { Catalog, RanksRecord, Reorder, TraceBounds, TraceRecord } from './catalog.ts';
import type { Gate } from './gate.ts';
import { isDigest, normalizeName } from './names.ts';
import { ranksVersion } from './ranks.ts';
import {
  imagesOf,
  type KnownImage,
  knownImages,
  type Relation,
  relationsOf,
} from './trace-relations.ts';
import { checkTrace, type RelatedTrace, rankInThread, type ThreadImage } from './trace-thread.ts';

/** Text of traces that one order is made of: the newest, and at least one of them. */
const RANK_MAX_BYTES = 64 << 20;
/** Traced images whose files are looked at beside the image's own. */
const OTHERS_MAX = 8;
/** Reports that are read at the same time; each takes a thread. */
const CHECKS_AT_ONCE = 2;

export interface TracesOptions {
  catalog: Catalog;
  blobs: BlobStore;
  bundles: BundleCache;
  gate: Gate;
  log: Logger;
  bounds: TraceBounds;
  /** After an image could not be looked at for want of space, or the catalog failed, the next try comes this much later. */
  retryMs: number;
  /** Called when an image has been looked at: whether its order has changed, or the look has failed. */
  onReordered?(result: 'changed' | 'same' | 'failed'): void;
}

/** See the head of this file. */
export class Traces {
  readonly #o: TracesOptions;
  readonly #checks = new PQueue({ concurrency: CHECKS_AT_ONCE });
  readonly #ending = new AbortController();
  #started = false;
  /** The pass over the notes that is under way. */
  #pass: Promise<void> | undefined;
  /** A note came since the pass last looked. */
  #woken = false;
  #retry: NodeJS.Timeout | undefined;

  constructor(options: TracesOptions) {
    this.#o = options;
  }

  /** Works notes off from now on, those first that the last process has left. */
  start(): void {
    this.#started = true;
    this.wake();
  }

  /** To be called after a note has been written. */
  wake(): void {
    this.#woken = true;
    if (!this.#started || this.#pass !== undefined || this.#ending.signal.aborted) return;
    this.#pass = this.#workOff().finally(() => {
      this.#pass = undefined;
      if (this.#woken) this.wake();
    });
  }

  /**
   * Takes a report in.
   * @param path  a file with the trace as it came
   * @throws 'corrupt' with what is wrong with it; 'not-found' where no image of the catalog has to do with it
   */
  async add(
    path: string,
    signal: AbortSignal,
  ): Promise<{ trace: TraceRecord; added: boolean; images: string[] }> {
    const { catalog, bounds, log } = this.#o;
    const either = AbortSignal.any([signal, this.#ending.signal]);
    const checked = await this.#checks.add(() => checkTrace(path, either), { signal: either });
    const images = knownImages(await catalog.listImages());
    const name = nameOf(checked.trace, images);
    const digest = checked.trace.digest ?? digestOf(name, checked.trace.platform, images);
    const trace: TraceRecord = { ...checked.trace, name, digest, receivedAt: Date.now() };
    const traces = await catalog.listTraces();
    const affected = imagesOf(trace, images, [...traces.filter((t) => t.id !== trace.id), trace]);
    if (affected.length === 0) {
      throw new FirstlightError('not-found', `there is no image ${trace.image} on this server`, {
        hint: 'report a trace to the server that the image came from',
      });
    }
    const added = await catalog.addTrace(trace, checked.data, affected, bounds);
    const { id, group, image, files } = trace;
    log.info({ id, group, image, files, added, images: affected.length }, 'trace reported');
    if (added) this.wake();
    return { trace, added, images: affected };
  }

  list(): Promise<TraceRecord[]> {
    return this.#o.catalog.listTraces();
  }

  /** A trace's compressed text (zstd). @throws 'not-found' */
  async data(id: string): Promise<Uint8Array> {
    const [data] = await this.#o.catalog.traceData([id]);
    if (data === undefined) throw noSuchTrace();
    return data;
  }

  /** Forgets a trace. @throws 'not-found' */
  async remove(id: string): Promise<void> {
    const { catalog, log } = this.#o;
    const traces = await catalog.listTraces();
    const trace = traces.find((t) => t.id === id);
    const images = knownImages(await catalog.listImages());
    const affected = trace === undefined ? [] : imagesOf(trace, images, traces);
    if (!(await catalog.removeTrace(id, affected))) throw noSuchTrace();
    log.info({ id, images: affected.length }, 'trace removed');
    this.wake();
  }

  /** Has another look at an image: its names have changed. */
  async note(image: string): Promise<void> {
    await this.#o.catalog.noteReorders([image]);
    this.wake();
  }

  /**
   * The order for an image that is on its way in, under the name that it will have; to be called inside the gate. A
   * failure costs the order, not the image.
   */
  async rankNew(
    image: LoadedImage,
    name: string,
    platform: string,
    signal: AbortSignal,
  ): Promise<RanksRecord | undefined> {
    const known = { digest: image.digest, platform, names: [name] };
    try {
      const { digest, toc, digests } = image;
      return await this.#rank(known, { digest, toc: toc.bytes, digests }, signal);
    } catch (error) {
      signal.throwIfAborted();
      this.#o.log.error({ image: image.digest, error }, 'a new image cannot be ordered');
      return undefined;
    }
  }

  /** Waits until no note is left; for tests and for callers that report and then look. */
  async settled(): Promise<void> {
    while (this.#pass !== undefined) await this.#pass;
  }

  /** Stops; notes that are left wait for the next start. */
  async close(): Promise<void> {
    this.#ending.abort(new FirstlightError('unreachable', 'the server is shutting down'));
    clearTimeout(this.#retry);
    await this.#checks.onIdle();
    await this.settled();
    clearTimeout(this.#retry);
  }

  async #workOff(): Promise<void> {
    const { catalog, log } = this.#o;
    const { signal } = this.#ending;
    this.#woken = false;
    try {
      for (;;) {
        const reorder = signal.aborted ? undefined : await catalog.nextReorder();
        if (reorder === undefined) return;
        await this.#reorder(reorder);
      }
    } catch (error) {
      if (signal.aborted) return;
      log.error({ error }, 'orders of images stay as they are for now');
      clearTimeout(this.#retry);
      this.#retry = setTimeout(() => this.wake(), this.#o.retryMs).unref();
    }
  }

  async #reorder(reorder: Reorder): Promise<void> {
    const { catalog, bundles, gate, log, onReordered } = this.#o;
    const { image } = reorder;
    const { signal } = this.#ending;
    try {
      const before = await catalog.ranksOf(image);
      const ranks = await gate.use(() => this.#rankStored(image));
      signal.throwIfAborted();
      const changed = before?.version !== ranks?.version;
      if (changed) await catalog.setRanks(image, ranks);
      await bundles.refresh(image);
      // Last: a process that dies before has the note to go on from.
      await catalog.dropReorder(reorder);
      onReordered?.(changed ? 'changed' : 'same');
      if (changed) log.info({ image, ranked: ranks?.count ?? 0 }, 'image ordered');
    } catch (error) {
      if (signal.aborted) return;
      onReordered?.('failed');
      // Space comes back; the note waits for it.
      if (toFirstlightError(error).kind === 'no-space') throw error;
      // The bundle in the old order stays the answer; without the note this does not go round for ever.
      log.error({ image, error }, 'an image cannot be ordered');
      await catalog.dropReorder(reorder);
    }
  }

  async #rankStored(digest: string): Promise<RanksRecord | undefined> {
    const images = knownImages(await this.#o.catalog.listImages());
    const image = images.find((i) => i.digest === digest);
    if (image === undefined) return undefined;
    return this.#rank(image, undefined, this.#ending.signal);
  }

  /** @param loaded  the image's files, where they are not in the store yet */
  async #rank(
    image: KnownImage,
    loaded: ThreadImage | undefined,
    signal: AbortSignal,
  ): Promise<RanksRecord | undefined> {
    const { catalog } = this.#o;
    const traces = await catalog.listTraces();
    const relations = relationsOf(image, traces);
    const chosen = choose(traces, relations);
    if (chosen.length === 0) return undefined;
    const data = await catalog.traceData(chosen.map((t) => t.id));
    const related = chosen.flatMap((t, i): RelatedTrace[] =>
      // One that has just been dropped has noted the image again.
      data[i] === undefined
        ? []
        : [{ relation: relations.get(t.id)!, digest: t.digest, data: data[i] }],
    );
    const digests = new Set(chosen.map((t) => t.digest).filter((d) => d !== undefined));
    digests.delete(image.digest);
    const others: ThreadImage[] = [];
    for (const digest of [...digests].slice(0, OTHERS_MAX)) {
      if ((await catalog.findByDigest(digest)) !== undefined) others.push(await this.#load(digest));
    }
    const own = loaded ?? (await this.#load(image.digest));
    const made = await rankInThread(own, others, related, signal);
    return made.count === 0 ? undefined : { ...made, version: ranksVersion(made.data) };
  }

  async #load(digest: string): Promise<ThreadImage> {
    const { blobs } = this.#o;
    return {
      digest,
      toc: await blobs.readDocument(digest, 'toc'),
      digests: await blobs.readDocument(digest, 'contents'),
    };
  }
}

const RELATIONS: Relation[] = ['own', 'version', 'neighbour'];

/** The traces whose texts fit the bound together: those nearest to the image first, of these the newest. */
function choose(
  traces: readonly TraceRecord[],
  relations: ReadonlyMap<string, Relation>,
): TraceRecord[] {
  let bytes = 0;
  return RELATIONS.flatMap((relation) =>
    traces.filter((t) => relations.get(t.id) === relation),
  ).filter((trace, i) => {
    bytes += trace.bytes;
    return i === 0 || bytes <= RANK_MAX_BYTES;
  });
}

/** The catalog's name for a traced image: its reference in normal form, else a name of its digest. */
function nameOf(
  trace: { image: string; digest: string | undefined },
  images: readonly KnownImage[],
): string | undefined {
  const reference = trace.image.replace(/@.*$/, '');
  if (!isDigest(reference)) {
    try {
      return normalizeName(reference);
    } catch {
      // A foreign recorder may call images what it likes; the digest still tells.
    }
  }
  return images.find((image) => image.digest === trace.digest)?.names[0];
}

/** The image that has the name now, for a trace that names no digest. */
function digestOf(
  name: string | undefined,
  platform: string | undefined,
  images: readonly KnownImage[],
): string | undefined {
  const named = images.filter((i) => name !== undefined && i.names.includes(name));
  const fitting = named.filter((i) => i.platform === platform);
  return named.length === 1 ? named[0]!.digest : fitting[0]?.digest;
}

function noSuchTrace(): FirstlightError {
  return new FirstlightError('not-found', 'there is no such trace on this server, or no longer');
}
