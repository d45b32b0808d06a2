// npm's fuse-native: loaded where it is asked for, and typed as far as it is used. What does not live
// here: what its callbacks answer (operations.ts).
//
// It is an optional dependency, and its binary needs libfuse 2. Its class is written for the process
// that it has for itself; three of its habits are dealt with here and in session.ts:
//   - `unmount` runs fusermount -uz, which takes whatever stands at the path: replaced by nothing,
//     since the session unmounts by itself;
//   - options are joined with commas unescaped: that is how those get in which it has no name for;
//   - nothing is told when the kernel has ended the mount: session.ts looks.
import { createRequire } from 'node:module';
import { FirstlightError } from '../../errors/errors.ts';

/** Ends one request. Negative = errno. */
export type Reply<Rest extends unknown[] = []> = (result: number, ...rest: Rest) => void;

/** Attributes as fuse-native takes them; times in ms since 1970, none before it. */
export interface Stat {
  mode: number;
  uid: number;
  gid: number;
  size: number;
  nlink: number;
  ino: number;
  rdev: number;
  blksize: number;
  blocks: number;
  mtime: number;
  atime: number;
  ctime: number;
}

/** Slots of statfs. */
export interface StatFs {
  bsize: number;
  frsize: number;
  blocks: number;
  files: number;
  namemax: number;
}

/** The callbacks that are used. Paths are text: what is no UTF-8 has been damaged on the way. */
export interface Callbacks {
  getattr(path: string, reply: Reply<[Stat?]>): void;
  readdir(path: string, reply: Reply<[string[]?]>): void;
  readlink(path: string, reply: Reply<[string?]>): void;
  open(path: string, flags: number, reply: Reply<[number?]>): void;
  read(
    path: string,
    handle: number,
    buffer: Buffer,
    bytes: number,
    offset: number,
    reply: Reply,
  ): void;
  release(path: string, handle: number, reply: Reply): void;
  statfs(path: string, reply: Reply<[StatFs?]>): void;
}

/** One mount of the library. */
export interface LibraryMount {
  mount(done: (error: Error | null) => void): void;
  /** After the kernel's end: lets the event loop go. */
  unmount(done: (error: Error | null) => void): void;
}

export interface LibraryOptions {
  /** false: no bound of the library's own. */
  timeout: false;
  allowOther: boolean;
  defaultPermissions: boolean;
  kernelCache: boolean;
  fsname: string;
  subtype: string;
}

export interface Library {
  new (mountPoint: string, callbacks: Callbacks, options: LibraryOptions): LibraryMount;
  unmount(mountPoint: string, done: (error: Error | null) => void): void;
}

let loaded: Library | undefined;

/** Loads the library. @throws FirstlightError `unsupported` that says what to install */
export function loadLibrary(): Library {
  if (loaded !== undefined) return loaded;
  let library: Library;
  try {
    library = createRequire(import.meta.url)('fuse-native') as Library;
  } catch (cause) {
    const { message } = cause as Error;
    const [first = ''] = message.split('\n');
    throw new FirstlightError('unsupported', `fuse-native cannot be loaded: ${first}`, {
      hint: message.includes('libfuse.so')
        ? 'install libfuse 2 (apt-get install libfuse2)'
        : 'install it (npm install fuse-native), or build the native part (make native)',
      cause,
    });
  }
  library.unmount = (_mountPoint, done) => done(null);
  loaded = library;
  return library;
}
