// Computations of bundles with patches: behind everything else, one at a time, and no more of them waiting than
// somebody may come back for. What does not live here: the computation itself (bundle-cache.ts), and what is computed
// before anybody asks (patches.ts).
//
// Whoever may ask for bundles can name any of the images as what it has, in any combination: each is another bundle,
// and a minute's work. One that is refused costs its worker the patches of that one answer. So does one whose turn has
// not come when the last connection over which it was asked for is closed: a worker keeps its connections for
// minutes after it has its answer, and what a fleet of them asks for is not forgotten between two of them.
import { LRUCache } from 'lru-cache';
import type { BundleRecord } from './catalog.ts';

/** Computes one bundle; undefined where there is nothing to patch. */
export type MakeBundle = () => Promise<BundleRecord | undefined>;

/** One computation that waits or runs. */
interface Job {
  readonly make: MakeBundle;
  readonly done: Promise<BundleRecord | undefined>;
  readonly resolve: (made: Promise<BundleRecord | undefined> | undefined) => void;
  /** Connections over which it was asked for, and what ends the listening to each. */
  readonly wishes: Map<AbortSignal, () => void>;
  /** It is wanted, whoever has gone. */
  isKept: boolean;
  /** It is to be computed though nobody may have asked for it. */
  isAhead: boolean;
}

/** See the head of this file. */
export class PatchQueue {
  readonly #jobs = new Map<string, Job>();
  /** Those that wait, in the order of their turns: what somebody wants comes before what nobody has asked for. */
  readonly #wanted = new Set<Job>();
  readonly #ahead = new Set<Job>();
  #isBusy = false;
  /** Keys of bundles with patches that turned out to have none: to try again would give nothing. */
  readonly #none = new LRUCache<string, true>({ max: 10_000 });
  readonly #most: number;
  readonly #onRefused: () => void;

  /**
   * @param most       that wait at a time
   * @param onRefused  called for each beyond these
   */
  constructor(most: number, onRefused: () => void) {
    this.#most = most;
    this.#onRefused = onRefused;
  }

  /**
   * Has the bundle of this key computed for somebody who wants it, ahead of what nobody has asked for.
   * @param gone  aborts when it is not wanted any more, which counts until its turn has come
   * @returns undefined also where there is no room for it, or nobody wants it any more
   */
  want(key: string, make: MakeBundle, gone?: AbortSignal): Promise<BundleRecord | undefined> {
    if (this.#none.has(key) || gone?.aborted === true) return Promise.resolve(undefined);
    let job = this.#jobs.get(key);
    if (job === undefined) {
      if (this.#wanted.size + this.#ahead.size >= this.#most) {
        this.#onRefused();
        return Promise.resolve(undefined);
      }
      job = this.#add(key, make);
      this.#wanted.add(job);
    } else if (this.#ahead.delete(job)) this.#wanted.add(job);
    if (gone === undefined) job.isKept = true;
    else this.#wish(key, job, gone);
    this.#next();
    return job.done;
  }

  /** Has it computed where nobody has asked for it, when there is nothing else to do; of these there is one at a time. */
  ahead(key: string, make: MakeBundle): Promise<BundleRecord | undefined> {
    if (this.#none.has(key)) return Promise.resolve(undefined);
    let job = this.#jobs.get(key);
    if (job === undefined) {
      job = this.#add(key, make);
      this.#ahead.add(job);
    }
    job.isAhead = true;
    this.#next();
    return job.done;
  }

  #add(key: string, make: MakeBundle): Job {
    const { promise: done, resolve } = Promise.withResolvers<BundleRecord | undefined>();
    const job: Job = { make, done, resolve, wishes: new Map(), isKept: false, isAhead: false };
    this.#jobs.set(key, job);
    const over = () => {
      if (this.#jobs.get(key) === job) this.#jobs.delete(key);
      for (const stop of job.wishes.values()) stop();
    };
    done.then(over, over);
    return job;
  }

  #wish(key: string, job: Job, gone: AbortSignal): void {
    if (job.wishes.has(gone)) return;
    const withdraw = () => this.#withdrawn(key, job, gone);
    gone.addEventListener('abort', withdraw, { once: true });
    job.wishes.set(gone, () => gone.removeEventListener('abort', withdraw));
  }

  /** One of those who wanted it has gone: without any it waits no more, or for others that nobody has asked for. */
  #withdrawn(key: string, job: Job, gone: AbortSignal): void {
    job.wishes.delete(gone);
    if (job.wishes.size > 0 || job.isKept || !this.#wanted.delete(job)) return;
    if (job.isAhead) {
      this.#ahead.add(job);
      return;
    }
    // At once: whoever asks in the same turn begins another one.
    this.#jobs.delete(key);
    job.resolve(undefined);
  }

  #next(): void {
    if (this.#isBusy) return;
    const [job] = this.#wanted.size > 0 ? this.#wanted : this.#ahead;
    if (job === undefined) return;
    this.#wanted.delete(job);
    this.#ahead.delete(job);
    this.#isBusy = true;
    const free = () => {
      this.#isBusy = false;
      this.#next();
    };
    const made = job.make();
    job.resolve(made);
    made.then(free, free);
  }

  /** The bundle of this key has no patches. */
  hasNone(key: string): void {
    this.#none.set(key, true);
  }

  /** Those that are being computed, or wait for it. */
  get waiting(): number {
    return this.#jobs.size;
  }

  /** Resolves when those of now have ended, however they do. */
  async settled(): Promise<void> {
    await Promise.allSettled([...this.#jobs.values()].map(({ done }) => done));
  }
}
