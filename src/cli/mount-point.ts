// Resolves the DIR of `mount` and `umount`. The client does it, since the daemon must never look at a
// path that may lie below one of its own mounts.
import { readFileSync, realpathSync, statSync } from 'node:fs';
import { basename, dirname, join, resolve } from 'node:path';
import { isBelow, mountAt, parseMountInfo } from '../daemon/mountinfo.ts';
import { FirstlightError } from '../errors/errors.ts';

/** Where to mount. */
export interface MountPoint {
  /** Absolute, without symbolic links. */
  directory: string;
  /** A mount stands there whose daemon is gone: it is detached first. */
  dead: boolean;
}

/** File system type of our mounts, as /proc/mounts shows it. */
export const FS_TYPE = 'fuse.firstlight';

function mounts() {
  return parseMountInfo(readFileSync('/proc/self/mountinfo', 'utf8'));
}

/** The path without symbolic links, where the last component may be a dead mount (ENOTCONN). */
function realpathOfMount(path: string): { directory: string; dead: boolean } {
  try {
    const directory = realpathSync.native(path);
    return { directory, dead: false };
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ENOTCONN') throw error;
    const absolute = resolve(path);
    return {
      directory: join(realpathSync.native(dirname(absolute)), basename(absolute)),
      dead: true,
    };
  }
}

/**
 * Checks that DIR can be mounted on.
 * @throws FirstlightError `not-found`, `usage` (no directory), `busy` (a mount point already)
 */
export function resolveMountPoint(path: string): MountPoint {
  let found: { directory: string; dead: boolean };
  try {
    found = realpathOfMount(path);
    if (!found.dead && !statSync(found.directory).isDirectory()) {
      throw new FirstlightError('usage', `${path} is not a directory`, {
        hint: 'give an existing directory',
      });
    }
  } catch (cause) {
    const code = (cause as NodeJS.ErrnoException).code;
    if (code === 'ENOENT' || code === 'ENOTDIR') {
      throw new FirstlightError('not-found', `${path} does not exist`, {
        hint: `make it first: mkdir -p ${path}`,
        cause,
      });
    }
    if (code === 'ENOTCONN') found = { directory: realpathOfMount(path).directory, dead: true };
    else throw cause;
  }
  const all = mounts();
  const there = mountAt(all, found.directory);
  if (found.dead) {
    if (there?.fsType === FS_TYPE) return found;
    throw new FirstlightError('busy', `a dead mount (${there?.fsType ?? '?'}) stands at ${path}`, {
      hint: `detach it first: umount -l ${path}`,
    });
  }
  if (there !== undefined) {
    throw new FirstlightError(
      'busy',
      `${path} is a mount point already (${there.fsType}, ${there.source})`,
      {
        hint: `unmount it first, or choose another directory`,
      },
    );
  }
  const above = all.find((m) => m.fsType === FS_TYPE && isBelow(found.directory, m.mountPoint));
  if (above !== undefined) {
    throw new FirstlightError('busy', `${path} lies inside the mount ${above.mountPoint}`, {
      hint: 'choose a directory outside of it',
    });
  }
  return found;
}

/** The DIR of `umount` and `status`: it may be dead, and need not exist any more. */
export function resolveExistingMount(path: string): string {
  try {
    return realpathOfMount(path).directory;
  } catch {
    // The daemon knows best which mounts there are; it gets the path as far as it can be known.
    return resolve(path);
  }
}
