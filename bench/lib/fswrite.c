// The loops of bench/writes: the same binary runs on both sides of every comparison, and prints one
// JSON object. What does not live here: reading (fsbench.c), and what is compared with what.
//
//   fswrite create DIR COUNT BYTES   create a file, write BYTES, close and unlink it, COUNT times
//   fswrite large  FILE MEGABYTES    a new file, written by 1 MiB; it is removed afterwards, untimed
//   fswrite append ROOT LIST         open every path, append one byte, close: the first write to it
//
// A LIST is a file of NUL-terminated paths, relative to ROOT, which becomes the working directory.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "loops.h"

enum { BLOCK = 1 << 20 };
static char block[BLOCK];

static void write_all(int fd, size_t bytes) {
  while (bytes > 0) {
    ssize_t done = write(fd, block, bytes < BLOCK ? bytes : BLOCK);
    if (done < 0) die("write");
    bytes -= (size_t)done;
  }
}

static int create(const char* directory, int count, size_t bytes) {
  if (chdir(directory) != 0) die(directory);
  uint64_t start = 0;
  // Some untimed ones first.
  for (int i = -200; i < count; i++) {
    if (i == 0) start = now_ns();
    char name[32];
    snprintf(name, sizeof name, "created-%d", i + 200);
    int fd = open(name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
    if (fd < 0) die(name);
    write_all(fd, bytes);
    if (close(fd) != 0) die("close");
    if (unlink(name) != 0) die("unlink");
  }
  return report((uint64_t)count, (uint64_t)count * bytes, now_ns() - start);
}

static int large(const char* path, size_t megabytes) {
  uint64_t start = now_ns();
  int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
  if (fd < 0) die(path);
  write_all(fd, megabytes * BLOCK);
  if (close(fd) != 0) die("close");
  uint64_t ns = now_ns() - start;
  if (unlink(path) != 0) die("unlink");
  return report(1, megabytes * BLOCK, ns);
}

static int append(const char* root, const char* list) {
  FILE* file = fopen(list, "re");
  if (!file) die(list);
  if (chdir(root) != 0) die(root);
  char* path = NULL;
  size_t room = 0;
  uint64_t count = 0, start = now_ns();
  while (getdelim(&path, &room, '\0', file) > 0) {
    int fd = open(path, O_WRONLY | O_APPEND | O_CLOEXEC);
    if (fd < 0) die(path);
    write_all(fd, 1);
    if (close(fd) != 0) die("close");
    count++;
  }
  uint64_t ns = now_ns() - start;
  free(path);
  fclose(file);
  return report(count, count, ns);
}

int main(int argc, char** argv) {
  memset(block, 'w', sizeof block);
  const char* mode = argc > 1 ? argv[1] : "";
  if (strcmp(mode, "create") == 0 && argc == 5)
    return create(argv[2], atoi(argv[3]), (size_t)atoll(argv[4]));
  if (strcmp(mode, "large") == 0 && argc == 4) return large(argv[2], (size_t)atoll(argv[3]));
  if (strcmp(mode, "append") == 0 && argc == 4) return append(argv[2], argv[3]);
  fprintf(stderr,
          "usage: fswrite create DIR COUNT BYTES | large FILE MEGABYTES | append ROOT LIST\n");
  return 2;
}
