// Directory trees of any depth, walked and removed. A program may nest directories far beyond the 4096 bytes
// that a path in a system call may have (PATH_MAX), which Node's own recursive calls do not get over: here a path
// that has grown long begins anew at a descriptor (/proc/self/fd/N/...). Names are bytes. What does not live
// here: what is looked for in a tree.
import { constants, type Dirent } from 'node:fs';
import { type FileHandle, lstat, open, readdir, rmdir, unlink } from 'node:fs/promises';

/** A path begins anew beyond this; a name of 255 bytes, and what a caller appends, still fit. */
const PATH_BYTES = 2048;
/** Calls under way together. */
const AT_ONCE = 16;
const SLASH = Buffer.from('/');

/** What is done on the way. The paths are good only until the promise settles. */
export interface Visitor {
  /** A directory, before those below it; names of the directories in it that are to be walked. */
  enter(path: Buffer): Promise<Buffer[]>;
  /** The same when those have been left. */
  leave?(path: Buffer): Promise<void>;
}

/** A directory that paths begin at. */
interface Anchor {
  handle: FileHandle;
  /** Paths that begin there. */
  uses: number;
}

interface Step {
  path: Buffer;
  anchor: Anchor | undefined;
  /** Those below it have been walked. */
  done: boolean;
}

/** True for what a walk meets when somebody removes or replaces an entry. */
function isGone(error: unknown): boolean {
  const { code } = error as NodeJS.ErrnoException;
  return code === 'ENOENT' || code === 'ENOTDIR' || code === 'ELOOP';
}

/** The outcome of a call on an entry; undefined where the entry has vanished meanwhile. */
export async function orGone<T>(work: Promise<T>): Promise<T | undefined> {
  try {
    return await work;
  } catch (error) {
    if (isGone(error)) return undefined;
    throw error;
  }
}

/** Runs work on each of many, some at a time. */
export async function forEach<T>(all: T[], work: (one: T) => Promise<unknown>): Promise<void> {
  for (let at = 0; at < all.length; at += AT_ONCE) {
    await Promise.all(all.slice(at, at + AT_ONCE).map(work));
  }
}

/** Path of an entry in a directory. */
export function entryOf(directory: Buffer, name: Buffer): Buffer {
  return Buffer.concat([directory, SLASH, name]);
}

class Walk {
  readonly #visitor: Visitor;
  readonly #steps: Step[] = [];
  readonly #anchors = new Set<Anchor>();

  constructor(visitor: Visitor) {
    this.#visitor = visitor;
  }

  async run(root: string): Promise<void> {
    this.#steps.push({ path: Buffer.from(root), anchor: undefined, done: false });
    try {
      for (let step = this.#steps.pop(); step !== undefined; step = this.#steps.pop()) {
        if (step.done) {
          await this.#visitor.leave?.(step.path);
          await this.#drop(step.anchor);
        } else {
          this.#steps.push({ ...step, done: true });
          await this.#enter(step);
        }
      }
    } finally {
      for (const { handle } of this.#anchors) await handle.close();
    }
  }

  async #enter(step: Step): Promise<void> {
    let { path, anchor } = step;
    if (path.length > PATH_BYTES) {
      const flags = constants.O_RDONLY | constants.O_DIRECTORY | constants.O_NOFOLLOW;
      const handle = await orGone(open(path, flags));
      if (handle === undefined) return;
      anchor = { handle, uses: 0 };
      this.#anchors.add(anchor);
      path = Buffer.from(`/proc/self/fd/${handle.fd}`);
    }
    if (anchor !== undefined) anchor.uses++;
    for (const name of await this.#visitor.enter(path)) {
      if (anchor !== undefined) anchor.uses++;
      this.#steps.push({ path: entryOf(path, name), anchor, done: false });
    }
    await this.#drop(anchor);
  }

  async #drop(anchor: Anchor | undefined): Promise<void> {
    if (anchor === undefined || --anchor.uses > 0) return;
    this.#anchors.delete(anchor);
    await anchor.handle.close();
  }
}

/**
 * Walks a directory and those below it, each before what is in it. The number of descriptors open at a time is
 * that of the pieces of 2 KiB in the longest path.
 * @throws what the visitor throws, and errno other than those of vanished entries
 */
export function walkDirectories(root: string, visitor: Visitor): Promise<void> {
  return new Walk(visitor).run(root);
}

/** Entries of a directory; none where it has vanished. */
export async function entriesOf(directory: Buffer): Promise<Dirent<Buffer>[]> {
  const options = { withFileTypes: true, encoding: 'buffer' } as const;
  return (await orGone(readdir(directory, options))) ?? [];
}

/**
 * Removes a file, or a directory with all that is in it, however deep. What is not there is success.
 * @throws errno, such as that of a mount point in it; what was removed before stays removed
 */
export async function removeTree(root: string): Promise<void> {
  const stats = await orGone(lstat(root));
  if (stats === undefined) return;
  if (!stats.isDirectory()) {
    await orGone(unlink(root));
    return;
  }
  await walkDirectories(root, {
    enter: async (path) => {
      const entries = await entriesOf(path);
      const files = entries.filter((entry) => !entry.isDirectory());
      await forEach(files, ({ name }) => orGone(unlink(entryOf(path, name))));
      return entries.filter((entry) => entry.isDirectory()).map(({ name }) => name);
    },
    leave: async (path) => {
      await orGone(rmdir(path));
    },
  });
}
