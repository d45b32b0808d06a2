// Kernel overlayfs over a read-only session (`--rw overlay`): its directories, its options, its
// errors. What does not live here: the session below it, and the order of taking both down.
import { chmod, chown, mkdir, utimes } from 'node:fs/promises';
import { join } from 'node:path';
import { FirstlightError, toFirstlightError } from '../errors/errors.ts';
import type { NativeAddon } from '../native/index.ts';
import type { Template } from './template.ts';

/** mount(2) and umount2(2), as native gives them. */
export type Mounter = Pick<NativeAddon, 'mount' | 'umount'>;

/** Directories of one writable mount. */
export interface SnapshotDirectories {
  root: string;
  /** The read-only session is mounted here. */
  lower: string;
  upper: string;
  work: string;
}

/** Most of what mount(2) takes as data: one page. */
const OPTIONS_MAX = 4095;
const S_IPERM = 0o7777;

/** Where the directories of a snapshot are. */
export function snapshotDirectories(snapshots: string, id: string): SnapshotDirectories {
  const root = join(snapshots, id);
  return { root, lower: join(root, 'lower'), upper: join(root, 'upper'), work: join(root, 'work') };
}

/**
 * Makes the directories of a new snapshot. The merged root shows upper's own attributes, so upper
 * gets those of the image's root (its time to the microsecond, which is what Node can set).
 * @throws FirstlightError 'exists' where there is one of this id
 */
export async function makeSnapshot(dirs: SnapshotDirectories, template: Template): Promise<void> {
  try {
    await mkdir(dirs.root, { mode: 0o700 });
  } catch (cause) {
    if ((cause as NodeJS.ErrnoException).code !== 'EEXIST') throw cause;
    throw new FirstlightError('exists', `${dirs.root} is there already`, {
      hint: 'choose another name, or run "firstlight gc"',
      cause,
    });
  }
  for (const path of [dirs.lower, dirs.work, dirs.upper]) await mkdir(path, { mode: 0o755 });
  const root = template.root.attributes();
  await chown(dirs.upper, root.uid, root.gid);
  await chmod(dirs.upper, root.mode & S_IPERM);
  const seconds = root.mtimeSec + root.mtimeNsec / 1e9;
  await utimes(dirs.upper, seconds, seconds);
}

/** A path as overlayfs reads it: a comma ends an option, a colon a lower layer. */
function escapePath(path: string): string {
  return path.replace(/[\\,:]/g, '\\$&');
}

/** Options of the mount. */
export function overlayOptions(dirs: SnapshotDirectories): string {
  const { lower, upper, work } = dirs;
  return `lowerdir=${escapePath(lower)},upperdir=${escapePath(upper)},workdir=${escapePath(work)}`;
}

/** Mounts overlayfs at `target`. @throws FirstlightError that says what to do */
export async function mountOverlay(
  mounter: Mounter,
  dirs: SnapshotDirectories,
  target: string,
  source: string,
): Promise<void> {
  const options = overlayOptions(dirs);
  if (options.length > OPTIONS_MAX) {
    throw new FirstlightError('usage', `the path ${dirs.root} is too long for overlayfs`, {
      hint: 'choose a shorter --root',
    });
  }
  try {
    await mounter.mount(source, target, 'overlay', 0, options);
  } catch (cause) {
    throw overlayError(cause, dirs, target);
  }
}

function overlayError(cause: unknown, dirs: SnapshotDirectories, target: string): FirstlightError {
  const { code } = cause as NodeJS.ErrnoException;
  switch (code) {
    case 'ENODEV':
      return new FirstlightError('unsupported', 'this kernel has no overlayfs', {
        hint: 'load it with "modprobe overlay", or mount with --rw off',
        cause,
      });
    case 'EINVAL':
    case 'ELOOP':
      return new FirstlightError('unsupported', `overlayfs cannot use ${dirs.root}`, {
        hint: 'put --root on a plain filesystem such as ext4, xfs or btrfs, or mount with --rw off',
        cause,
      });
    case 'EPERM':
    case 'EACCES':
      return new FirstlightError('permission', `no permission to mount at ${target}`, {
        hint: 'run as root',
        cause,
      });
    default:
      return toFirstlightError(cause);
  }
}
