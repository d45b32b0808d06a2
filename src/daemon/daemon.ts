// The daemon of one root: owns its store, its transfers and its mounts, and answers the control
// socket. It never looks at a path that may lie below one of its own mounts: the clients resolve
// directories, and what is known about mounts comes from /proc/self/mountinfo.
import { readlink, rmdir } from 'node:fs/promises';
import { join } from 'node:path';
import { FirstlightError } from '../errors/errors.ts';
import { type Logger, makeLogger } from '../log/log.ts';
import { LayerStore } from '../store/layer-store.ts';
import { recoverJournals } from '../trace/recover.ts';
import type {
  ControlRequest,
  DaemonStatus,
  GcResult,
  StoredImage,
  VerifyResult,
} from './control.ts';
import { ControlServer, type Exchange } from './control-server.ts';
import { IdleTimer } from './idle.ts';
import { MountTable } from './mount-table.ts';
import { Notes } from './notes.ts';
import { runtimeDir, socketPath } from './paths.ts';
import { parseRequest } from './requests.ts';
import { Transfers } from './transfers.ts';

/** How a daemon is started. */
export interface DaemonOptions {
  root: string;
  version: string;
  /** It ends after this time with nothing to do; infinite: never. */
  idleMs: number;
  /** Ends it. */
  signal: AbortSignal;
}

/** How often a `--follow` or `--wait` hears where things stand. */
const FOLLOW_MS = 200;

export class Daemon {
  readonly #options: DaemonOptions;
  readonly #log: Logger;
  readonly #store: LayerStore;
  readonly #transfers: Transfers;
  readonly #mounts: MountTable;
  readonly #idle: IdleTimer;
  readonly #startedAt = Date.now();
  readonly #namespace: string;
  #control: ControlServer | undefined;
  #ending = false;
  #finish: (() => void) | undefined;
  /** Resolves when everything is unmounted and closed. */
  readonly ended: Promise<void>;

  private constructor(
    options: DaemonOptions,
    store: LayerStore,
    notes: Notes,
    namespace: string,
    log: Logger,
  ) {
    this.#namespace = namespace;
    this.#options = options;
    this.#store = store;
    this.#log = log;
    this.#idle = new IdleTimer(options.idleMs, () => {
      log.info('nothing to do: ending');
      void this.end();
    });
    this.#transfers = new Transfers(store, this.#idle, log);
    this.#mounts = new MountTable({
      store,
      transfers: this.#transfers,
      notes,
      mountPoints: join(runtimeDir(options.root), 'rootfs'),
      idle: this.#idle,
      log,
    });
    this.ended = new Promise((resolve) => {
      this.#finish = resolve;
    });
  }

  /**
   * Takes the root, clears away what a killed daemon has left, and listens.
   * @throws FirstlightError `busy` where another process has the root
   */
  static async start(options: DaemonOptions): Promise<Daemon> {
    const log = makeLogger('daemon');
    const store = await LayerStore.open(options.root, { log: makeLogger('store') });
    try {
      const runtime = runtimeDir(options.root);
      const notes = new Notes(join(runtime, 'mounts'), store.layout.snapshots, log);
      await notes.clearAll();
      await recoverTraces(store.layout.traces, log);
      const namespace = await readlink('/proc/self/ns/mnt');
      const daemon = new Daemon(options, store, notes, namespace, log);
      daemon.#control = await ControlServer.listen(
        socketPath(options.root),
        (request, exchange) => daemon.#handle(request, exchange),
        log,
      );
      const onAbort = () => void daemon.end();
      options.signal.addEventListener('abort', onAbort, { once: true });
      if (options.signal.aborted) onAbort();
      log.info({ root: options.root, version: options.version }, 'ready');
      return daemon;
    } catch (error) {
      await store.close();
      throw error;
    }
  }

  /** Unmounts everything, closes everything. Idempotent. */
  async end(): Promise<void> {
    if (this.#ending) return this.ended;
    this.#ending = true;
    this.#idle.stop();
    try {
      await this.#mounts.endAll();
      await this.#transfers.close();
      await this.#control?.close();
      await this.#store.close();
      await removeEmpty(runtimeDir(this.#options.root));
    } catch (error) {
      this.#log.error({ err: error }, 'the end was not clean');
    }
    this.#log.info('ended');
    this.#finish?.();
    return this.ended;
  }

  async #handle(value: unknown, exchange: Exchange): Promise<unknown> {
    const request = parseRequest(value);
    if (this.#ending && request.op !== 'ping') {
      throw new FirstlightError('busy', 'the daemon is ending', { hint: 'try again' });
    }
    // Who only looks does not keep it from ending, or a monitor would keep it for ever.
    const looks = ['status', 'images', 'ping'].includes(request.op);
    const release = looks ? () => {} : this.#idle.use();
    try {
      return await this.#dispatch(request, exchange);
    } finally {
      release();
    }
  }

  async #dispatch(request: ControlRequest, exchange: Exchange): Promise<unknown> {
    switch (request.op) {
      case 'mount':
        this.#checkNamespace(request.mountNamespace);
        return this.#mounts.mount(request, exchange);
      case 'umount':
        return this.#mounts.umount(request.directory, request.lazy);
      case 'status':
        return request.follow === true
          ? this.#follow(request.directory, exchange)
          : this.#mounts.status(request.directory);
      case 'images':
        return this.#images();
      case 'gc':
        return this.#gc(request.all === true);
      case 'trace':
        return this.#mounts.trace(request);
      case 'verify':
        return this.#verify(exchange);
      case 'ping':
        return this.#status();
      case 'stop':
        // After the answer: the connection it goes out on is closed by the end.
        setImmediate(() => void this.end());
        return { pid: process.pid };
    }
  }

  /** A mount made here is not seen in another mount namespace, and would only confuse there. */
  #checkNamespace(namespace: string | undefined): void {
    if (namespace === undefined || namespace === this.#namespace) return;
    throw new FirstlightError(
      'unsupported',
      'the daemon of this root runs in another mount namespace: its mounts are not seen here',
      { hint: 'give another --root here, or run "firstlight daemon --stop" first' },
    );
  }

  async #follow(directory: string | undefined, exchange: Exchange): Promise<unknown> {
    for (;;) {
      const mounts = await this.#mounts.status(directory);
      const arriving = mounts.some(
        ({ transfer }) => !['complete', 'failed'].includes(transfer.state),
      );
      if (!arriving || exchange.gone.aborted || this.#ending) return mounts;
      exchange.send({ event: 'status', mounts });
      await new Promise((resolve) => setTimeout(resolve, FOLLOW_MS));
    }
  }

  #images(): StoredImage[] {
    return this.#store.images().map((image) => ({
      names: image.names,
      digest: image.digest,
      platform: image.platform,
      complete: image.complete,
      bytes: image.bytes,
      entries: image.entries,
      users: image.users,
      createdAt: image.createdAt,
      lastUsedAt: image.lastUsedAt,
    }));
  }

  async #gc(all: boolean): Promise<GcResult> {
    let dropped = 0;
    if (all) {
      for (const image of this.#store.images()) {
        if (image.users > 0) continue;
        if ((await this.#store.removeImage(image.digest)).removed) dropped++;
      }
    }
    const report = await this.#store.gc();
    const snapshots = await this.#mounts.removeSnapshots();
    return {
      snapshots,
      images: dropped + report.images.length,
      contents: report.contents,
      bytes: report.bytes,
    };
  }

  async #verify(exchange: Exchange): Promise<VerifyResult> {
    return this.#store.verify({
      signal: exchange.gone,
      onProgress: (done, total) => exchange.send({ event: 'progress', done, total }),
    });
  }

  #status(): DaemonStatus {
    return {
      pid: process.pid,
      version: this.#options.version,
      root: this.#options.root,
      startedAt: this.#startedAt,
      rssBytes: process.memoryUsage.rss(),
      idleMs: Number.isFinite(this.#options.idleMs) ? this.#options.idleMs : null,
    };
  }
}

/** Makes traces of what killed daemons were recording. Never an obstacle to the daemon's start. */
async function recoverTraces(directory: string, log: Logger): Promise<void> {
  try {
    const { traces, broken } = await recoverJournals(directory);
    for (const path of traces) log.info({ path }, 'a trace that a killed daemon recorded is saved');
    for (const { path, error } of broken) log.warn({ path, err: error }, 'a trace is lost');
  } catch (error) {
    log.error({ err: error, directory }, 'what a killed daemon recorded could not be saved yet');
  }
}

/** Removes a directory and those below it, as far as they are empty. */
async function removeEmpty(directory: string): Promise<void> {
  for (const name of ['mounts', 'rootfs', 'bundles', 'containers', '']) {
    // In use by a client that is just beginning, or not there: both are fine.
    await rmdir(join(directory, name)).catch(() => undefined);
  }
}
