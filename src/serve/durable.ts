// Making written files outlive a power cut. One syncfs for a whole batch where the native part is
// built (an fsync for each small file costs five times as much), else fsync file by file.
import { open } from 'node:fs/promises';
import PQueue from 'p-queue';
import { native } from '../native/index.ts';

/** Makes `files`, and the entries of `directories`, durable. All lie on the filesystem of `root`. */
export type Sync = (root: string, files: string[], directories: string[]) => Promise<void>;

const FSYNCS_AT_ONCE = 8;

/** fsync for each file and directory. */
export const syncEach: Sync = async (_root, files, directories) => {
  const queue = new PQueue({ concurrency: FSYNCS_AT_ONCE });
  await queue.addAll(
    [...files, ...directories].map((path) => async () => {
      const handle = await open(path, 'r');
      try {
        await handle.sync();
      } finally {
        await handle.close();
      }
    }),
  );
};

/** The best that this installation has. */
export function chooseSync(): Sync {
  try {
    const { syncfs } = native();
    if (typeof syncfs === 'function') return (root) => syncfs(root);
  } catch {
    // A server needs nothing else of the native part, so it does without.
  }
  return syncEach;
}
