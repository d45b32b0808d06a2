// The native boundary to the upper directory: system calls on directory descriptors, so that names
// of 255 bytes and paths of any depth work. What Node.js has no call for (mknodat, renameat2,
// xattrs, O_TMPFILE, times of symlinks) is the reason that it is native; no policy lives here.
//
// Threads: called on the tree's thread, where a system call may wait for the disk as it would for
// any program; what moves file contents runs on the thread pool and answers by promise.
//
// Errors: each call throws (or rejects with) an Error whose `errno` is the positive errno and whose
// `code` is its name. Names are byte strings (latin1) of one component; '' names the directory
// descriptor itself where that makes sense (AT_EMPTY_PATH). Symlinks are never followed.

/** Who a new file belongs to: fsuid and fsgid of the thread while it is made, so that it never stands there with another owner. */
export interface Owner {
  uid: number;
  gid: number;
}

export interface NativeUpper {
  /** Prepares the calling thread: its own umask of 0 (unshare(CLONE_FS)), room for descriptors. Once, on the tree's thread. */
  prepareThread(): void;
  /** O_PATH|O_DIRECTORY|O_NOFOLLOW descriptor of a directory; `dirfd` -1: `name` is an absolute path. */
  openDirectory(dirfd: number, name: string): number;
  /** openat(2) with O_NOFOLLOW|O_CLOEXEC, for files that are there. */
  openFile(dirfd: number, name: string, flags: number): number;
  /** openat(2) with O_CREAT|O_EXCL as the owner. */
  createFile(dirfd: number, name: string, flags: number, mode: number, owner: Owner): number;
  /** openat(2) with O_TMPFILE as the owner; EOPNOTSUPP where the filesystem has none. */
  createUnnamed(dirfd: number, flags: number, mode: number, owner: Owner): number;
  close(fd: number): void;
  mkdir(dirfd: number, name: string, mode: number, owner: Owner): void;
  mknod(dirfd: number, name: string, mode: number, rdev: number, owner: Owner): void;
  symlink(target: Uint8Array, dirfd: number, name: string, owner: Owner): void;
  readlink(dirfd: number, name: string): Buffer;
  unlink(dirfd: number, name: string): void;
  rmdir(dirfd: number, name: string): void;
  /** linkat(2); `fromName` '' links the file of a descriptor (O_TMPFILE). */
  link(fromDirfd: number, fromName: string, toDirfd: number, toName: string): void;
  /** renameat2(2) with its flags. */
  rename(fromDirfd: number, fromName: string, toDirfd: number, toName: string, flags: number): void;
  /** statx(2) into slots of ATTR (native/upcalls.ts). */
  stat(dirfd: number, name: string, into: Float64Array): void;
  chmod(dirfd: number, name: string, mode: number): void;
  /** -1 leaves one of them. Clears setuid and setgid as chown(2) by root does. */
  chown(dirfd: number, name: string, uid: number, gid: number): void;
  /** utimensat(2); a nsec of UTIME_NOW (2^30-1) or UTIME_OMIT (2^30-2) as there. */
  utimes(
    dirfd: number,
    name: string,
    atimeSec: number,
    atimeNsec: number,
    mtimeSec: number,
    mtimeNsec: number,
  ): void;
  truncate(fd: number, bytes: number): void;
  /**
   * Whether anybody, the caller included, has a regular file open for writing, or a shared mapping that can be
   * written. True also where the filesystem does not say (no leases).
   */
  isHeldForWriting(dirfd: number, name: string): boolean;
  /** undefined where there is none. */
  getxattr(dirfd: number, name: string, attribute: string): Buffer | undefined;
  listxattr(dirfd: number, name: string): string[];
  setxattr(dirfd: number, name: string, attribute: string, value: Uint8Array, flags: number): void;
  removexattr(dirfd: number, name: string, attribute: string): void;
  /** Names and types (DT_*) of a directory, without "." and "..". */
  list(dirfd: number, name: string): { name: string; type: number }[];
  /** bsize, frsize, blocks, bfree, bavail, files, ffree, namelen. */
  statfs(dirfd: number, into: Float64Array): void;
  fsync(fd: number, dataOnly: boolean): Promise<void>;
  fsyncDirectory(dirfd: number): Promise<void>;
  syncfs(dirfd: number): Promise<void>;
  /**
   * Copies a whole file: FICLONE, else the ranges that hold data (SEEK_DATA) by copy_file_range(2), else
   * by read and write; holes stay holes. `bytes` is the length of the copy. On the thread pool.
   */
  copyFile(fromFd: number, toFd: number, bytes: number): Promise<void>;
}
