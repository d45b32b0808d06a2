// Mounts that a dead daemon left behind, found in /proc/self/mountinfo: reading that file touches no
// mount, while a stat of a dead one fails and of a live one of ours could deadlock.
import { readFile } from 'node:fs/promises';
import type { Logger } from '../log/log.ts';
import { native } from '../native/index.ts';

/** umount2(2): detach at once, clean up when no longer busy. */
export const MNT_DETACH = 2;
/** umount2(2): do not follow a symbolic link at the end of the path. */
export const UMOUNT_NOFOLLOW = 8;

/** One line of mountinfo (proc(5)), as far as it matters here. */
export interface MountLine {
  /** Names the mount as long as it lives; may be given to another afterwards. */
  id: number;
  /** `major:minor` of the filesystem. */
  device: string;
  mountPoint: string;
  type: string;
  source: string;
  /** Per-superblock options, still escaped as overlayfs and the kernel wrote them. */
  options: string;
}

/** Octal escapes of mountinfo: space, tab, newline and backslash. */
function fromOctal(text: string): string {
  const bytes = text.replace(/\\([0-7]{3})/g, (_, octal: string) =>
    String.fromCharCode(Number.parseInt(octal, 8)),
  );
  return Buffer.from(bytes, 'latin1').toString('utf8');
}

/** Parses mountinfo, oldest mount first. */
export function parseMountInfo(text: string): MountLine[] {
  const lines: MountLine[] = [];
  for (const line of text.split('\n')) {
    const [left, right] = line.split(' - ');
    const [id = '', , device = '', , mountPoint] = left?.split(' ') ?? [];
    const [type, source, options] = right?.split(' ') ?? [];
    if (mountPoint === undefined || type === undefined) continue;
    lines.push({
      id: Number(id),
      device,
      mountPoint: fromOctal(mountPoint),
      type,
      source: fromOctal(source ?? ''),
      options: fromOctal(options ?? ''),
    });
  }
  return lines;
}

/** The mounts of this process' mount namespace, oldest first. */
export async function readMounts(): Promise<MountLine[]> {
  return parseMountInfo(await readFile('/proc/self/mountinfo', 'latin1'));
}

/** The topmost mount at exactly this path; undefined where there is none. */
export function mountAt(mounts: MountLine[], path: string): MountLine | undefined {
  return mounts.findLast(({ mountPoint }) => mountPoint === path);
}

/**
 * Mounts that stand on or below `directory`, or whose overlay has a layer there, newest first: the
 * order in which they can be taken down.
 */
export function mountsOf(directory: string, mounts: MountLine[]): MountLine[] {
  const below = (path: string) => path === directory || path.startsWith(`${directory}/`);
  const layered = (mount: MountLine) =>
    mount.type === 'overlay' && plain(mount.options).includes(`=${directory}/`);
  return mounts.filter((mount) => below(mount.mountPoint) || layered(mount)).reverse();
}

/** Overlay options without the backslashes that protect commas and colons in paths. */
function plain(options: string): string {
  return options.replace(/\\(.)/g, '$1');
}

/**
 * Detaches what a dead daemon of this store left mounted. Call it only while holding the store's
 * lock, before anything is mounted.
 */
export async function detachStaleMounts(snapshots: string, log: Logger): Promise<void> {
  for (const { mountPoint } of mountsOf(snapshots, await readMounts())) {
    try {
      await native().umount(mountPoint, MNT_DETACH | UMOUNT_NOFOLLOW);
      log.info({ mountPoint }, 'detached a mount that an earlier daemon left');
    } catch (error) {
      // Not ours to take down (no privilege, another namespace): the next mount will say more.
      log.warn({ err: error, mountPoint }, 'a mount that an earlier daemon left stays');
    }
  }
}
