// Loaded before the C library into a process that mounts (LD_PRELOAD): what may happen between two
// steps of it. The environment says what:
//   KILL_AT_ANSWER=N   the process is killed in place of its Nth write to /dev/fuse
//   NO_FSOPEN=E        fsopen(2) fails with this errno, as a filter of system calls has it
//   NO_CLONE=1         the kernel clones no detached mount (before Linux 6.15), and says so where
//   it
//                      does: when it has found the path
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/uio.h>
#include <unistd.h>

static int is_fuse(int fd) {
  char link[64];
  char name[16];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t length = readlink(link, name, sizeof name);
  return length == strlen("/dev/fuse") && memcmp(name, "/dev/fuse", length) == 0;
}

ssize_t writev(int fd, const struct iovec* pieces, int count) {
  static atomic_int answers;
  const char* at = getenv("KILL_AT_ANSWER");
  if (at != NULL && is_fuse(fd) && atomic_fetch_add(&answers, 1) + 1 == atoi(at)) {
    kill(getpid(), SIGKILL);
  }
  ssize_t (*real)(int, const struct iovec*, int) = dlsym(RTLD_NEXT, "writev");
  return real(fd, pieces, count);
}

int fsopen(const char* type, unsigned flags) {
  int (*real)(const char*, unsigned) = dlsym(RTLD_NEXT, "fsopen");
  const char* error = getenv("NO_FSOPEN");
  if (error == NULL) return real(type, flags);
  errno = atoi(error);
  return -1;
}

int open_tree(int directory, const char* path, unsigned flags) {
  int (*real)(int, const char*, unsigned) = dlsym(RTLD_NEXT, "open_tree");
  int fd = real(directory, path, flags);
  if (getenv("NO_CLONE") == NULL || fd < 0) return fd;
  close(fd);
  errno = EINVAL;
  return -1;
}
