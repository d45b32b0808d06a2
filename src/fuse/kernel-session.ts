// The kernel's side of a mount: wraps the native session in the tree's Session interface, and turns
// errnos into errors that say what to do. What does not live here: policy (tree/, receive/) and the
// protocol itself (native/).
import { FirstlightError } from '../errors/errors.ts';
import {
  type NativeAddon,
  type NativeSession,
  native,
  type Opens,
  type SessionFeatures,
  type SessionStats,
} from '../native/index.ts';
import type {
  Accesses,
  Session,
  SessionFactory,
  SessionRequest,
  TreeStats,
} from '../tree/session.ts';
import type { Template } from '../tree/template.ts';
import { readRecords } from './trace-records.ts';
import { TreeLink } from './tree-link.ts';
import type { TreeThread } from './tree-thread.ts';

/** How the kernel is spoken to, the same for all mounts of a process. */
export interface KernelSessionOptions {
  /** Threads that answer requests of one mount; 0 = one for each CPU, at most 4. */
  threads?: number;
  /** false: do without passthrough, as on a kernel that lacks it. */
  passthrough?: boolean;
  /** The kernel may be left to open files alone, where the tree says so (opens.ts). */
  unseenOpens?: boolean;
  /** Other users may look into the mount; containers need it. */
  allowOther?: boolean;
  /** Addon and tree's thread to use; tests give others. */
  addon?: NativeAddon;
  treeThread?: TreeThread;
}

/**
 * One mount by the kernel's FUSE. It holds a use of its template until the kernel has let go of the
 * mount, which may be long after a lazy unmount.
 */
export class KernelSession implements Session {
  readonly #template: Template;
  readonly #mountPoint: string;
  readonly #session: NativeSession;
  /** Of a writable session. */
  readonly #tree: TreeLink | undefined;
  readonly #unseenOpens: boolean;

  constructor(template: Template, request: SessionRequest, options: KernelSessionOptions = {}) {
    this.#template = template;
    this.#mountPoint = request.mountPoint;
    this.#unseenOpens = options.unseenOpens === true && request.writable === undefined;
    this.#tree = request.writable && new TreeLink(template, request, options.treeThread);
    const { Session: NativeSession } = options.addon ?? native();
    this.#session = new NativeSession(template.native, {
      mountPoint: request.mountPoint,
      source: request.source,
      threads: options.threads ?? 0,
      waitTimeoutMs: request.waitTimeoutMs,
      passthrough: options.passthrough ?? true,
      allowOther: options.allowOther ?? true,
      writable: request.writable !== undefined,
      onWanted: request.onWanted,
      onTimeout: request.onTimeout,
      onClosed: (error) => {
        const end = () => {
          template.release();
          request.onClosed(error);
        };
        if (this.#tree === undefined) end();
        else void this.#tree.close(this.#session.channel).then(end);
      },
    });
  }

  /**
   * Mounts and answers.
   * @throws FirstlightError 'permission', 'unsupported', 'busy', 'not-found': what stops mount(2); and
   * what stops a writable tree from being opened
   */
  async start(): Promise<SessionFeatures> {
    await this.#tree?.open(this.#session.channel);
    this.#template.retain();
    try {
      return await this.#session.start();
    } catch (cause) {
      await this.#tree?.close(this.#session.channel);
      this.#template.release();
      throw startError(this.#mountPoint, cause);
    }
  }

  /**
   * Unmounts. A mount that is gone already is success. With `detach`, whoever waits for content gets
   * EIO, and files that are there stay readable to those who have them open; without it a writable tree
   * is closed then.
   * @throws FirstlightError 'busy' where it is in use and not to be detached
   */
  async unmount(detach: boolean): Promise<void> {
    try {
      await this.#session.unmount(detach);
      if (!detach) await this.#tree?.closed();
    } catch (cause) {
      const { code } = cause as NodeJS.ErrnoException;
      if (code !== 'EBUSY') throw cause;
      throw new FirstlightError('busy', `${this.#mountPoint} is in use`, {
        hint: 'end the programs that use it, or unmount it with --lazy',
        cause,
      });
    }
  }

  /** Ends the session at once, also for those who still use a mount that was detached. */
  async abort(): Promise<void> {
    await this.#session.abort();
  }

  /** Counters since the mount; they stay after its end. */
  stats(): SessionStats {
    return this.#session.stats();
  }

  /** Counters of the tree; undefined of a read-only session. */
  treeStats(): TreeStats | undefined {
    return this.#tree?.stats();
  }

  setOpens(opens: Opens): boolean {
    return this.#unseenOpens ? this.#session.setOpens(opens) : true;
  }

  watchOpens(): Promise<void> {
    return this.#session.watchOpens();
  }

  unwatchOpens(): Promise<void> {
    return this.#session.unwatchOpens();
  }

  forgetReads(): Promise<void> {
    return this.#session.forgetReads();
  }

  setTracing(on: boolean): void {
    this.#session.setTracing(on);
  }

  takeTrace(): Accesses {
    return readRecords(this.#session.takeTrace());
  }
}

/** Makes kernel sessions that share `options`; what FsInstance takes. */
export function kernelSessions(options: KernelSessionOptions = {}): SessionFactory {
  return (template, request) => new KernelSession(template, request, options);
}

/** What stopped a mount, in words that say what to do. */
function startError(mountPoint: string, cause: unknown): FirstlightError {
  const { code, message } = cause as NodeJS.ErrnoException;
  const device = message.includes('/dev/fuse');
  switch (code) {
    case 'EACCES':
    case 'EPERM':
      return device
        ? new FirstlightError('permission', '/dev/fuse may not be opened here', {
            hint: 'run as root; in a container, pass the device in (--device /dev/fuse --cap-add SYS_ADMIN)',
            cause,
          })
        : new FirstlightError('permission', `${mountPoint} may not be mounted on`, {
            hint: 'run as root; in a container, add the capability SYS_ADMIN',
            cause,
          });
    case 'ENOENT':
    case 'ENXIO':
    case 'ENODEV':
      if (code === 'ENOENT' && !device) {
        return new FirstlightError('not-found', `there is no directory ${mountPoint}`, { cause });
      }
      return new FirstlightError('unsupported', 'this kernel has no FUSE', {
        hint: 'load it with "modprobe fuse", and see "firstlight doctor"',
        cause,
      });
    case 'ENOTDIR':
      return new FirstlightError('usage', `${mountPoint} is not a directory`, { cause });
    case 'ENOTCONN':
      return new FirstlightError('busy', `a dead mount stands at ${mountPoint}`, {
        hint: `remove it with "umount -l ${mountPoint}"`,
        cause,
      });
    case 'EBUSY':
      return new FirstlightError('busy', `${mountPoint} is in use`, { cause });
    case 'EPROTO':
      return new FirstlightError('unsupported', `this kernel is too old: ${message}`, {
        hint: 'Linux 5.4 or later is needed',
        cause,
      });
    default:
      return new FirstlightError('internal', `mount at ${mountPoint}: ${message}`, { cause });
  }
}
