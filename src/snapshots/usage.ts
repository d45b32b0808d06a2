// Disk use of a directory tree as containerd counts it: allocated blocks, each inode once. What vanishes during
// the walk is not counted: snapshots are in use meanwhile. What does not live here: the walk.
import type { Stats } from 'node:fs';
import { lstat } from 'node:fs/promises';
import { entriesOf, entryOf, forEach, orGone, walkDirectories } from '../store/deep-tree.ts';
import type { Usage } from './types.ts';

/** Bytes of a block in `st_blocks`, whatever the file system's own are (stat(2)). */
const BLOCK_BYTES = 512;

/**
 * Disk use below `root`, the directory itself included.
 * @param look  hears of each name below it, as bytes
 * @throws errno other than those of vanished entries; what `look` throws
 */
export async function diskUsage(
  root: string,
  look: (name: Buffer) => void = () => undefined,
): Promise<Usage> {
  const usage: Usage = { bytes: 0, inodes: 0 };
  const linked = new Set<string>();
  const count = (stats: Stats) => {
    if (!stats.isDirectory() && stats.nlink > 1) {
      const inode = `${stats.dev}:${stats.ino}`;
      if (linked.has(inode)) return;
      linked.add(inode);
    }
    usage.inodes++;
    usage.bytes += stats.blocks * BLOCK_BYTES;
  };
  count(await lstat(root));
  await walkDirectories(root, {
    enter: async (path) => {
      const below: Buffer[] = [];
      await forEach(await entriesOf(path), async ({ name }) => {
        const stats = await orGone(lstat(entryOf(path, name)));
        if (stats === undefined) return;
        count(stats);
        look(name);
        if (stats.isDirectory()) below.push(name);
      });
      return below;
    },
  });
  return usage;
}
