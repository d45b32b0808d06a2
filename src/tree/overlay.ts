// Kernel overlayfs over a read-only session (`--rw overlay`): its options, its errors. What does not
// live here: its directories (snapshot.ts), the session below it, and the order of taking both down.
import { FirstlightError, toFirstlightError } from '../errors/errors.ts';
import type { NativeAddon } from '../native/index.ts';
import type { SnapshotDirectories } from './snapshot.ts';

/** mount(2) and umount2(2), as native gives them. */
export type Mounter = Pick<NativeAddon, 'mount' | 'umount'>;

/** Most of what mount(2) takes as data: one page. */
const OPTIONS_MAX = 4095;

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
