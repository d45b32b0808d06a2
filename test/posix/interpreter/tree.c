// The command `tree`: everything that can be seen of a directory tree, as lines that are equal
// where two trees are. What does not live here: how single attributes are asked for (attributes.c).
//
// A line: path, type, mode, uid:gid, links, size, time, what it holds, xattrs, link group. Times
// that the clock has set differ between two runs: what is younger than 2001 is `now`, so that a
// time that the image or a program has set (tests set older ones) must have been kept.
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "interpreter.h"

static const time_t CLOCK_STARTS = 978307200;  // 2001

// Inode numbers of files with several names, in the order in which they are met.
static struct {
  ino_t* numbers;
  size_t count;
} groups;
static bool with_times;
static size_t lines;

static size_t group_of(ino_t number) {
  for (size_t i = 0; i < groups.count; i++)
    if (groups.numbers[i] == number) return i;
  groups.numbers = realloc(groups.numbers, (groups.count + 1) * sizeof *groups.numbers);
  groups.numbers[groups.count] = number;
  return groups.count++;
}

static void append_content(int dir, const char* name) {
  static unsigned char buffer[1 << 16];
  int fd = openat(dir, name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) {
    append("\t%s", strerrorname_np(errno));
    return;
  }
  uint64_t hash = HASH_START;
  ssize_t got;
  while ((got = read(fd, buffer, sizeof buffer)) > 0) hash = hash_of(hash, buffer, (size_t)got);
  if (got < 0)
    append("\t%s", strerrorname_np(errno));
  else
    append("\t%016llx", (unsigned long long)hash);
  close(fd);
}

static int by_text(const void* a, const void* b) {
  return strcmp(*(char* const*)a, *(char* const*)b);
}

static void append_xattrs(int dir, const char* name) {
  char path[300], list[65536], value[4096];
  snprintf(path, sizeof path, "/proc/self/fd/%d/%s", dir, name);
  ssize_t bytes = llistxattr(path, list, sizeof list);
  if (bytes < 0) {
    append("\t%s", errno == EOPNOTSUPP ? "" : strerrorname_np(errno));
    return;
  }
  char* names[256];
  size_t count = 0;
  for (char* at = list; at < list + bytes && count < 256; at += strlen(at) + 1)
    if (strcmp(at, "security.selinux") != 0) names[count++] = at;
  qsort(names, count, sizeof *names, by_text);
  append("\t");
  for (size_t i = 0; i < count; i++) {
    ssize_t got = lgetxattr(path, names[i], value, sizeof value);
    append("%s%s=", i == 0 ? "" : ",", names[i]);
    if (got < 0)
      append("%s", strerrorname_np(errno));
    else
      append_bytes(value, (size_t)got);
  }
}

static void append_entry(int dir, const char* path, const char* name, const struct stat* st) {
  static const char types[] = "?pc?d?b?-?l?s???";
  append("\n");
  lines++;
  append_bytes(path, strlen(path));
  append("\t%c%04o %u:%u", types[(st->st_mode & S_IFMT) >> 12], st->st_mode & 07777, st->st_uid,
         st->st_gid);
  if (!S_ISDIR(st->st_mode))
    append(" %lu %lld", (unsigned long)st->st_nlink, (long long)st->st_size);
  // Who writes to a fifo or a device marks it or not, as the filesystem likes.
  if (with_times && (S_ISREG(st->st_mode) || S_ISDIR(st->st_mode) || S_ISLNK(st->st_mode))) {
    if (st->st_mtim.tv_sec >= CLOCK_STARTS)
      append(" now");
    else
      append(" %lld.%09ld", (long long)st->st_mtim.tv_sec, st->st_mtim.tv_nsec);
  }
  if (S_ISREG(st->st_mode)) append_content(dir, name);
  if (S_ISCHR(st->st_mode) || S_ISBLK(st->st_mode))
    append("\t%u:%u", major(st->st_rdev), minor(st->st_rdev));
  if (S_ISLNK(st->st_mode)) {
    char target[4096];
    ssize_t got = readlinkat(dir, name, target, sizeof target);
    append("\t");
    append_bytes(target, got < 0 ? 0 : (size_t)got);
  }
  append_xattrs(dir, name);
  if (!S_ISDIR(st->st_mode) && st->st_nlink > 1) append("\t#%zu", group_of(st->st_ino));
}

// Takes `fd` over. Names come sorted, so that link groups have the same numbers in equal trees.
static void walk(int fd, const char* path) {
  DIR* directory = fdopendir(fd);
  char** names = NULL;
  size_t count = 0;
  struct dirent* entry;
  while ((entry = readdir(directory)) != NULL) {
    if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0) continue;
    names = realloc(names, (count + 1) * sizeof *names);
    names[count++] = strdup(entry->d_name);
  }
  qsort(names, count, sizeof *names, by_text);
  for (size_t i = 0; i < count; i++) {
    char* below;
    if (asprintf(&below, "%s/%s", path, names[i]) < 0) bad("memory", path);
    struct stat st;
    if (i > 0 && strcmp(names[i], names[i - 1]) == 0) {
      append("\n%s\tis listed twice", below);
      lines++;
    } else if (fstatat(fd, names[i], &st, AT_SYMLINK_NOFOLLOW) != 0) {
      append("\n%s\tis listed but %s", below, strerrorname_np(errno));
      lines++;
    } else {
      append_entry(fd, below, names[i], &st);
      if (S_ISDIR(st.st_mode)) {
        int child = openat(fd, names[i], O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        if (child >= 0) walk(child, below);
      }
    }
    free(below);
    free(names[i]);
  }
  free(names);
  closedir(directory);
}

// tree PATH [notimes]: `lines`, then the lines, then `end N`
void do_tree(int argc, char** argv) {
  with_times = argc < 2;
  groups.count = 0;
  lines = 0;
  struct stat st;
  int fd = open(argv[0], O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0 || fstat(fd, &st) != 0) {
    reply_errno();
    return;
  }
  append("lines");
  append_entry(fd, "", ".", &st);
  walk(fd, "");
  append("\n");
  reply("end %zu", lines);
}
