// The receivers that mounts use, and those that go on after their last mount has gone: an image that
// was asked for is worth having whole, or a worker that only runs short containers never has it.
import type { ErrorKind } from '../errors/errors.ts';
import type { Logger } from '../log/log.ts';
import { Receiver, type ReceiverOptions } from '../receive/receiver.ts';
import type { LayerStore } from '../store/layer-store.ts';
import type { TransferStatus } from './control.ts';
import type { IdleTimer } from './idle.ts';
import { settleMemory } from './memory.ts';

/** How often a transfer that nobody uses is looked at. */
const LOOK_MS = 1000;

interface Lingering {
  receiver: Receiver;
  release: () => void;
}

/** Causes of a failed transfer that do not pass by themselves. */
const STAYS = new Set<ErrorKind>([
  ...(['no-space', 'not-found', 'platform', 'unauthorized', 'permission'] as const),
]);

/** Why a transfer does not go on until somebody sees to it; undefined where it does. */
export function stuckBy(receiver: Receiver): ErrorKind | undefined {
  const { state, errorKind } = receiver.progress();
  if (state !== 'retrying' || errorKind === undefined) return undefined;
  return STAYS.has(errorKind) ? errorKind : undefined;
}

/** 0 means "not yet" in a receiver's progress. */
function timeOrNull(ms: number): number | null {
  return ms === 0 ? null : ms;
}

/** Progress as `status` shows it. */
export function transferStatus(receiver: Receiver): TransferStatus {
  const p = receiver.progress();
  return {
    ...p,
    headerAt: timeOrNull(p.headerAt),
    firstFrameAt: timeOrNull(p.firstFrameAt),
    lastFrameAt: timeOrNull(p.lastFrameAt),
    error: p.error ?? null,
  };
}

export class Transfers {
  readonly #store: LayerStore;
  readonly #idle: IdleTimer;
  readonly #log: Logger;
  readonly #lingering = new Map<string, Lingering>();
  readonly #timer: NodeJS.Timeout;
  /** Every receiver that is open. */
  readonly #open = new Set<Receiver>();
  /** Bytes of each image that are in the sum already. */
  readonly #counted = new Map<string, number>();
  #receivedBytes = 0;

  constructor(store: LayerStore, idle: IdleTimer, log: Logger) {
    this.#store = store;
    this.#idle = idle;
    this.#log = log;
    this.#timer = setInterval(() => void this.#look(), LOOK_MS);
    this.#timer.unref();
  }

  /** Opens a receiver for a mount; give it back with `release`. */
  async open(options: ReceiverOptions): Promise<Receiver> {
    const receiver = await Receiver.open(this.#store, options);
    this.#open.add(receiver);
    // What ends otherwise than well is told by `status` and the log.
    if (receiver.progress().state !== 'complete') {
      receiver.complete.then(settleMemory, () => undefined);
    }
    return receiver;
  }

  /** A mount has gone: its transfer goes on alone until all is there, or the server fails it. */
  async release(receiver: Receiver): Promise<void> {
    const { digest } = receiver;
    const keep = receiver.progress().state === 'receiving' && !this.#lingering.has(digest);
    if (!keep) {
      await this.close(receiver);
      return;
    }
    this.#log.info({ image: digest }, 'the transfer goes on without a mount');
    this.#lingering.set(digest, { receiver, release: this.#idle.use() });
    // Told by `#look`, which also sees the ones that do not complete.
    receiver.complete.catch(() => undefined);
  }

  /** Gives a receiver back whose transfer nobody wants to go on. */
  async close(receiver: Receiver): Promise<void> {
    this.#count(receiver);
    this.#open.delete(receiver);
    const { digest } = receiver;
    if (![...this.#open].some((other) => other.digest === digest)) this.#counted.delete(digest);
    await receiver.close();
  }

  /** Adds what a transfer has received since it was last looked at. */
  #count(receiver: Receiver): void {
    const { headerBytes, receivedBytes } = receiver.progress();
    const now = headerBytes + receivedBytes;
    // One that was closed and opened again begins anew.
    const last = Math.min(now, this.#counted.get(receiver.digest) ?? 0);
    this.#receivedBytes += now - last;
    this.#counted.set(receiver.digest, now);
  }

  /** Bytes that came from delta servers since the start: headers and frames. */
  receivedBytes(): number {
    for (const receiver of this.#open) this.#count(receiver);
    return this.#receivedBytes;
  }

  /** Number of open images by the state of their transfer. */
  states(): Record<TransferStatus['state'], number> {
    const images = new Map([...this.#open].map((each) => [each.digest, each.progress().state]));
    const states = { receiving: 0, retrying: 0, complete: 0, failed: 0 };
    for (const state of images.values()) states[state]++;
    return states;
  }

  async #look(): Promise<void> {
    for (const [digest, { receiver }] of this.#lingering) {
      if (receiver.progress().state !== 'receiving') await this.#end(digest);
    }
  }

  async #end(digest: string): Promise<void> {
    const lingering = this.#lingering.get(digest);
    if (lingering === undefined) return;
    this.#lingering.delete(digest);
    try {
      await this.close(lingering.receiver);
    } catch (error) {
      this.#log.warn({ err: error, image: digest }, 'a transfer did not close cleanly');
    } finally {
      lingering.release();
    }
  }

  /** Stops them all; what has arrived stays. */
  async endAll(): Promise<void> {
    clearInterval(this.#timer);
    for (const digest of [...this.#lingering.keys()]) await this.#end(digest);
  }
}
