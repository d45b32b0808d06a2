// The tight loops of the benches: the same binary runs on both sides of every comparison, and
// prints one JSON object. What does not live here: what is compared with what (bench/metadata.ts,
// bench/receive.ts).
//
//   fsbench lstat ROOT LIST ROUNDS   lstat(2) of every path, one pass untimed, then ROUNDS timed
//   fsbench open  ROOT LIST ROUNDS   open+read to the end+close of every path, likewise
//   fsbench walk  ROOT               opendir, readdir and lstat of everything below, once, timed
//   fsbench read  FILE ROUNDS        sequential read by 128 KiB, one pass untimed, then ROUNDS timed
//   fsbench put   DIR LIST           standard input cut into the files of LIST ("NAME BYTES\0")
//   fsbench syncfs DIR               syncfs(2) of the filesystem that holds DIR
//
// A LIST is a file of NUL-terminated paths, relative to ROOT, which becomes the working directory:
// so the depth of the mount point costs neither side anything.
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "loops.h"

enum { BUFFER_BYTES = 128 << 10 };
static char buffer[BUFFER_BYTES];

struct list {
  char **entries;
  size_t count;
};

static struct list read_list(const char *path) {
  FILE *file = fopen(path, "re");
  if (!file)
    die(path);
  struct list list = {NULL, 0};
  size_t room = 0, size = 0;
  char *line = NULL;
  while (getdelim(&line, &size, '\0', file) > 0) {
    if (list.count == room) {
      room = room ? room * 2 : 1024;
      list.entries = realloc(list.entries, room * sizeof *list.entries);
      if (!list.entries)
        die("memory");
    }
    if (!(list.entries[list.count++] = strdup(line)))
      die("memory");
  }
  if (ferror(file) || list.count == 0) {
    errno = errno ? errno : ENODATA;
    die(path);
  }
  free(line);
  fclose(file);
  return list;
}

static void lstat_one(const char *path, uint64_t *bytes) {
  struct stat st;
  if (lstat(path, &st) != 0)
    die(path);
  *bytes += (uint64_t)st.st_size;
}

static void open_one(const char *path, uint64_t *bytes) {
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0)
    die(path);
  // One read more than the bytes need would double the system calls of a small file: like most
  // programs, stop at a read that did not fill the buffer.
  ssize_t got;
  do {
    got = read(fd, buffer, BUFFER_BYTES);
    if (got < 0)
      die(path);
    *bytes += (uint64_t)got;
  } while (got == BUFFER_BYTES);
  if (close(fd) != 0)
    die(path);
}

static int each(const char *root, const char *list_path, int rounds,
                void (*one)(const char *, uint64_t *)) {
  struct list list = read_list(list_path);
  if (chdir(root) != 0)
    die(root);
  uint64_t bytes = 0;
  for (size_t i = 0; i < list.count; i++)
    one(list.entries[i], &bytes);
  bytes = 0;
  uint64_t start = now_ns();
  for (int round = 0; round < rounds; round++)
    for (size_t i = 0; i < list.count; i++)
      one(list.entries[i], &bytes);
  return report((uint64_t)rounds * list.count, bytes, now_ns() - start);
}

// Reads a file from beginning to end; its bytes.
static uint64_t read_at(int directory, const char *name) {
  int fd = openat(directory, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
  if (fd < 0)
    die(name);
  uint64_t bytes = 0;
  ssize_t got;
  do {
    got = read(fd, buffer, BUFFER_BYTES);
    if (got < 0)
      die(name);
    bytes += (uint64_t)got;
  } while (got == BUFFER_BYTES);
  if (close(fd) != 0)
    die(name);
  return bytes;
}

// Depth first, by descriptors; takes `fd` over. Reads regular files too where `bytes` is given.
static uint64_t walk(int fd, uint64_t *bytes) {
  DIR *directory = fdopendir(fd);
  if (!directory)
    die("fdopendir");
  uint64_t count = 0;
  struct dirent *entry;
  while ((errno = 0, entry = readdir(directory)) != NULL) {
    if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
      continue;
    struct stat st;
    if (fstatat(dirfd(directory), entry->d_name, &st, AT_SYMLINK_NOFOLLOW) != 0)
      die(entry->d_name);
    count++;
    if (bytes != NULL && S_ISREG(st.st_mode))
      *bytes += read_at(dirfd(directory), entry->d_name);
    if (!S_ISDIR(st.st_mode))
      continue;
    int child = openat(dirfd(directory), entry->d_name,
                       O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (child < 0)
      die(entry->d_name);
    count += walk(child, bytes);
  }
  if (errno != 0)
    die("readdir");
  closedir(directory);
  return count;
}

static int walk_root(const char *root, int read_files) {
  uint64_t bytes = 0;
  uint64_t start = now_ns();
  int fd = open(root, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0)
    die(root);
  uint64_t count = walk(fd, read_files ? &bytes : NULL);
  return report(count, bytes, now_ns() - start);
}

static uint64_t read_once(const char *path) {
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0)
    die(path);
  uint64_t bytes = 0;
  ssize_t got;
  while ((got = read(fd, buffer, BUFFER_BYTES)) > 0)
    bytes += (uint64_t)got;
  if (got < 0)
    die(path);
  close(fd);
  return bytes;
}

static int read_file(const char *path, int rounds) {
  read_once(path);
  uint64_t bytes = 0, start = now_ns();
  for (int round = 0; round < rounds; round++)
    bytes += read_once(path);
  return report((uint64_t)rounds, bytes, now_ns() - start);
}

static void put_one(const char *name, uint64_t bytes) {
  int fd = open(name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0444);
  if (fd < 0)
    die(name);
  while (bytes > 0) {
    size_t want = bytes < BUFFER_BYTES ? (size_t)bytes : BUFFER_BYTES;
    // A pipe gives what it has; a whole buffer for each write is kinder to the filesystem.
    size_t have = 0;
    while (have < want) {
      ssize_t got = read(STDIN_FILENO, buffer + have, want - have);
      if (got <= 0) {
        errno = got == 0 ? EPIPE : errno;
        die("standard input");
      }
      have += (size_t)got;
    }
    for (size_t done = 0; done < have;) {
      ssize_t wrote = write(fd, buffer + done, have - done);
      if (wrote < 0)
        die(name);
      done += (size_t)wrote;
    }
    bytes -= have;
  }
  if (close(fd) != 0)
    die(name);
}

static int put(const char *directory, const char *list_path) {
  struct list list = read_list(list_path);
  if (chdir(directory) != 0)
    die(directory);
  uint64_t total = 0, start = now_ns();
  for (size_t i = 0; i < list.count; i++) {
    char *space = strrchr(list.entries[i], ' ');
    if (!space) {
      errno = EINVAL;
      die(list_path);
    }
    *space = '\0';
    uint64_t bytes = strtoull(space + 1, NULL, 10);
    put_one(list.entries[i], bytes);
    total += bytes;
  }
  return report(list.count, total, now_ns() - start);
}

static int sync_filesystem(const char *directory) {
  int fd = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0)
    die(directory);
  uint64_t start = now_ns();
  if (syncfs(fd) != 0)
    die(directory);
  return report(1, 0, now_ns() - start);
}

int main(int argc, char **argv) {
  const char *mode = argc > 1 ? argv[1] : "";
  if (strcmp(mode, "lstat") == 0 && argc == 5)
    return each(argv[2], argv[3], atoi(argv[4]), lstat_one);
  if (strcmp(mode, "open") == 0 && argc == 5)
    return each(argv[2], argv[3], atoi(argv[4]), open_one);
  if (strcmp(mode, "walk") == 0 && argc == 3)
    return walk_root(argv[2], 0);
  if (strcmp(mode, "walk-read") == 0 && argc == 3)
    return walk_root(argv[2], 1);
  if (strcmp(mode, "read") == 0 && argc == 4)
    return read_file(argv[2], atoi(argv[3]));
  if (strcmp(mode, "put") == 0 && argc == 4)
    return put(argv[2], argv[3]);
  if (strcmp(mode, "syncfs") == 0 && argc == 3)
    return sync_filesystem(argv[2]);
  fprintf(stderr, "usage: fsbench lstat|open ROOT LIST ROUNDS | walk ROOT | walk-read ROOT | read FILE ROUNDS | "
                  "put DIR LIST | syncfs DIR\n");
  return 2;
}
