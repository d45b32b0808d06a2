// Reads files of an image through its mount without ever leaving it: an absolute symbolic link in an
// image names a file of the image, not of this machine.
import { constants } from 'node:fs';
import { lstat, open, readlink } from 'node:fs/promises';
import { join } from 'node:path';
import { FirstlightError } from '../../errors/errors.ts';

/** As the kernel's bound on links in one lookup (path_resolution(7)). */
const LINKS_MAX = 40;
/** A user database larger than this is not read. */
const FILE_MAX_BYTES = 4 << 20;

/**
 * The place of `path` below `root`, with every symbolic link resolved as inside a chroot there.
 * @returns an absolute path of this machine, or undefined where a component does not exist
 */
export async function resolveInRoot(root: string, path: string): Promise<string | undefined> {
  const todo = path.split('/').reverse();
  const done: string[] = [];
  let links = 0;
  while (todo.length > 0) {
    const name = todo.pop();
    if (name === undefined || name === '' || name === '.') continue;
    if (name === '..') {
      done.pop();
      continue;
    }
    const place = join(root, ...done, name);
    const stat = await lstat(place).catch((error: NodeJS.ErrnoException) => {
      if (error.code === 'ENOENT' || error.code === 'ENOTDIR') return undefined;
      throw error;
    });
    if (stat === undefined) return undefined;
    if (!stat.isSymbolicLink()) {
      done.push(name);
      continue;
    }
    if (++links > LINKS_MAX) {
      throw new FirstlightError('usage', `${path} in the image is a loop of symbolic links`);
    }
    const target = await readlink(place);
    if (target.startsWith('/')) done.length = 0;
    todo.push(...target.split('/').reverse());
  }
  return join(root, ...done);
}

/** Text of a regular file of the image; undefined where there is none. */
export async function readInRoot(root: string, path: string): Promise<string | undefined> {
  const place = await resolveInRoot(root, path);
  if (place === undefined) return undefined;
  // Every link is resolved already; NOFOLLOW and NONBLOCK keep a fifo or a late link from mattering.
  const file = await open(place, constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK);
  try {
    const stat = await file.stat();
    if (!stat.isFile() || stat.size > FILE_MAX_BYTES) return undefined;
    return await file.readFile('utf8');
  } finally {
    await file.close();
  }
}
