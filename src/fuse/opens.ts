// Whether the kernel may be left to open files alone (OPENS.Unseen). What does not live here: when it
// is (tree/fs-instance.ts), and how (native/).
import { release } from 'node:os';

/** Who decides: this program by what the kernel is, or the user. */
export type OpensChoice = 'auto' | 'seen';

/** First patch of each long-lived series that has it; any later series does. */
const MENDED: readonly (readonly [major: number, minor: number, patch: number])[] = [
  [6, 12, 64],
  [6, 18, 3],
];

/**
 * True where a file that was opened without us holds its inode until its reads are through ("fuse: fix
 * readahead reclaim deadlock"). Elsewhere a kernel that is short of memory may wait for ever for a page that we
 * are just reading: since Linux 6.9 it does, and of older ones it is not known which were changed alike.
 * @param version  as uname(2) has it
 */
export function canOpenAlone(version: string = release()): boolean {
  const [major = 0, minor = 0, patch = 0] = version
    .split(/[.-]/)
    .map((part) => Number.parseInt(part, 10));
  const newest = MENDED.at(-1)!;
  if (major !== newest[0]) return major > newest[0];
  if (minor > newest[1]) return true;
  return MENDED.some((mended) => mended[1] === minor && patch >= mended[2]);
}

/** What a session is made with. */
export function mayOpenAlone(choice: OpensChoice): boolean {
  return choice === 'auto' && canOpenAlone();
}
