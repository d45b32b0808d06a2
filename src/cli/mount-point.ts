// Resolves the DIR of `mount` and `umount`. The client does it, since the daemon must never look at a
// path that may lie below one of its own mounts.
import { spawn } from 'node:child_process';
import { readFileSync, realpathSync, statSync } from 'node:fs';
import { basename, dirname, join, resolve } from 'node:path';
import {
  isBelow,
  type MountInfo,
  mountAt,
  mountOption,
  parseMountInfo,
} from '../daemon/mountinfo.ts';
import { FirstlightError } from '../errors/errors.ts';

/** Where to mount. */
export interface MountPoint {
  /** Absolute, without symbolic links. */
  directory: string;
  /** A mount stands there whose daemon is gone: it is detached first. */
  dead: boolean;
}

/** File system type of our mounts, as /proc/mounts shows it. */
const FS_TYPE = 'fuse.firstlight';

/** A dead session is told at once. One that is stopped, or waits for its disk, is not dead. */
const ANSWER_MS = 3000;

/**
 * True where nobody answers for the mount at the path. Not by stat(2): the kernel goes on telling the attributes
 * that it keeps. statfs(2) is always asked of the session (fuse_statfs of fs/fuse/inode.c), and waits for it as long
 * as it takes, whatever signal comes: so another process asks, which is left alone where it gets no answer.
 */
function answersNot(path: string): Promise<boolean> {
  return new Promise((resolve) => {
    const env = { ...process.env, LC_ALL: 'C' };
    const child = spawn('stat', ['-f', path], { env, stdio: ['ignore', 'ignore', 'pipe'] });
    let said = '';
    const settle = (dead: boolean) => {
      clearTimeout(timer);
      child.stderr.destroy();
      child.unref();
      resolve(dead);
    };
    const timer = setTimeout(() => {
      child.kill('SIGKILL');
      settle(false);
    }, ANSWER_MS);
    child.stderr.setEncoding('utf8').on('data', (chunk: string) => {
      said += chunk;
    });
    // ENOTCONN, as C libraries call it.
    child.once('close', () => settle(/not connected/.test(said)));
    // There is no such program: nothing is replaced that may be alive.
    child.once('error', () => settle(false));
  });
}

/**
 * True for a mount of ours whose daemon is gone: the session itself, or an overlay of this root over
 * one. Such an overlay still answers for what it has in its caches, so its lower layer is asked.
 */
async function isDead(mount: MountInfo, root: string): Promise<boolean> {
  if (mount.fsType === FS_TYPE) return answersNot(mount.mountPoint);
  const lower = mountOption(mount, 'lowerdir');
  if (mount.fsType !== 'overlay' || lower === undefined) return false;
  return isBelow(lower, join(root, 'snapshots')) && answersNot(lower);
}

/** The topmost mount at a directory, and whether it is a dead one of ours. */
async function mountThere(
  directory: string,
  root: string,
): Promise<{ mount: MountInfo; dead: boolean } | undefined> {
  const mount = mountAt(parseMountInfo(readFileSync('/proc/self/mountinfo', 'utf8')), directory);
  return mount === undefined ? undefined : { mount, dead: await isDead(mount, root) };
}

/** The path without symbolic links; its last component may be a dead mount (ENOTCONN). */
function realpathOfMount(path: string): string {
  try {
    return realpathSync.native(path);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ENOTCONN') throw error;
    const absolute = resolve(path);
    return join(realpathSync.native(dirname(absolute)), basename(absolute));
  }
}

/** @throws FirstlightError `busy` where the directory lies below one of our mounts */
function checkNotInside(directory: string, path: string): void {
  const mounts = parseMountInfo(readFileSync('/proc/self/mountinfo', 'utf8'));
  const above = mounts.find((m) => m.fsType === FS_TYPE && isBelow(directory, m.mountPoint));
  if (above === undefined) return;
  throw new FirstlightError('busy', `${path} lies inside the mount ${above.mountPoint}`, {
    hint: 'choose a directory outside of it',
  });
}

/**
 * Checks that DIR can be mounted on.
 * @param root  the worker's root: dead mounts of its last daemon may be replaced
 * @throws FirstlightError `not-found`, `usage` (no directory), `busy` (a mount point already)
 */
export async function resolveMountPoint(path: string, root: string): Promise<MountPoint> {
  let directory: string;
  try {
    directory = realpathOfMount(path);
  } catch (cause) {
    const code = (cause as NodeJS.ErrnoException).code;
    if (code !== 'ENOENT' && code !== 'ENOTDIR') throw cause;
    throw new FirstlightError('not-found', `${path} does not exist`, {
      hint: `make it first: mkdir -p ${path}`,
      cause,
    });
  }
  const there = await mountThere(directory, root);
  if (there?.dead === true) return { directory, dead: true };
  if (there !== undefined) {
    const { fsType, source } = there.mount;
    throw new FirstlightError('busy', `${path} is a mount point already (${fsType}, ${source})`, {
      hint: 'unmount it first, or choose another directory',
    });
  }
  if (!statSync(directory).isDirectory()) {
    throw new FirstlightError('usage', `${path} is not a directory`, {
      hint: 'give an existing directory',
    });
  }
  checkNotInside(directory, path);
  return { directory, dead: false };
}

/** The DIR of `umount` and `status`: it may be dead, and need not exist any more. */
export function resolveExistingMount(path: string): string {
  try {
    return realpathOfMount(path);
  } catch {
    // The daemon knows best which mounts there are; it gets the path as far as it can be known.
    return resolve(path);
  }
}

/** True where a mount of ours stands at the directory and no daemon answers for it. */
export async function isDeadMount(directory: string, root: string): Promise<boolean> {
  return (await mountThere(directory, root))?.dead === true;
}
