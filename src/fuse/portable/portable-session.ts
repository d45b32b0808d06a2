// The portable session: mounts the read-only tree through npm's fuse-native, where the addon cannot be
// loaded or on request (--session fuse-native). What it cannot do is listed in docs/SEMANTICS.md. What
// does not live here: answers (operations.ts).
//
// The library calls back on the JavaScript thread, which therefore must never touch the mount: while a
// program waits for an answer, the thread that owes it would wait, too.
import { constants } from 'node:fs';
import { access, readdir, readFile, readlink } from 'node:fs/promises';
import { setTimeout as sleep } from 'node:timers/promises';
import { FirstlightError, toFirstlightError } from '../../errors/errors.ts';
import type { Logger } from '../../log/log.ts';
import { native, type SessionFeatures, type SessionStats } from '../../native/index.ts';
import { MNT_DETACH, mountAt, readMounts, UMOUNT_NOFOLLOW } from '../../store/mounts.ts';
import type { Mounter } from '../../tree/overlay.ts';
import type { Accesses, Session, SessionFactory, SessionRequest } from '../../tree/session.ts';
import type { Template } from '../../tree/template.ts';
import {
  type Callbacks,
  type Library,
  type LibraryMount,
  type LibraryOptions,
  loadLibrary,
  type Reply,
} from './library.ts';
import { errnoOf, Operations } from './operations.ts';

/** libfuse answers the kernel's first request within milliseconds, or never. */
const START_TIMEOUT_MS = 15_000;
/** How often it is looked whether the kernel has let go of the mount. */
const LOOK_MS = 250;
/** Nobody else changes the tree: the kernel may keep what it knows. */
const KEEP_S = 10 * 365 * 86_400;
/** Requests for page-cache pages that may wait at a time; the kernel's default of 12 would block all other files' reads. */
const BACKGROUND_MAX = 4096;
/** An unmount waits so long for the library's threads to see it; afterwards it is left to the timer. */
const LET_GO_MS = 2000;
const DEVICE = '/dev/fuse';

export interface PortableSessionOptions {
  log: Logger;
  /** Other users may look into the mount; containers need it. */
  allowOther?: boolean;
  /** For tests. */
  library?: Library;
  mounter?: Mounter;
}

/**
 * All that the library's callbacks hold. The library never lets go of them, so what they hold must be
 * small: the operations, and with them the tree, are taken away at the end.
 */
interface Live {
  operations: Operations | undefined;
}

/** One mount after the other: each start looks for the descriptor that it has opened. */
let starting: Promise<unknown> = Promise.resolve();

/** One mount by fuse-native. Holds a use of its template until the kernel has let go of the mount. */
export class PortableSession implements Session {
  readonly #template: Template;
  readonly #request: SessionRequest;
  readonly #options: PortableSessionOptions;
  readonly #live: Live;
  #mount: LibraryMount | undefined;
  /** The library's descriptor of the device; it is closed when the kernel has let go. */
  #fd: string | undefined;
  #connection: string | undefined;
  #timer: NodeJS.Timeout | undefined;
  #ended = false;
  #lastStats: SessionStats;
  #lastAccesses: Accesses = { accesses: [], lost: 0 };

  constructor(template: Template, request: SessionRequest, options: PortableSessionOptions) {
    this.#template = template;
    this.#request = request;
    this.#options = options;
    const operations = new Operations(template, request);
    this.#live = { operations };
    this.#lastStats = operations.stats();
  }

  /**
   * Mounts and answers.
   * @throws FirstlightError 'unsupported', 'permission', 'busy', 'not-found': what stops the library
   */
  async start(): Promise<SessionFeatures> {
    if ('writable' in this.#request && this.#request.writable !== undefined) {
      throw new FirstlightError('unsupported', 'fuse-native only reads', {
        hint: 'mount with --rw overlay or --rw off, or build the native part (make native)',
      });
    }
    const library = this.#options.library ?? loadLibrary();
    await checkDevice();
    this.#template.retain();
    const run = starting.then(() => this.#start(library));
    starting = run.catch(() => undefined);
    try {
      await run;
    } catch (cause) {
      await this.#live.operations?.close();
      this.#template.release();
      throw startError(this.#request.mountPoint, cause);
    }
    this.#timer = setInterval(() => void this.#look(), LOOK_MS);
    this.#timer.unref();
    return {
      protocol: '7.26',
      transport: 'fuse-native',
      passthrough: false,
      directIoAllowMmap: false,
      threads: 1,
    };
  }

  async #start(Library: Library): Promise<void> {
    const { mountPoint, source } = this.#request;
    const before = new Set(await deviceFds());
    const mount = new Library(mountPoint, callbacksOf(this.#live), this.#libraryOptions(source));
    this.#mount = mount;
    await new Promise<void>((resolve, reject) => {
      const late = () => reject(new Error('libfuse has not answered the kernel'));
      const timer = setTimeout(late, START_TIMEOUT_MS);
      mount.mount((error) => {
        clearTimeout(timer);
        if (error === null || error === undefined) resolve();
        else reject(error);
      });
    });
    await this.#learn(before);
  }

  /** Finds the descriptor and the connection's number of what has just been mounted. */
  async #learn(before: Set<string>): Promise<void> {
    const device = mountAt(await readMounts(), this.#request.mountPoint)?.device;
    this.#connection = device?.split(':')[1];
    const fresh = (await deviceFds()).filter((fd) => !before.has(fd));
    for (const fd of fresh) {
      const connection = await connectionOf(fd);
      // Older kernels do not tell the number; then it is the only new one, as nearly always.
      if (connection === this.#connection || (connection === undefined && fresh.length === 1)) {
        this.#fd = fd;
      }
    }
  }

  #libraryOptions(source: string): LibraryOptions {
    const more = [
      ...['ro', 'dev', 'suid', 'use_ino', 'readdir_ino'],
      ...['entry', 'attr', 'negative'].map((what) => `${what}_timeout=${KEEP_S}`),
      `max_background=${BACKGROUND_MAX}`,
      `congestion_threshold=${BACKGROUND_MAX}`,
    ];
    return {
      timeout: false,
      allowOther: this.#options.allowOther ?? true,
      defaultPermissions: true,
      kernelCache: true,
      fsname: source.replace(/[\\,]/g, '\\$&'),
      subtype: ['firstlight', ...more].join(','),
    };
  }

  /** Ends the session where the kernel has let go. */
  async #look(): Promise<void> {
    if (this.#ended) return;
    if (!(await this.#isGone()) || this.#ended) return;
    await this.#end();
  }

  async #isGone(): Promise<boolean> {
    const fd = this.#fd;
    if (fd !== undefined) {
      const target = await readlink(`/proc/self/fd/${fd}`).catch(() => '');
      if (target !== DEVICE) return true;
      // Closed, and opened again for another mount.
      const connection = await connectionOf(fd);
      return connection !== undefined && connection !== this.#connection;
    }
    // Not known: what is no longer to be seen is taken for gone.
    const mounts = await readMounts();
    return !mounts.some(({ device }) => device === `0:${this.#connection}`);
  }

  async #end(): Promise<void> {
    this.#ended = true;
    clearInterval(this.#timer);
    const { operations } = this.#live;
    this.#live.operations = undefined;
    if (operations !== undefined) {
      this.#lastStats = operations.stats();
      await operations.close();
      this.#lastAccesses = operations.accesses.take();
      const { hiddenNames } = operations;
      const { log } = this.#options;
      if (hiddenNames > 0) log.warn({ hiddenNames }, 'names that are no UTF-8 were left out');
    }
    // Lets go of the event loop; the library's own unmount does nothing (library.ts).
    this.#mount?.unmount(() => undefined);
    this.#mount = undefined;
    this.#template.release();
    this.#request.onClosed(undefined);
  }

  /**
   * Unmounts. A mount that is gone already is success. With `detach`, whoever waits for content gets
   * EIO, and files that are there stay readable to those who have them open.
   * @throws FirstlightError 'busy' where it is in use and not to be detached
   */
  async unmount(detach: boolean): Promise<void> {
    if (this.#ended) return;
    const { mountPoint } = this.#request;
    const { umount } = this.#options.mounter ?? native();
    try {
      await umount(mountPoint, UMOUNT_NOFOLLOW | (detach ? MNT_DETACH : 0));
    } catch (cause) {
      const { code } = cause as NodeJS.ErrnoException;
      if (code === 'EBUSY') {
        throw new FirstlightError('busy', `${mountPoint} is in use`, {
          hint: 'end the programs that use it, or unmount it with --lazy',
          cause,
        });
      }
      if (code !== 'EINVAL' && code !== 'ENOENT') throw cause;
    }
    if (detach) this.#live.operations?.endWaits();
    await this.#letGo(detach ? 0 : LET_GO_MS);
  }

  /** The kernel lets go a moment after an unmount; who still uses a detached mount keeps it for longer. */
  async #letGo(withinMs: number): Promise<void> {
    const deadline = performance.now() + withinMs;
    for (;;) {
      await this.#look();
      if (this.#ended || performance.now() >= deadline) return;
      await sleep(10);
    }
  }

  /** Counters since the mount; they stay after its end. */
  stats(): SessionStats {
    return this.#live.operations?.stats() ?? { ...this.#lastStats };
  }

  setTracing(on: boolean): void {
    this.#live.operations?.accesses.setTracing(on);
  }

  takeTrace(): Accesses {
    const taken = this.#live.operations?.accesses.take() ?? this.#lastAccesses;
    this.#lastAccesses = { accesses: [], lost: 0 };
    return taken;
  }
}

/** Answers requests by the operations, and with EIO when they have ended. */
function callbacksOf(live: Live): Callbacks {
  const operations = (): Operations => {
    // EIO for whoever asks: errnoOf knows nothing better.
    if (live.operations === undefined) throw new Error('the session has ended');
    return live.operations;
  };
  /** Answers with what `work` gives, or with the errno of what it throws. */
  const give = <T>(reply: Reply<[T?]>, work: (tree: Operations) => T): void => {
    try {
      reply(0, work(operations()));
    } catch (error) {
      reply(-errnoOf(error));
    }
  };
  const read = async (handle: number, buffer: Buffer, bytes: number, offset: number) =>
    operations().read(handle, buffer, bytes, offset);
  return {
    getattr: (path, reply) => give(reply, (tree) => tree.getattr(path)),
    readdir: (path, reply) => give(reply, (tree) => tree.readdir(path)),
    readlink: (path, reply) => give(reply, (tree) => tree.readlink(path)),
    statfs: (_path, reply) => give(reply, (tree) => tree.statfs()),
    open: (path, flags, reply) => give(reply, (tree) => tree.open(path, flags)),
    read: (_path, handle, buffer, bytes, offset, reply) => {
      read(handle, buffer, bytes, offset).then(reply, (error: unknown) => reply(-errnoOf(error)));
    },
    release: (_path, handle, reply) => {
      const released = live.operations?.release(handle) ?? Promise.resolve();
      // Nobody hears of an error of a close.
      released.then(
        () => reply(0),
        () => reply(0),
      );
    },
  };
}

/** Makes portable sessions that share `options`; what FsInstance takes. */
export function portableSessions(options: PortableSessionOptions): SessionFactory {
  return (template, request) => new PortableSession(template, request, options);
}

/** Descriptors of this process that name the device. */
async function deviceFds(): Promise<string[]> {
  const found: string[] = [];
  for (const fd of await readdir('/proc/self/fd')) {
    // The descriptor of the listing itself is gone by now.
    const target = await readlink(`/proc/self/fd/${fd}`).catch(() => '');
    if (target === DEVICE) found.push(fd);
  }
  return found;
}

/** Number of the connection that a descriptor serves, where the kernel tells it (fdinfo, Linux 6.18). */
async function connectionOf(fd: string): Promise<string | undefined> {
  const text = await readFile(`/proc/self/fdinfo/${fd}`, 'utf8').catch(() => '');
  return /^fuse_connection:\s*(\d+)$/m.exec(text)?.[1];
}

async function checkDevice(): Promise<void> {
  try {
    await access(DEVICE, constants.R_OK | constants.W_OK);
  } catch (cause) {
    const { code } = cause as NodeJS.ErrnoException;
    if (code === 'EACCES' || code === 'EPERM') {
      throw new FirstlightError('permission', `${DEVICE} may not be opened here`, {
        hint: 'run as root; in a container, pass the device in (--device /dev/fuse --cap-add SYS_ADMIN)',
        cause,
      });
    }
    throw new FirstlightError('unsupported', 'this kernel has no FUSE', {
      hint: 'load it with "modprobe fuse", and see "firstlight doctor"',
      cause,
    });
  }
}

/** What stopped a mount, in words that say what to do. The library tells little. */
function startError(mountPoint: string, cause: unknown): FirstlightError {
  if (cause instanceof FirstlightError) return cause;
  const { message } = toFirstlightError(cause);
  if (/does not exist/.test(message)) {
    return new FirstlightError('not-found', `there is no directory ${mountPoint}`, { cause });
  }
  if (/not a directory/.test(message)) {
    return new FirstlightError('usage', `${mountPoint} is not a directory`, { cause });
  }
  if (/in use/.test(message)) {
    return new FirstlightError('busy', `${mountPoint} is a mount point already`, {
      hint: 'unmount it first, or choose another directory',
      cause,
    });
  }
  return new FirstlightError('unsupported', `fuse-native cannot mount at ${mountPoint}`, {
    hint: 'its own words stand in the log of the daemon; mounting needs root',
    cause,
  });
}
