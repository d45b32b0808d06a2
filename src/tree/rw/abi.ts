// Numbers of the Linux ABI that the writable tree uses (fcntl.h, stat.h, fs.h), and the helpers that
// go with them. What does not live here: those of the FUSE protocol, which only native/ knows.
import { constants } from 'node:os';
import { Errno } from './operations.ts';

export const O_RDONLY = 0;
export const O_WRONLY = 0o1;
export const O_RDWR = 0o2;
export const O_ACCMODE = 0o3;
export const O_EXCL = 0o200;
export const O_TRUNC = 0o1000;
export const O_DSYNC = 0o10000;
/** O_SYNC with the bit of O_DSYNC. */
export const O_SYNC = 0o4010000;
export const O_PATH = 0o10000000;

export const S_IFMT = 0o170000;
export const S_IFSOCK = 0o140000;
export const S_IFLNK = 0o120000;
export const S_IFREG = 0o100000;
export const S_IFBLK = 0o060000;
export const S_IFDIR = 0o040000;
export const S_IFCHR = 0o020000;
export const S_IFIFO = 0o010000;
export const S_ISUID = 0o4000;
export const S_ISGID = 0o2000;
export const S_IXGRP = 0o0010;
/** Permission bits with setuid, setgid and sticky. */
export const S_IPERM = 0o7777;

export const RENAME_NOREPLACE = 1;
export const RENAME_EXCHANGE = 2;
export const RENAME_WHITEOUT = 4;

export const UTIME_NOW = 2 ** 30 - 1;
export const UTIME_OMIT = 2 ** 30 - 2;

/** Bytes of a name. */
export const NAME_MAX = 255;

/** DT_* values that NativeUpper.list gives. */
export const DT_UNKNOWN = 0;
export const DT_CHR = 2;
export const DT_DIR = 4;

export const E = constants.errno;

/** An error of the tree, by the name of its errno. */
export function fail(code: keyof typeof constants.errno, what: string): Errno {
  return new Errno(constants.errno[code], `${what}: ${code}`);
}

/** The positive errno of an error of a system call, or 0 where it is none. */
export function errnoOf(error: unknown): number {
  if (!(error instanceof Error)) return 0;
  const { errno } = error as { errno?: unknown };
  return typeof errno === 'number' && errno > 0 ? errno : 0;
}
