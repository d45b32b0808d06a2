// The mounts of this daemon: made, listed and watched. What does not live here: how one is taken away
// (mount-ends.ts), and what it is made of (tree/).
import { randomBytes } from 'node:crypto';
import { mkdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { FirstlightError, toFirstlightError } from '../errors/errors.ts';
import { treeThread } from '../fuse/tree-thread.ts';
import type { Logger } from '../log/log.ts';
import { addonError } from '../native/index.ts';
import type { Receiver } from '../receive/receiver.ts';
import type { LayerStore } from '../store/layer-store.ts';
import { FsInstance } from '../tree/fs-instance.ts';
import { Changes } from './changes.ts';
import type {
  MountRequest,
  MountStatus,
  TraceRequest,
  TraceSwitched,
  Unmounted,
} from './control.ts';
import type { Exchange } from './control-server.ts';
import type { IdleTimer } from './idle.ts';
import { describeMount, type Mount } from './mount.ts';
import { MountEnds } from './mount-ends.ts';
import { isBelow, mountAt, parseMountInfo } from './mountinfo.ts';
import { detachDead, type MountNote, type Notes } from './notes.ts';
import { chooseSession } from './sessions.ts';
import { stuckBy, type Transfers } from './transfers.ts';

/** How often it is looked whether somebody has unmounted behind our back. */
const WATCH_MS = 3000;
/** How often a waiting client hears where things stand. */
const PROGRESS_MS = 200;

export interface MountTableOptions {
  store: LayerStore;
  transfers: Transfers;
  notes: Notes;
  /** Directory below which mounts without a directory of their own are made. */
  mountPoints: string;
  idle: IdleTimer;
  log: Logger;
}

/** Everything that this daemon has mounted. */
export class MountTable {
  readonly #options: MountTableOptions;
  /** What the mounts of this store have written. */
  readonly changes: Changes;
  readonly #log: Logger;
  readonly #mounts = new Map<string, Mount>();
  /** Ids of mounts that are being made. */
  readonly #making = new Set<string>();
  /** The making of them, and what stops it: the end of the daemon. */
  readonly #makings = new Set<Promise<unknown>>();
  readonly #stop = new AbortController();
  /** Directories on which a mount is being made. */
  readonly #claimed = new Set<string>();
  readonly #watch: NodeJS.Timeout;
  readonly #ends: MountEnds;

  constructor(options: MountTableOptions) {
    this.#options = options;
    this.#log = options.log;
    this.changes = new Changes(options.store.layout.snapshots, (id) => this.#isUsed(id));
    const { notes, transfers, log } = options;
    this.#ends = new MountEnds({
      notes,
      transfers,
      changes: this.changes,
      log,
      ended: ({ id }) => this.#mounts.delete(id),
    });
    this.#watch = setInterval(() => void this.#lookForLost(), WATCH_MS);
    this.#watch.unref();
  }

  /**
   * Makes a mount. It stays only if the client is still there to hear of it; a leased one is ended
   * when the client goes.
   * @returns its status; of a leased one undefined, when it has been taken away
   */
  async mount(request: MountRequest, exchange: Exchange): Promise<MountStatus | undefined> {
    checkModes(request);
    const stop = this.#stop.signal;
    const making = this.#make(request, AbortSignal.any([exchange.gone, stop]));
    this.#makings.add(making);
    const mount = await making.finally(() => this.#makings.delete(making));
    try {
      stop.throwIfAborted();
      exchange.gone.throwIfAborted();
      exchange.send({ event: 'mounted', mount: describeMount(mount) });
      if (request.lease !== undefined) {
        await Promise.race([aborted(exchange.gone), mount.gone]);
        await this.#ends.end(mount, true);
        return undefined;
      }
      if (request.wait) await this.#arrived(mount, exchange);
      exchange.gone.throwIfAborted();
      return describeMount(mount);
    } catch (error) {
      await this.#ends.end(mount, true);
      throw error;
    }
  }

  /** @param signal  ends the making: nothing is left of the mount then */
  async #make(request: MountRequest, signal: AbortSignal): Promise<Mount> {
    const { notes, transfers, idle, mountPoints } = this.#options;
    const fresh = request.name ?? randomBytes(6).toString('hex');
    const directory = request.directory ?? join(mountPoints, fresh);
    const temporary = request.directory === undefined;
    this.#claim(directory);
    // Nothing may fail between the two claims and the `try`.
    this.#claimName(fresh, directory);
    const releaseIdle = idle.use();
    const note: MountNote = {
      id: fresh,
      directory,
      temporary,
      ...(request.lease === undefined ? {} : { lease: request.lease }),
    };
    let receiver: Receiver | undefined;
    try {
      receiver = await this.#open(request, signal);
      signal.throwIfAborted();
      const hold = (id: string) => this.#making.add(id);
      const left = await this.changes.find(request, receiver.digest, hold);
      const id = left ?? fresh;
      this.#making.add(id);
      note.id = id;
      if (request.replaceDead === true) await detachDead(directory, this.#log);
      if (temporary) await mkdir(directory, { recursive: true, mode: 0o700 });
      await notes.add(note);
      const instance = await this.#start(note, request, receiver, left !== undefined);
      const gone = Promise.withResolvers<void>();
      const mount: Mount = {
        id,
        directory,
        note,
        request,
        receiver,
        instance,
        state: 'mounted',
        ending: undefined,
        releaseIdle,
        gone: gone.promise,
        setGone: gone.resolve,
      };
      this.#mounts.set(id, mount);
      const { digest } = receiver;
      const resumed = left !== undefined;
      this.#log.info({ id, directory, image: request.image, digest, resumed }, 'mounted');
      return mount;
    } catch (error) {
      if (receiver !== undefined) await transfers.release(receiver);
      await notes.remove(note);
      releaseIdle();
      throw error;
    } finally {
      this.#claimed.delete(directory);
      this.#making.delete(fresh);
      this.#making.delete(note.id);
    }
  }

  /** Reserves a name, and gives the directory back where that fails. @throws FirstlightError `exists` */
  #claimName(name: string, directory: string): void {
    if (!this.#isUsed(name)) {
      this.#making.add(name);
      return;
    }
    this.#claimed.delete(directory);
    throw new FirstlightError('exists', `there is a mount called ${name} already`, {
      hint: 'unmount it first, or choose another --name',
    });
  }

  #isUsed(name: string): boolean {
    return this.#mounts.has(name) || this.#making.has(name) || this.#ends.isDetached(name);
  }

  #open(request: MountRequest, signal: AbortSignal): Promise<Receiver> {
    return this.#options.transfers.open({
      server: request.server,
      tokenFile: request.tokenFile,
      ref: request.image,
      platform: request.platform,
      bases: request.updateFrom,
      log: this.#log,
      signal,
    });
  }

  /** Makes the file system itself. */
  async #start(
    note: MountNote,
    request: MountRequest,
    receiver: Receiver,
    resume: boolean,
  ): Promise<FsInstance> {
    const { id, directory } = note;
    const instance = new FsInstance({
      id,
      template: receiver.template,
      mountPoint: directory,
      source: request.image,
      rw: request.rw,
      snapshots: this.#options.store.layout.snapshots,
      resume,
      keep: request.keep === true,
      makeSession: chooseSession(request, this.#log),
      waitTimeoutMs: request.waitTimeoutMs,
      wanted: (content, firstPart, lastPart) => receiver.wanted(content, firstPart, lastPart),
      traces: {
        directory: this.#options.store.layout.traces,
        platform: request.platform,
        receivedBytes: () => receiver.progress().receivedBytes,
      },
      onEnded: (error) => this.#onEnded(id, error),
      log: this.#log,
    });
    if (request.trace !== undefined) await instance.setOptimizerOn(request.trace);
    await instance.start();
    return instance;
  }

  /** Reserves a directory. @throws FirstlightError `busy` */
  #claim(directory: string): void {
    const other = [...this.#claimed, ...[...this.#mounts.values()].map((m) => m.directory)].find(
      (taken) => isBelow(directory, taken),
    );
    if (other !== undefined) {
      const how =
        other === directory ? 'is a mount point already' : `lies inside the mount ${other}`;
      throw new FirstlightError('busy', `${directory} ${how}`, {
        hint: 'unmount it first, or choose another directory',
      });
    }
    this.#claimed.add(directory);
  }

  /**
   * Waits until all has arrived, and tells the client meanwhile. What does not pass by itself ends it:
   * the transfer would go on when there is room on the disk, or when the server has the image again,
   * but nobody sees to that who only sees a command hang.
   */
  async #arrived(mount: Mount, exchange: Exchange): Promise<void> {
    const stuck = Promise.withResolvers<never>();
    const timer = setInterval(() => {
      exchange.send({ event: 'status', mounts: [describeMount(mount)] });
      const { error } = mount.receiver.progress();
      const kind = stuckBy(mount.receiver);
      if (kind === undefined) return;
      stuck.reject(new FirstlightError(kind, error ?? 'the image does not arrive'));
    }, PROGRESS_MS);
    try {
      await Promise.race([
        mount.receiver.complete,
        aborted(exchange.gone),
        mount.gone,
        stuck.promise,
      ]);
    } finally {
      clearInterval(timer);
    }
    if (mount.ending !== undefined) {
      throw new FirstlightError('not-found', `${mount.directory} was unmounted meanwhile`);
    }
  }

  /** Unmounts by directory. @throws FirstlightError `not-found`, `busy`, `usage` */
  async umount({
    directory,
    lazy,
    keep = false,
  }: {
    directory: string;
    lazy: boolean;
    keep?: boolean;
  }): Promise<Unmounted> {
    const mount = [...this.#mounts.values()].find((m) => m.directory === directory);
    if (mount === undefined) {
      throw new FirstlightError('not-found', `${directory} is not mounted by firstlight`, {
        hint: 'see firstlight ls',
      });
    }
    if (mount.request.lease?.container !== undefined) {
      throw new FirstlightError('busy', `${directory} is the root of a running container`, {
        hint: 'end the container',
      });
    }
    if (keep && mount.request.rw === 'off') {
      throw new FirstlightError('usage', `${directory} is read-only: there is nothing to keep`, {
        hint: 'leave --keep out',
      });
    }
    await this.#ends.end(mount, lazy, keep);
    const kept = await this.changes.areKept(mount.id);
    return { directory, kept: kept ? mount.id : null };
  }

  /**
   * Turns recording on or off.
   * @throws FirstlightError `not-found`, or the first of what stopped a trace from beginning or ending;
   * the other mounts have been switched by then
   */
  async trace({ on, directory, group }: TraceRequest): Promise<TraceSwitched[]> {
    const chosen = [...this.#mounts.values()].filter(
      (mount) => directory === undefined || mount.directory === directory,
    );
    if (directory !== undefined && chosen.length === 0) {
      throw new FirstlightError('not-found', `${directory} is not mounted by firstlight`, {
        hint: 'see firstlight ls',
      });
    }
    const switched = await Promise.allSettled(
      chosen.map(async ({ instance, directory, request }) => {
        const path = on ? await instance.setOptimizerOn(group) : await instance.setOptimizerOff();
        return { directory, image: request.image, group: on ? group : null, path: path ?? null };
      }),
    );
    return switched.map((outcome) => {
      if (outcome.status === 'rejected') throw toFirstlightError(outcome.reason);
      return outcome.value;
    });
  }

  /** True where the image of some mount has not arrived, and goes on arriving by itself. */
  isArriving(directory?: string): boolean {
    return [...this.#mounts.values()].some(({ directory: at, receiver }) => {
      if (directory !== undefined && at !== directory) return false;
      const { state } = receiver.progress();
      return state !== 'complete' && state !== 'failed' && stuckBy(receiver) === undefined;
    });
  }

  /** Everything that is mounted. */
  list(): Mount[] {
    return [...this.#mounts.values()];
  }

  /** Mounts as `status` shows them, or only the one at a directory. */
  async status(directory?: string): Promise<MountStatus[]> {
    return [...this.#mounts.values()]
      .filter((mount) => directory === undefined || mount.directory === directory)
      .map((mount) => describeMount(mount));
  }

  /** The kernel has ended a session: somebody has unmounted it behind our back. */
  #onEnded(id: string, error: string | undefined): void {
    const mount = this.#mounts.get(id);
    if (mount === undefined || mount.ending !== undefined) return;
    this.#log.warn({ id, directory: mount.directory, error }, 'unmounted from outside');
    mount.state = 'closed';
    this.#endQuietly(mount);
  }

  #endQuietly(mount: Mount): void {
    this.#ends.end(mount, true).catch((error: unknown) => {
      this.#log.error({ err: error, id: mount.id }, 'a mount could not be taken away');
    });
  }

  /** An overlay that was unmounted from outside leaves the session below it, which hears nothing. */
  async #lookForLost(): Promise<void> {
    const candidates = [...this.#mounts.values()].filter(
      (m) => m.state === 'mounted' && m.ending === undefined,
    );
    if (candidates.length === 0) return;
    const mounts = await mountsNow();
    for (const mount of candidates) {
      if (mount.ending !== undefined || mountAt(mounts, mount.directory) !== undefined) continue;
      this.#log.warn({ id: mount.id, directory: mount.directory }, 'unmounted from outside');
      this.#endQuietly(mount);
    }
  }

  /** Takes everything away, by force where it must be. */
  async endAll(): Promise<void> {
    clearInterval(this.#watch);
    this.#stop.abort(
      new FirstlightError('busy', 'the daemon is ending', {
        hint: 'mount again: a new one starts',
      }),
    );
    // What was too late to be stopped stands in the table by then.
    await Promise.allSettled(this.#makings);
    for (const mount of [...this.#mounts.values()].reverse()) {
      // An unmount that was under way may have found it in use: then once more, by force.
      const ended = this.#ends.end(mount, true).catch(() => this.#ends.end(mount, true));
      await ended.catch((error: unknown) => {
        this.#log.error({ err: error, id: mount.id }, 'a mount could not be taken away');
      });
    }
  }
}

/** @throws FirstlightError `unsupported` for what the portable session cannot do */
function checkModes({ rw, session }: MountRequest): void {
  if (rw !== 'fuse') return;
  if (session === 'fuse-native' || addonError() !== undefined) {
    throw new FirstlightError('unsupported', '--rw fuse needs the kernel session', {
      hint: 'mount without --session fuse-native, or with --rw overlay',
      cause: addonError(),
    });
  }
  // It takes some 100 ms, while the header is on its way.
  treeThread.prepare();
}

async function mountsNow() {
  return parseMountInfo(await readFile('/proc/self/mountinfo', 'utf8'));
}

/** Resolves when the signal is aborted. */
function aborted(signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    if (signal.aborted) resolve();
    else signal.addEventListener('abort', () => resolve(), { once: true });
  });
}
