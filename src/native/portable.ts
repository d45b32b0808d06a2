// What stands in for the addon where it cannot be loaded: the calls of store and mounts by node:fs and
// the system's own programs (sync, mount, umount). It is slower, and has neither a kernel session nor
// the upper directory's calls: those are the addon's alone, and say so when they are asked for.
//
// Callers see no difference: rejections carry an errno as `code`, as the addon's do.
import { spawn } from 'node:child_process';
import { open, rename, stat, unlink } from 'node:fs/promises';
import { join } from 'node:path';
import type { FirstlightError } from '../errors/errors.ts';
import type { BatchFile, NativeAddon } from './index.ts';
import type { NativeUpper } from './upper.ts';

/** Flags of mount(2) and umount2(2) that there is a word for. */
const MS_RDONLY = 1;
const MNT_DETACH = 2;
const UMOUNT_NOFOLLOW = 8;

/** What the programs say, in the C locale, and the errno that was behind it. */
const COMPLAINTS: [RegExp, string][] = [
  [/busy/i, 'EBUSY'],
  [/not mounted|no mount point specified/i, 'EINVAL'],
  [/unknown filesystem type/i, 'ENODEV'],
  [/no such file|not found|does not exist/i, 'ENOENT'],
  [/not a directory/i, 'ENOTDIR'],
  [/permission denied|must be superuser|not permitted/i, 'EPERM'],
  [/too many levels of symbolic links/i, 'ELOOP'],
  [/wrong fs type|invalid argument|bad superblock/i, 'EINVAL'],
  [/no space left/i, 'ENOSPC'],
  [/not connected/i, 'ENOTCONN'],
];

function errnoError(code: string, message: string): NodeJS.ErrnoException {
  return Object.assign(new Error(`${code}: ${message}`), { code });
}

/** Runs a program that must end with 0; else an error with the errno that its complaint means. */
function call(program: string, args: string[]): Promise<void> {
  return new Promise((resolve, reject) => {
    const env = { ...process.env, LC_ALL: 'C' };
    const child = spawn(program, args, { stdio: ['ignore', 'ignore', 'pipe'], env, cwd: '/' });
    let said = '';
    child.stderr.setEncoding('utf8');
    child.stderr.on('data', (text: string) => {
      said += text;
    });
    child.once('error', reject);
    child.once('close', (code) => {
      if (code === 0) return resolve();
      const [, errno] = COMPLAINTS.find(([words]) => words.test(said)) ?? [undefined, 'EIO'];
      reject(errnoError(errno, said.trim() || `${program} ended with ${code}`));
    });
  });
}

async function writeFiles(directory: string, data: Uint8Array, files: BatchFile[]): Promise<void> {
  for (const { name, offset, length } of files) {
    const path = join(directory, name);
    const file = await open(path, 'wx', 0o444).catch((error: NodeJS.ErrnoException) => {
      // Names are digests: what is there has the same bytes.
      if (error.code === 'EEXIST') return undefined;
      throw error;
    });
    if (file === undefined) continue;
    try {
      await writeAll(file, data.subarray(offset, offset + length));
      // Some filesystems report a delayed write that failed only here.
      await file.close();
    } catch (error) {
      // The first error is the one that matters; closing a second time is an error of its own.
      await file.close().catch(() => undefined);
      await unlink(path).catch(() => undefined);
      throw error;
    }
  }
}

async function writeAll(file: Awaited<ReturnType<typeof open>>, bytes: Uint8Array): Promise<void> {
  for (let done = 0; done < bytes.length; ) {
    done += (await file.write(bytes, done, bytes.length - done, done)).bytesWritten;
  }
}

async function renameFiles(directory: string, pairs: [string, string][]): Promise<void> {
  for (const [from, to] of pairs) {
    try {
      await rename(join(directory, from), join(directory, to));
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error;
      await stat(join(directory, to)).catch(() => {
        throw error;
      });
    }
  }
}

async function mount(
  source: string,
  target: string,
  type: string,
  flags: number,
  data: string,
): Promise<void> {
  // No helper of the type, no /etc/mtab, no look at the target: mount(2) and nothing else.
  const options = (flags & MS_RDONLY) !== 0 ? `ro,${data}` : data;
  await call('mount', ['-i', '-n', '-c', '-t', type, '-o', options, '--', source, target]);
}

async function umount(target: string, flags: number): Promise<void> {
  const lazy = (flags & MNT_DETACH) !== 0 ? ['-l'] : [];
  // -c: as UMOUNT_NOFOLLOW, the path is taken as it is.
  const asIs = (flags & UMOUNT_NOFOLLOW) !== 0 ? ['-c'] : [];
  await call('umount', ['-i', '-n', ...lazy, ...asIs, '--', target]);
}

/**
 * The stand-in.
 * @param error  why the addon cannot be loaded: what its missing parts answer with
 */
export function portableAddon(error: FirstlightError): NativeAddon {
  const refuse = class {
    constructor() {
      throw error;
    }
  };
  return {
    Template: refuse as unknown as NativeAddon['Template'],
    Session: refuse as unknown as NativeAddon['Session'],
    Upcalls: refuse as unknown as NativeAddon['Upcalls'],
    get upper(): NativeUpper {
      throw error;
    },
    writeFiles,
    // coreutils' sync -f is syncfs(2), for which Node.js has no call.
    syncfs: (path) => call('sync', ['-f', '--', path]),
    renameFiles,
    mount,
    umount,
    // Only the addon can ask the C library.
    trimMemory: async () => undefined,
    probe: () => {
      throw error;
    },
  };
}
