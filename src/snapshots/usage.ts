// Disk use of a directory tree as containerd counts it: allocated blocks, each inode once. Names are
// taken as bytes, and what vanishes during the walk is not counted: snapshots are in use meanwhile.
import type { Stats } from 'node:fs';
import { lstat, readdir } from 'node:fs/promises';
import type { Usage } from './types.ts';

/** Bytes of a block in `st_blocks`, whatever the file system's own are (stat(2)). */
const BLOCK_BYTES = 512;
/** Entries looked at together. */
const AT_ONCE = 16;
const SLASH = Buffer.from('/');

/** True for what a walk meets when somebody removes or replaces an entry. */
function isGone(error: unknown): boolean {
  const { code } = error as NodeJS.ErrnoException;
  return code === 'ENOENT' || code === 'ENOTDIR';
}

async function orGone<T>(work: Promise<T>): Promise<T | undefined> {
  try {
    return await work;
  } catch (error) {
    if (isGone(error)) return undefined;
    throw error;
  }
}

/** Disk use below `root`, the directory itself included. @throws errno other than those of vanished entries */
export async function diskUsage(root: string): Promise<Usage> {
  const usage: Usage = { bytes: 0, inodes: 0 };
  const linked = new Set<string>();
  const directories: Buffer[] = [Buffer.from(root)];
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
  for (let path = directories.pop(); path !== undefined; path = directories.pop()) {
    const names = (await orGone(readdir(path, { encoding: 'buffer' }))) ?? [];
    for (let at = 0; at < names.length; at += AT_ONCE) {
      const paths = names
        .slice(at, at + AT_ONCE)
        .map((name) => Buffer.concat([path as Buffer, SLASH, name]));
      const found = await Promise.all(paths.map((entry) => orGone(lstat(entry))));
      for (const [i, stats] of found.entries()) {
        if (stats === undefined) continue;
        count(stats);
        if (stats.isDirectory()) directories.push(paths[i]!);
      }
    }
  }
  return usage;
}
