// A filesystem of a bench's own: ext4 with a journal, on a loop device. What does not live here: what is put
// on it.
//
// Writes are compared on it, since the machine's own filesystem may be one whose cost hangs on what others
// have done: ext4 without a journal looks, for every new file, through all inodes of the block group that were
// removed in the last minutes (recently_deleted of fs/ext4/ialloc.c), and that group is another one for
// each side.
import { execFileSync } from 'node:child_process';
import { truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import type { Workspace } from './workspace.ts';

/** Makes the filesystem, mounts it until the bench ends, and gives its directory. @param gigabytes  sparse */
export function makeDisk(space: Workspace, gigabytes: number): string {
  const file = join(space.directory, 'disk.img');
  writeFileSync(file, '');
  truncateSync(file, gigabytes * 2 ** 30);
  // All of it initialised now, so that nothing is in the background later.
  const features = ['-O', 'has_journal', '-E', 'lazy_itable_init=0,lazy_journal_init=0,nodiscard'];
  execFileSync('mkfs.ext4', ['-q', '-F', ...features, file]);
  const directory = space.makeDirectory('disk');
  execFileSync('mount', ['-o', 'loop', file, directory]);
  return directory;
}
