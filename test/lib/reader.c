/*
 * A reader for the tests of waiting and mapping.
 *
 *   reader read FILE          open, read to the end
 *   reader map-private FILE   the same through a private mapping
 *   reader map-shared FILE    the same through a shared mapping
 *   reader library FILE       dlopen FILE, call its `answer`
 *
 * The bytes go to standard output. SIGUSR1 is handled without SA_RESTART, and no call is repeated
 * after EINTR: a program that does not expect it would see what this one reports. With HOLD in the
 * environment, the file stays open (and mapped) until standard input ends.
 */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static volatile sig_atomic_t signals;

static void on_signal(int number) {
  (void)number;
  signals++;
}

static void fail(const char *what) {
  fprintf(stderr, "%s: %s (signals: %d)\n", what, strerror(errno), (int)signals);
  exit(1);
}

static void write_all(const char *data, size_t bytes) {
  while (bytes > 0) {
    ssize_t n = write(1, data, bytes);
    if (n < 0) fail("write");
    data += n;
    bytes -= (size_t)n;
  }
}

static void read_file(int fd) {
  static char block[1 << 17];
  ssize_t n;
  while ((n = read(fd, block, sizeof block)) > 0) write_all(block, (size_t)n);
  if (n < 0) fail("read");
}

static void map_file(int fd, int flags) {
  struct stat status;
  if (fstat(fd, &status) < 0) fail("fstat");
  size_t bytes = (size_t)status.st_size;
  char *map = mmap(NULL, bytes, PROT_READ, flags, fd, 0);
  if (map == MAP_FAILED) fail("mmap");
  char *copy = malloc(bytes);
  if (copy == NULL) fail("malloc");
  /* From the end, as no readahead would. */
  for (size_t end = bytes; end > 0;) {
    size_t step = end < 4096 ? end : 4096;
    end -= step;
    memcpy(copy + end, map + end, step);
  }
  write_all(copy, bytes);
}

static void use_library(const char *path) {
  void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (library == NULL) {
    fprintf(stderr, "dlopen: %s\n", dlerror());
    exit(1);
  }
  unsigned long (*answer)(void) = (unsigned long (*)(void))dlsym(library, "answer");
  if (answer == NULL) {
    fprintf(stderr, "dlsym: %s\n", dlerror());
    exit(1);
  }
  printf("%lu\n", answer());
  fflush(stdout);
}

int main(int count, char **words) {
  if (count != 3) {
    fprintf(stderr, "usage: reader read|map-private|map-shared|library FILE\n");
    return 2;
  }
  struct sigaction action = {.sa_handler = on_signal};
  sigaction(SIGUSR1, &action, NULL);
  fprintf(stderr, "started\n");
  if (strcmp(words[1], "library") == 0) {
    use_library(words[2]);
  } else {
    int fd = open(words[2], O_RDONLY | O_CLOEXEC);
    if (fd < 0) fail("open");
    fprintf(stderr, "opened\n");
    if (strcmp(words[1], "read") == 0) read_file(fd);
    if (strcmp(words[1], "map-private") == 0) map_file(fd, MAP_PRIVATE);
    if (strcmp(words[1], "map-shared") == 0) map_file(fd, MAP_SHARED);
  }
  fprintf(stderr, "done, signals: %d\n", (int)signals);
  if (getenv("HOLD") != NULL) {
    char byte;
    while (read(0, &byte, 1) > 0) {
    }
  }
  return 0;
}
