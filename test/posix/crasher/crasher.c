// Changes files of an image one after the other, each in its own way, and says after each that it
// is done; and afterwards holds every file against what it was and what it was to become. What
// happens between the two (the daemon is killed) does not live here.
//
//   crasher fill DIR FILES           makes the files
//   crasher work DIR FROM FILES      changes FROM, FROM + 1, ...; prints `N` after each, ends at an
//   error crasher check DIR DONE FILES     files below DONE are new, file DONE is old or new, the
//   rest are old
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

enum { KINDS = 10, MOST = 1 << 18 };

static const char* root;
static unsigned char expected[MOST], seen[MOST + 1];

static void name_of(char* path, int file, const char* suffix) {
  sprintf(path, "%s/d%02d/f%04d%s", root, file / 40, file, suffix);
}

// What the image holds: from a few bytes to some hundred thousand.
static size_t old_bytes(int file) {
  return (size_t)(file * 7919 % 100 == 0 ? 200000 : 100 + file * 911 % 9000);
}

static void fill_bytes(unsigned char* to, int file, size_t bytes, int salt) {
  for (size_t i = 0; i < bytes; i++)
    to[i] = (unsigned char)(file * 131 + salt * 17 + (int)(i * 7 + (i >> 9)));
}

static int put(const char* path, int flags, const void* data, size_t bytes, bool sync) {
  int fd = open(path, flags | O_CLOEXEC, 0644);
  if (fd < 0) return -1;
  bool well = write(fd, data, bytes) == (ssize_t)bytes && (!sync || fsync(fd) == 0);
  int error = errno;
  if (close(fd) != 0 && well) return -1;
  errno = error;
  return well ? 0 : -1;
}

// The change of one file. Each is one call that must be seen whole or not at all, or an append or a
// replacement whose data are given in one write.
static int change(int file) {
  char path[300], other[300];
  name_of(path, file, "");
  size_t bytes = old_bytes(file);
  switch (file % KINDS) {
    case 0:  // append to it, and see to it that it lasts
    case 1:
      fill_bytes(seen, file, 50, 1);
      return put(path, O_WRONLY | O_APPEND, seen, 50, file % KINDS == 0);
    case 2:  // the way editors save
      name_of(other, file, ".new");
      fill_bytes(seen, file, bytes, 2);
      if (put(other, O_WRONLY | O_CREAT | O_TRUNC, seen, bytes, true) != 0) return -1;
      return rename(other, path);
    case 3:
      return chmod(path, 0600);
    case 4:
      return truncate(path, (off_t)bytes / 2);
    case 5:
      return unlink(path);
    case 6:
      name_of(other, file, ".moved");
      return rename(path, other);
    case 7:
      name_of(other, file, ".link");
      return link(path, other);
    case 8:
      return setxattr(path, "user.new", "value", 5, 0);
    default:  // one byte in the middle
      seen[0] = 'X';
      int fd = open(path, O_WRONLY | O_CLOEXEC);
      if (fd < 0) return -1;
      bool well = pwrite(fd, seen, 1, (off_t)bytes / 2) == 1;
      int error = errno;
      close(fd);
      errno = error;
      return well ? 0 : -1;
  }
}

static ssize_t read_whole(const char* path) {
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return -1;
  ssize_t got = read(fd, seen, MOST);
  close(fd);
  return got;
}

static bool holds(const char* path, size_t bytes) {
  return read_whole(path) == (ssize_t)bytes && memcmp(seen, expected, bytes) == 0;
}

static bool is_old(int file) {
  char path[300], other[300];
  struct stat st;
  name_of(path, file, "");
  size_t bytes = old_bytes(file);
  fill_bytes(expected, file, bytes, 0);
  name_of(other, file, file % KINDS == 6 ? ".moved" : ".link");
  return holds(path, bytes) && lstat(path, &st) == 0 && (st.st_mode & 07777) == 0644 &&
         st.st_nlink == 1 && getxattr(path, "user.new", seen, 9) < 0 && lstat(other, &st) != 0;
}

static bool is_new(int file) {
  char path[300], other[300];
  struct stat st, second;
  name_of(path, file, "");
  size_t bytes = old_bytes(file);
  fill_bytes(expected, file, bytes, 0);
  switch (file % KINDS) {
    case 0:
    case 1:
      fill_bytes(expected + bytes, file, 50, 1);
      return holds(path, bytes + 50);
    case 2:
      fill_bytes(expected, file, bytes, 2);
      return holds(path, bytes);
    case 3:
      return holds(path, bytes) && lstat(path, &st) == 0 && (st.st_mode & 07777) == 0600;
    case 4:
      return holds(path, bytes / 2);
    case 5:
      return lstat(path, &st) != 0 && errno == ENOENT;
    case 6:
      name_of(other, file, ".moved");
      return lstat(path, &st) != 0 && errno == ENOENT && holds(other, bytes);
    case 7:
      name_of(other, file, ".link");
      return holds(path, bytes) && holds(other, bytes) && lstat(path, &st) == 0 &&
             lstat(other, &second) == 0 && st.st_ino == second.st_ino && st.st_nlink == 2;
    case 8:
      return holds(path, bytes) && getxattr(path, "user.new", seen, 9) == 5 &&
             memcmp(seen, "value", 5) == 0;
    default:
      expected[bytes / 2] = 'X';
      return holds(path, bytes);
  }
}

static int fill(int files) {
  char path[300];
  for (int file = 0; file < files; file++) {
    if (file % 40 == 0) {
      snprintf(path, sizeof path, "%s/d%02d", root, file / 40);
      if (mkdir(path, 0755) != 0) return 1;
    }
    name_of(path, file, "");
    fill_bytes(seen, file, old_bytes(file), 0);
    if (put(path, O_WRONLY | O_CREAT | O_EXCL, seen, old_bytes(file), false) != 0) return 1;
  }
  return 0;
}

static int check(int done, int files) {
  int faults = 0;
  for (int file = 0; file < files; file++) {
    bool old = is_old(file), new = is_new(file);
    bool well = file < done ? new : file == done ? old || new : old;
    if (file == done && well) printf("under way: %s\n", new ? "new" : "old");
    if (well) continue;
    printf("file %d (kind %d), %s: neither as it must be; old %d, new %d\n", file, file % KINDS,
           file < done    ? "done"
           : file == done ? "under way"
                          : "untouched",
           old, new);
    faults++;
  }
  printf("checked %d\n", files);
  return faults == 0 ? 0 : 1;
}

int main(int argc, char** argv) {
  setvbuf(stdout, NULL, _IOLBF, 0);
  if (argc < 4) return 2;
  root = argv[2];
  if (strcmp(argv[1], "fill") == 0) return fill(atoi(argv[3]));
  if (argc != 5) return 2;
  int from = atoi(argv[3]), files = atoi(argv[4]);
  if (strcmp(argv[1], "check") == 0) return check(from, files);
  for (int file = from; file < files; file++) {
    if (change(file) != 0) {
      printf("end %s\n", strerrorname_np(errno));
      return 0;
    }
    printf("%d\n", file);
  }
  printf("end\n");
  return 0;
}
