// Resolves the DIR of `mount` and `umount`. The client does it, since the daemon must never look at a
// path that may lie below one of its own mounts.
import { readFileSync, realpathSync, statSync } from 'node:fs';
import { basename, dirname, join, resolve } from 'node:path';
import { FS_TYPE, mountThere } from '../daemon/dead-mount.ts';
import { isBelow, parseMountInfo } from '../daemon/mountinfo.ts';
import { FirstlightError } from '../errors/errors.ts';

/** Where to mount. */
export interface MountPoint {
  /** Absolute, without symbolic links. */
  directory: string;
  /** A mount stands there whose daemon is gone: it is detached first. */
  dead: boolean;
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
  const there = await mountThere(directory, join(root, 'snapshots'));
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
  return (await mountThere(directory, join(root, 'snapshots')))?.dead === true;
}
