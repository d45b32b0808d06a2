// What ties a writable session to its tree on the tree's thread: opened before the session begins,
// closed after it has ended. What does not live here: the session (kernel-session.ts), the thread
// (tree-thread.ts).
import { FirstlightError } from '../errors/errors.ts';
import type { SessionRequest, TreeStats } from '../tree/session.ts';
import type { Template } from '../tree/template.ts';
import { type TreeThread, treeThread } from './tree-thread.ts';
import { COUNTER, COUNTERS } from './upcalls.ts';

/** After an ordinary unmount: how long the session's end may take to be heard of. */
const ENDED_MS = 2000;

/** One mount's tree, from the main thread. */
export class TreeLink {
  readonly #template: Template;
  readonly #request: SessionRequest;
  readonly #thread: TreeThread;
  readonly #counters = new SharedArrayBuffer(COUNTERS * Float64Array.BYTES_PER_ELEMENT);
  readonly #closed = Promise.withResolvers<boolean>();

  constructor(template: Template, request: SessionRequest, thread: TreeThread = treeThread) {
    this.#template = template;
    this.#request = request;
    this.#thread = thread;
  }

  /**
   * Opens the tree for a session that has not begun.
   * @throws FirstlightError what is wrong with the upper directory
   */
  async open(channel: number): Promise<void> {
    const { places, digest } = this.#template;
    const { writable, mountPoint, onClosed } = this.#request;
    if (places === undefined || writable === undefined) {
      throw new FirstlightError('internal', 'a writable mount needs a template of the store');
    }
    const { upper, work } = writable;
    const counters = this.#counters;
    const request = { channel, digest, places, upper, work, mountPoint, counters };
    await this.#thread.attach(request, onClosed);
  }

  /** Closes the tree; its upper directory is nobody's then. Never rejects. */
  async close(channel: number): Promise<void> {
    // A thread that has died has told so, and closed all it had.
    await this.#thread.detach(channel).catch(() => undefined);
    this.#closed.resolve(true);
  }

  /**
   * Waits for the tree's end, after its session was unmounted.
   * @throws FirstlightError 'busy' where the session goes on in another mount namespace
   */
  async closed(): Promise<void> {
    const late = Promise.withResolvers<boolean>();
    const timer = setTimeout(() => late.resolve(false), ENDED_MS);
    const closed = await Promise.race([this.#closed.promise, late.promise]);
    clearTimeout(timer);
    if (closed) return;
    throw new FirstlightError('busy', `${this.#request.mountPoint} is in use elsewhere`, {
      hint: 'end the containers that have it in a mount namespace of their own, or unmount it with --lazy',
    });
  }

  stats(): TreeStats {
    const counters = new Float64Array(this.#counters);
    const at = (slot: number) => counters[slot] ?? 0;
    return {
      upcalls: at(COUNTER.upcalls),
      waits: at(COUNTER.waits),
      failures: at(COUNTER.failures),
    };
  }
}
