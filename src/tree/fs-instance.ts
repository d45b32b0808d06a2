// One mount of an image: its template, its session and, where it is writable, the directories that
// changes go to, with kernel overlayfs above the session or our own tree behind it.
// What does not live here: where the contents come from (receive/), and the kernel's protocol (fuse/).
//
// Nothing here touches the mount itself: the process that answers a mount would wait for itself.
// Only mount(2) and umount2(2) are called on it, on pool threads, while native threads answer.
import { FirstlightError } from '../errors/errors.ts';
import type { Logger } from '../log/log.ts';
import { native, OPENS, type SessionFeatures, type SessionStats } from '../native/index.ts';
import { MNT_DETACH, UMOUNT_NOFOLLOW } from '../store/mounts.ts';
import { type Mounter, mountOverlay } from './overlay.ts';
import { OwnMount } from './own-mount.ts';
import { Recorder, type TraceSink } from './recorder.ts';
import type { Session, SessionFactory, TreeStats } from './session.ts';
import {
  dropSnapshot,
  makeSnapshot,
  resumeSnapshot,
  type SnapshotDirectories,
  type SnapshotRecord,
  setState,
  snapshotDirectories,
  writeRecord,
} from './snapshot.ts';
import type { Template } from './template.ts';

/** How what a container writes is kept. */
export type RwMode =
  /** Kernel overlayfs over the read-only session. */
  | 'overlay'
  /** Our own writable tree: the session takes changes itself. */
  | 'fuse'
  /** Read-only. */
  | 'off';

/** What one mount is made of. */
export interface FsInstanceOptions {
  /** Name of the snapshot, unique in the store: letters, digits, `-`, `_` and `.`. */
  id: string;
  template: Template;
  /** Absolute path of an existing directory, free of symlinks; the caller has resolved it. */
  mountPoint: string;
  /** What /proc/mounts shows as the source: the image's name. */
  source: string;
  rw: RwMode;
  /** The store's snapshots directory. */
  snapshots: string;
  /** The snapshot of this id is there, and its changes are to be found again. */
  resume?: boolean;
  /** What is written outlives the mount, whatever ends it. */
  keep?: boolean;
  makeSession: SessionFactory;
  /** Bound of a single wait for content, in ms; 0 = none. */
  waitTimeoutMs: number;
  /** Where wants go: `Receiver.wanted`. */
  wanted(content: number, firstPart: number, lastPart: number): void;
  /** The mount has ended without `teardown`: unmounted by hand, or its session died of `error`. */
  onEnded?(error: string | undefined): void;
  /** Where traces go; without it nothing can be recorded. */
  traces?: TraceSink;
  log: Logger;
  mounter?: Mounter;
}

/** A moment of one mount. */
export interface FsInstanceStatus {
  id: string;
  /** Manifest digest of the image. */
  digest: string;
  mountPoint: string;
  rw: RwMode;
  /** Group that its accesses are recorded for, or undefined. */
  optimizeGroup: string | undefined;
  /** ms since 1970; 0 before `start` has ended. */
  mountedAt: number;
  features: MountFeatures | undefined;
  stats: SessionStats | undefined;
  /** Of `rw: 'fuse'`. */
  tree: TreeStats | undefined;
}

/** What a mount's session does now. */
export interface MountFeatures extends SessionFeatures {
  /** `unseen`: the kernel opens files without asking; what is recorded of them comes by `watchOpens`. */
  opens: 'seen' | 'unseen';
}

/** How a mount is taken down. */
export interface TeardownOptions {
  /** Lazily: from the tree at once, for good when the last file is closed. */
  detach?: boolean;
  /** What was written outlives the mount, until it is removed by name. */
  keep?: boolean;
}

const ID = /^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$/;

/** One mount. `start` once, `teardown` as often as you like. */
export class FsInstance {
  readonly #options: FsInstanceOptions;
  readonly #mounter: Mounter;
  readonly #dirs: SnapshotDirectories;
  #session: Session | undefined;
  #features: SessionFeatures | undefined;
  /** What has to be undone, newest last. */
  readonly #undo: ((options: TeardownOptions) => Promise<void>)[] = [];
  #mountedAt = 0;
  /** Record of a snapshot that was there, as it was found. */
  #resumed: SnapshotRecord | undefined;
  /** Group to record for from the start. */
  #group: string | undefined;
  #recorder: Recorder | undefined;
  /** A trace is being recorded, or is about to be. */
  #isTraced = false;
  /** Opens are unseen, and the session hears of them all the same. */
  #watches = false;
  /** Where the session is mounted. */
  #own: OwnMount | undefined;
  #unwatchComplete: (() => void) | undefined;
  /** Turning recording on and off, one after the other. */
  #switching: Promise<unknown> = Promise.resolve();
  #teardown: Promise<void> | undefined;
  readonly #released = Promise.withResolvers<void>();
  #sessionEnded = false;
  /** The session died: nobody asked for its end. */
  #died = false;
  #retained = true;

  /** Takes one use of the template, given back when the mount is down. */
  constructor(options: FsInstanceOptions) {
    if (!ID.test(options.id)) {
      throw new FirstlightError('usage', `"${options.id}" cannot be the name of a mount`, {
        hint: 'use letters, digits, "-", "_" and "."',
      });
    }
    this.#options = options;
    this.#mounter = options.mounter ?? native();
    this.#dirs = snapshotDirectories(options.snapshots, options.id);
    options.template.retain();
  }

  get id(): string {
    return this.#options.id;
  }

  get mountPoint(): string {
    return this.#options.mountPoint;
  }

  /**
   * Mounts. On an error everything is undone before it rejects.
   * @throws FirstlightError that says what to do
   */
  async start(): Promise<void> {
    if (this.#mountedAt !== 0) throw new FirstlightError('internal', 'the mount has been started');
    const { rw, mountPoint, source } = this.#options;
    try {
      if (rw === 'off') {
        await this.#startSession(mountPoint);
      } else {
        await this.#takeSnapshot();
        if (rw === 'fuse') {
          await this.#startSession(mountPoint, this.#dirs);
        } else {
          await this.#startSession(this.#dirs.lower);
          await mountOverlay(this.#mounter, this.#dirs, mountPoint, source);
          const own = await OwnMount.at(mountPoint);
          this.#undo.push((options) => this.#unmountOverlay(own, options));
        }
      }
      this.#mountedAt = Date.now();
    } catch (error) {
      await this.teardown({ detach: true }).catch((cause: unknown) => {
        // The first error is the one to show; this one says what it left behind.
        this.#options.log.error({ err: cause, mountPoint }, 'a mount that failed was not undone');
      });
      throw error;
    }
  }

  async #takeSnapshot(): Promise<void> {
    const { template, source, mountPoint, resume, keep } = this.#options;
    const now = { digest: template.digest, source, mountPoint };
    if (resume === true) this.#resumed = await resumeSnapshot(this.#dirs, now);
    else {
      await makeSnapshot(this.#dirs, template, { ...now, createdAt: Date.now(), state: 'mounted' });
    }
    this.#undo.push((options) => this.#discard(options));
    if (keep === true) await setState(this.#dirs, 'kept');
  }

  async #startSession(mountPoint: string, writable?: SnapshotDirectories): Promise<void> {
    const { template, source, waitTimeoutMs, wanted, makeSession, log } = this.#options;
    const session = makeSession(template, {
      mountPoint,
      source,
      waitTimeoutMs,
      ...(writable && { writable: { upper: writable.upper, work: writable.work } }),
      onWanted: wanted,
      onTimeout: (content, waitedMs) => {
        const path = template.toc.path(template.toc.firstRow(content));
        const file = Buffer.from(path, 'latin1').toString('utf8');
        log.error({ file, waitedMs }, 'a read was given up: its content did not arrive in time');
      },
      onClosed: (error) => this.#closed(error),
    });
    this.#session = session;
    // Before the first request can come.
    if (this.#group !== undefined) await this.#record(this.#group);
    else this.#tellOpens();
    this.#unwatchComplete = template.watchComplete(() => this.#tellOpens());
    this.#features = await session.start();
    const own = await OwnMount.at(mountPoint);
    this.#own = own;
    this.#undo.push(async ({ detach }) => {
      if ((await own?.place()) !== 'gone') return session.unmount(detach === true);
      // One that is gone ends when its last user goes: the session tells. Until then it writes.
      if (writable === undefined || detach === true || this.#sessionEnded) return;
      throw new FirstlightError('busy', `${mountPoint} was unmounted, and is in use elsewhere`, {
        hint: 'end the containers that have it in a mount namespace of their own',
      });
    });
  }

  /** Resolves when nobody uses the mount any more: after a lazy unmount, when the last user has gone. */
  get released(): Promise<void> {
    return this.#released.promise;
  }

  #closed(error: string | undefined): void {
    if (error !== undefined) this.#died = true;
    this.#sessionEnded = true;
    this.#released.resolve();
    // During a teardown that is what was wanted.
    if (this.#teardown !== undefined) return;
    const { log, mountPoint, onEnded } = this.#options;
    if (error === undefined) log.info({ mountPoint }, 'unmounted from outside');
    else log.error({ mountPoint, error }, 'the session of a mount died');
    onEnded?.(error);
  }

  async #unmountOverlay(own: OwnMount | undefined, { detach }: TeardownOptions): Promise<void> {
    const { mountPoint } = this.#options;
    if ((await own?.place()) === 'gone') return;
    const flags = UMOUNT_NOFOLLOW | (detach === true ? MNT_DETACH : 0);
    try {
      await this.#mounter.umount(mountPoint, flags);
    } catch (cause) {
      const { code } = cause as NodeJS.ErrnoException;
      // Not a mount point, or gone: somebody was faster.
      if (code === 'EINVAL' || code === 'ENOENT') return;
      if (code !== 'EBUSY') throw cause;
      throw new FirstlightError('busy', `${mountPoint} is in use`, {
        hint: 'end the programs that use it, or unmount it with --lazy',
        cause,
      });
    }
  }

  /** Removes the snapshot, unless it is to be kept or may still be written to. */
  async #discard({ detach, keep }: TeardownOptions): Promise<void> {
    const failed = this.#mountedAt === 0;
    // A mount that could not be made has changed nothing.
    if (failed && this.#resumed !== undefined) return writeRecord(this.#dirs, this.#resumed);
    if (keep === true) await setState(this.#dirs, 'kept');
    // As after a killed daemon: the next mount finds it.
    else if (this.#died) return;
    else if (detach === true && !failed) await setState(this.#dirs, 'dropped');
    else await dropSnapshot(this.#dirs);
  }

  /**
   * Unmounts in the reverse order. Where a step fails, what was above it is down, and the next call
   * goes on with that step. One call at a time does the work; the others share its outcome.
   * @throws FirstlightError 'busy' where the mount is in use and `detach` is not set
   */
  teardown(options: TeardownOptions = {}): Promise<void> {
    this.#teardown ??= this.#takeDown(options).catch((error: unknown) => {
      this.#teardown = undefined;
      throw error;
    });
    return this.#teardown;
  }

  async #takeDown(options: TeardownOptions): Promise<void> {
    for (let step = this.#undo.at(-1); step !== undefined; step = this.#undo.at(-1)) {
      await step(options);
      this.#undo.pop();
    }
    if (!this.#retained) return;
    this.#retained = false;
    this.#unwatchComplete?.();
    // After the session: what waited at its end is in the trace.
    await this.#switch(() => this.#stopRecording()).catch((error: unknown) => {
      // The mount is down all the same, and the journal is kept for the next daemon.
      this.#options.log.error({ err: error }, 'a trace could not be written');
    });
    this.#options.template.release();
  }

  /**
   * Opens are what traces are made of, and what reading costs most. So they are seen while a trace is recorded,
   * and while contents arrive, which opens wait for; from then on the kernel opens alone, for good.
   * @returns false where they are unseen already
   */
  #tellOpens(): boolean {
    const unseen = this.#options.template.complete ? OPENS.Unseen : OPENS.Cached;
    return this.#session?.setOpens?.(this.#isTraced ? OPENS.Seen : unseen) ?? true;
  }

  /**
   * Records this mount's accesses for a group, from the start where it has not begun, else from now
   * on. A run that is being recorded is finished first, and this one begins anew.
   * @returns path of the trace of the run before; undefined where there was none, or nothing seen
   * @throws FirstlightError where the trace cannot be begun; 'unsupported' where opens are unseen, and the
   * kernel does not tell of them
   */
  setOptimizerOn(group: string): Promise<string | undefined> {
    return this.#switch(async () => {
      if (this.#session === undefined && this.#mountedAt === 0) {
        this.#group = group;
        return undefined;
      }
      try {
        // Opens stay seen between the two.
        const path = await this.#stopRecording();
        await this.#record(group);
        return path;
      } catch (error) {
        await this.#unwatch();
        this.#endTraced();
        throw error;
      }
    });
  }

  #endTraced(): void {
    this.#isTraced = false;
    this.#tellOpens();
  }

  /**
   * Ends the recording.
   * @returns path of its trace; undefined where nothing was recorded, or nothing seen
   * @throws FirstlightError where it cannot be written; its journal stays
   */
  setOptimizerOff(): Promise<string | undefined> {
    return this.#switch(() => this.#stopRecording().finally(() => this.#endTraced()));
  }

  /** Group that accesses are recorded for now. */
  get optimizeGroup(): string | undefined {
    return this.#recorder?.group ?? this.#group;
  }

  #switch<T>(work: () => Promise<T>): Promise<T> {
    const done = this.#switching.then(work);
    // Its caller hears of the error; the next one in the line does not.
    this.#switching = done.catch(() => undefined);
    return done;
  }

  async #record(group: string): Promise<void> {
    const { traces, template, source, log } = this.#options;
    const session = this.#session;
    if (traces === undefined || session === undefined || !this.#retained) {
      throw new FirstlightError('unsupported', 'this mount cannot be recorded');
    }
    this.#isTraced = true;
    if (!this.#tellOpens()) await this.#watch(session);
    const options = { sink: traces, group, image: source, template, session, log };
    this.#recorder = await Recorder.start(options);
    // From the start of the recording on: what is read meanwhile is forgotten, too.
    if (this.#watches) await session.forgetReads?.();
    this.#group = undefined;
    log.info({ group, trace: this.#recorder.id }, 'recording');
  }

  /** Hears of opens that the kernel makes alone. @throws FirstlightError 'unsupported' where it cannot */
  async #watch(session: Session): Promise<void> {
    const { mountPoint } = this.#options;
    try {
      if (session.watchOpens === undefined) throw new Error('this session cannot');
      if ((await this.#own?.place()) === 'gone') throw new Error('it was unmounted');
      await session.watchOpens();
      this.#watches = true;
    } catch (cause) {
      const reason = cause instanceof Error ? cause.message : String(cause);
      throw new FirstlightError(
        'unsupported',
        `nothing can be recorded of ${mountPoint}: the kernel opens its files without asking, and they cannot be watched (${reason})`,
        { hint: 'mount it anew with --trace GROUP, or with --opens seen', cause },
      );
    }
  }

  async #unwatch(): Promise<void> {
    if (!this.#watches) return;
    this.#watches = false;
    await this.#session?.unwatchOpens?.();
  }

  async #stopRecording(): Promise<string | undefined> {
    // First: what was opened before belongs to the trace.
    await this.#unwatch();
    const recorder = this.#recorder;
    this.#group = undefined;
    this.#recorder = undefined;
    const path = await recorder?.stop();
    if (path !== undefined) this.#options.log.info({ path }, 'recorded');
    return path;
  }

  status(): FsInstanceStatus {
    const { id, template, mountPoint, rw } = this.#options;
    const stats = this.#session?.stats();
    const opens = stats?.opensUnseen === true ? 'unseen' : 'seen';
    return {
      id,
      digest: template.digest,
      mountPoint,
      rw,
      optimizeGroup: this.optimizeGroup,
      mountedAt: this.#mountedAt,
      features: this.#features && { ...this.#features, opens },
      stats,
      tree: this.#session?.treeStats?.(),
    };
  }
}
