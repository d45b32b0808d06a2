// Whether anybody answers for a mount: asked of another process, which alone hangs where the session does. What does
// not live here: what becomes of a mount that is dead (notes.ts), and paths (cli/mount-point.ts).
import { spawn } from 'node:child_process';
import { readFile } from 'node:fs/promises';
import { isBelow, type MountInfo, mountAt, mountOption, parseMountInfo } from './mountinfo.ts';

/** File system type of our mounts, as /proc/mounts shows it. */
export const FS_TYPE = 'fuse.firstlight';

/** A dead session is told at once. One that is stopped, or waits for its disk, is not dead. */
const ANSWER_MS = 3000;

/**
 * True where nobody answers for the mount at the path. Not by stat(2): the kernel goes on telling the attributes
 * that it keeps. statfs(2) is always asked of the session (fuse_statfs of fs/fuse/inode.c), and waits for it as long
 * as it takes, whatever signal comes: so another process asks, which is left alone where it gets no answer. A thread
 * would not do, since the process could not end before it.
 */
function answersNot(path: string): Promise<boolean> {
  return new Promise((resolve) => {
    const env = { ...process.env, LC_ALL: 'C' };
    const child = spawn('stat', ['-f', '--', path], {
      env,
      cwd: '/',
      stdio: ['ignore', 'ignore', 'pipe'],
    });
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

/** What stands at a directory. */
export interface MountThere {
  mount: MountInfo;
  /** A session of ours, or an overlay over one. */
  ours: boolean;
  /** It is, and its daemon is gone. */
  dead: boolean;
}

/**
 * The topmost mount at a directory, if any; known within a few seconds, whatever the state of its session, which may
 * be this process's own.
 * @param snapshots  directory of the worker's snapshots: overlays of others are left alone
 */
export async function mountThere(
  directory: string,
  snapshots: string,
): Promise<MountThere | undefined> {
  const mounts = parseMountInfo(await readFile('/proc/self/mountinfo', 'utf8'));
  const mount = mountAt(mounts, directory);
  if (mount === undefined) return undefined;
  const session = sessionOf(mount, snapshots);
  if (session === undefined) return { mount, ours: false, dead: false };
  return { mount, ours: true, dead: await answersNot(session) };
}

/**
 * Where the session of a mount of ours is to be asked. An overlay still answers for what it has in its caches, so its
 * lower layer is.
 */
function sessionOf(mount: MountInfo, snapshots: string): string | undefined {
  if (mount.fsType === FS_TYPE) return mount.mountPoint;
  const lower = mountOption(mount, 'lowerdir');
  const isOurs = mount.fsType === 'overlay' && lower !== undefined && isBelow(lower, snapshots);
  return isOurs ? lower : undefined;
}
