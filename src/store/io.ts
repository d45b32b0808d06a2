// Every call of the worker's store that changes the disk, behind one interface, so that a test can
// fail the Nth of them. What does not live here: reads, and any decision.
import { randomBytes } from 'node:crypto';
import { chmod, constants, type FileHandle, mkdir, open, rename, rm } from 'node:fs/promises';
import { type BatchFile, native } from '../native/index.ts';

/** The changes a store makes on disk. Each call is whole or rejects with an errno as `code`. */
export interface StoreIo {
  /** As NativeAddon.writeFiles: a batch of new files named by digest. */
  writeFiles(directory: string, data: Uint8Array, files: BatchFile[]): Promise<void>;
  /** syncfs(2) of the filesystem that holds `path`. */
  syncfs(path: string): Promise<void>;
  /** As NativeAddon.renameFiles; pairs are relative to `directory`. */
  renameFiles(directory: string, pairs: [string, string][]): Promise<void>;
  /** Creates `path` with these bytes and fsyncs it. The file must not exist. */
  createFile(path: string, data: Uint8Array): Promise<void>;
  /** Creates `path` as `bytes` zeros (a hole) and fsyncs it. The file must not exist. */
  createHole(path: string, bytes: number): Promise<void>;
  /** Writes all of `data` at `position` of an open file. */
  writeAt(file: FileHandle, data: Uint8Array, position: number): Promise<void>;
  /** Opens a file for reading and writing in place; made (mode 0600) where there is none. */
  openForParts(path: string): Promise<FileHandle>;
  /** Takes the write permission off a finished file: mode 0444. */
  seal(path: string): Promise<void>;
  /** rename(2). */
  rename(from: string, to: string): Promise<void>;
  /** Removes a file or a tree; one that is not there is success. */
  remove(path: string): Promise<void>;
  /** Creates a directory and its parents, mode 0700 for the ones it makes. */
  makeDirectory(path: string): Promise<void>;
  /** fsync of a file: what was written to it in place, by whoever, lasts. */
  syncFile(path: string): Promise<void>;
  /** fsync of a directory: its entries last. */
  syncDirectory(path: string): Promise<void>;
}

async function writeWhole(file: FileHandle, data: Uint8Array, position: number): Promise<void> {
  let done = 0;
  while (done < data.length) {
    const { bytesWritten } = await file.write(data, done, data.length - done, position + done);
    done += bytesWritten;
  }
}

/** Runs `use` on a file that must be new, fsyncs it, and closes it whatever happens. */
async function withNewFile(path: string, use: (file: FileHandle) => Promise<void>): Promise<void> {
  const file = await open(path, 'wx', 0o600);
  try {
    await use(file);
    await file.sync();
  } finally {
    await file.close();
  }
}

async function sync(path: string): Promise<void> {
  const file = await open(path, 'r');
  try {
    await file.sync();
  } finally {
    await file.close();
  }
}

/** The real disk. */
export const diskIo: StoreIo = {
  writeFiles: (directory, data, files) => native().writeFiles(directory, data, files),
  syncfs: (path) => native().syncfs(path),
  renameFiles: (directory, pairs) => native().renameFiles(directory, pairs),
  createFile: (path, data) => withNewFile(path, (file) => writeWhole(file, data, 0)),
  createHole: (path, bytes) => withNewFile(path, (file) => file.truncate(bytes)),
  writeAt: writeWhole,
  openForParts: (path) => open(path, constants.O_RDWR | constants.O_CREAT, 0o600),
  seal: (path) => chmod(path, 0o444),
  rename,
  remove: (path) => rm(path, { recursive: true, force: true }),
  async makeDirectory(path) {
    await mkdir(path, { recursive: true, mode: 0o700 });
  },
  syncFile: sync,
  syncDirectory: sync,
};

/**
 * Replaces the file `path` by `data`: a reader, or a restart after a crash, sees the old or the new
 * bytes, never a mixture.
 */
export async function replaceFile(io: StoreIo, path: string, data: Uint8Array): Promise<void> {
  const aside = `${path}.${randomBytes(4).toString('hex')}.new`;
  try {
    await io.createFile(aside, data);
    await io.rename(aside, path);
  } catch (error) {
    // The first error is the one that matters; a left-over is removed at the next start as well.
    await io.remove(aside).catch(() => undefined);
    throw error;
  }
  await io.syncDirectory(path.slice(0, path.lastIndexOf('/')));
}
