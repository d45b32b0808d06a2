// The main thread's end of the tree's thread: starts it with the first writable mount, hands it
// mounts, and tells them when it dies. What does not live here: what runs there (tree-service.ts).
import { extname } from 'node:path';
import { Worker } from 'node:worker_threads';
import { FirstlightError } from '../errors/errors.ts';
import type { AttachRequest, FromTree, TreeRequest } from './tree-messages.ts';

/** The thread as this end sees it: a Worker, or in tests something that can be told what to say. */
export type TreeWorker = Pick<Worker, 'postMessage' | 'terminate' | 'ref' | 'unref'> & {
  on(event: 'message', listener: (message: FromTree) => void): unknown;
  on(event: 'error', listener: (error: Error) => void): unknown;
  on(event: 'exit', listener: () => void): unknown;
};

/** Starts a thread of the real kind. */
function startWorker(): TreeWorker {
  // The same ending as this file: .ts in a checkout, .js in the published package.
  const file = `./tree-worker${extname(import.meta.url)}`;
  return new Worker(new URL(file, import.meta.url), {
    name: 'tree',
    // Flags of the main thread are not for this one.
    execArgv: [],
    // Descriptors go from the tree to native, which closes them: Node.js must not.
    trackUnmanagedFds: false,
  });
}

interface Running {
  worker: TreeWorker;
  pending: Map<number, PromiseWithResolvers<void>>;
  /** Mounts, and whom to tell that their tree is gone. */
  attached: Map<number, (error: string) => void>;
}

/** The one thread that all writable mounts of a process share. */
export class TreeThread {
  readonly #start: () => TreeWorker;
  #running: Running | undefined;
  #nextId = 1;

  constructor(start: () => TreeWorker = startWorker) {
    this.#start = start;
  }

  /** Starts the thread, where it does not run yet, for a mount that will come: it takes some 100 ms. */
  prepare(): void {
    const running = this.#run();
    this.#settle(running);
  }

  /**
   * Opens the tree of a mount whose session has been made and not begun yet.
   * @param onDied  the thread has died: requests on the mount end with EIO from now on
   * @throws FirstlightError that says what is wrong with the upper directory
   */
  async attach(request: AttachRequest, onDied: (error: string) => void): Promise<void> {
    const running = this.#run();
    running.worker.ref();
    const { channel } = request;
    // Before the answer: who dies over it has to be heard of, too.
    running.attached.set(channel, onDied);
    try {
      await this.#ask(running, { do: 'attach', request });
    } catch (error) {
      running.attached.delete(channel);
      this.#settle(running);
      throw error;
    }
  }

  /** Closes the tree of a mount whose session has ended. One that is not there is success. */
  async detach(channel: number): Promise<void> {
    const running = this.#running;
    if (running?.attached.delete(channel) !== true) return;
    await this.#ask(running, { do: 'detach', channel });
    this.#settle(running);
  }

  #run(): Running {
    if (this.#running !== undefined) return this.#running;
    const running: Running = {
      worker: this.#start(),
      pending: new Map(),
      attached: new Map(),
    };
    running.worker.on('message', (message) => {
      const asked = running.pending.get(message.id);
      running.pending.delete(message.id);
      if (message.error === undefined) asked?.resolve();
      else asked?.reject(rebuild(message.error));
    });
    running.worker.on('error', (error) => this.#died(running, error.message));
    running.worker.on('exit', () => this.#died(running, 'it has ended'));
    this.#running = running;
    return running;
  }

  #ask(running: Running, request: TreeRequest): Promise<void> {
    const id = this.#nextId++;
    const asked = Promise.withResolvers<void>();
    running.pending.set(id, asked);
    running.worker.postMessage({ id, request });
    return asked.promise;
  }

  /** An idle thread keeps no process from ending. It stays for the next mount. */
  #settle({ attached, pending, worker }: Running): void {
    if (attached.size === 0 && pending.size === 0) worker.unref();
  }

  #died(running: Running, why: string): void {
    if (this.#running !== running) return;
    this.#running = undefined;
    const message = `the thread of the writable trees has died: ${why}`;
    for (const asked of running.pending.values()) {
      asked.reject(new FirstlightError('internal', message, { hint: 'mount again' }));
    }
    for (const tell of running.attached.values()) tell(message);
  }
}

function rebuild({ kind, message, hint }: NonNullable<FromTree['error']>): Error {
  return new FirstlightError(kind, message, hint === undefined ? {} : { hint });
}

/** The thread of this process. */
export const treeThread = new TreeThread();
