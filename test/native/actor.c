/*
 * A program that does one file operation for each line of its input, and answers with one line, so
 * that a test decides about the order of things. No call is repeated after EINTR. SIGUSR1 is handled
 * (without SA_RESTART), SIGUSR2 ends the program, as by default.
 *
 *   open PATH               -> fd N        close N             -> ok
 *   pread FD OFFSET BYTES   -> bytes HEX   dup N               -> fd N
 *   map private|shared FD BYTES -> map N   unmap N             -> ok
 *   peek MAP OFFSET         -> byte N (or "sigbus")
 *   signals                 -> signals N   forkhold            -> pid N (a child that holds all)
 *   forkmap FD BYTES        -> pid N (a child that maps the file shared, and holds all)
 *   any error               -> error ERRNO-NUMBER
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define MAPS 64

static volatile sig_atomic_t signals;
static sigjmp_buf on_bus;
static struct {
  char *at;
  size_t bytes;
} maps[MAPS];
static int map_count;

static void handled(int number) {
  (void)number;
  signals++;
}

static void bus(int number) {
  (void)number;
  siglongjmp(on_bus, 1);
}

static void failed(void) { printf("error %d\n", errno); }

static void do_pread(int fd, long offset, size_t bytes) {
  unsigned char *data = malloc(bytes);
  ssize_t got = pread(fd, data, bytes, offset);
  if (got < 0) {
    failed();
  } else {
    printf("bytes ");
    for (ssize_t i = 0; i < got; i++) printf("%02x", data[i]);
    printf("\n");
  }
  free(data);
}

static void do_map(const char *kind, int fd, size_t bytes) {
  int flags = strcmp(kind, "shared") == 0 ? MAP_SHARED : MAP_PRIVATE;
  char *at = mmap(NULL, bytes, PROT_READ, flags, fd, 0);
  if (at == MAP_FAILED || map_count == MAPS) {
    failed();
    return;
  }
  maps[map_count].at = at;
  maps[map_count].bytes = bytes;
  printf("map %d\n", map_count++);
}

static void do_peek(int map, long offset) {
  if (sigsetjmp(on_bus, 1) != 0) {
    printf("sigbus\n");
    return;
  }
  printf("byte %d\n", (unsigned char)((volatile char *)maps[map].at)[offset]);
}

static void done(int result) {
  if (result < 0)
    failed();
  else
    printf("ok\n");
}

static void fd_or_error(int fd) {
  if (fd < 0)
    failed();
  else
    printf("fd %d\n", fd);
}

int main(void) {
  struct sigaction action = {.sa_handler = handled};
  sigaction(SIGUSR1, &action, NULL);
  struct sigaction bus_action = {.sa_handler = bus};
  sigaction(SIGBUS, &bus_action, NULL);
  char line[8192], word[16];
  int a, b;
  long offset;
  size_t bytes;
  setvbuf(stdout, NULL, _IOLBF, 0);
  printf("ready\n");
  for (;;) {
    if (fgets(line, sizeof line, stdin) == NULL) {
      if (ferror(stdin) && errno == EINTR) {
        clearerr(stdin);
        continue;
      }
      return 0;
    }
    line[strcspn(line, "\n")] = '\0';
    if (strncmp(line, "open ", 5) == 0) {
      fd_or_error(open(line + 5, O_RDONLY | O_CLOEXEC));
    } else if (sscanf(line, "close %d", &a) == 1) {
      done(close(a));
    } else if (sscanf(line, "dup %d", &a) == 1) {
      fd_or_error(dup(a));
    } else if (sscanf(line, "pread %d %ld %zu", &a, &offset, &bytes) == 3) {
      do_pread(a, offset, bytes);
    } else if (sscanf(line, "map %15s %d %zu", word, &a, &bytes) == 3) {
      do_map(word, a, bytes);
    } else if (sscanf(line, "unmap %d", &a) == 1) {
      done(munmap(maps[a].at, maps[a].bytes));
    } else if (sscanf(line, "peek %d %ld", &b, &offset) == 2) {
      do_peek(b, offset);
    } else if (strcmp(line, "signals") == 0) {
      printf("signals %d\n", (int)signals);
    } else if (strcmp(line, "forkhold") == 0 || sscanf(line, "forkmap %d %zu", &a, &bytes) == 2) {
      int map_it = line[4] == 'm';
      pid_t pid = fork();
      if (pid == 0) {
        close(0);
        if (map_it && mmap(NULL, bytes, PROT_READ, MAP_SHARED, a, 0) == MAP_FAILED) _exit(1);
        for (;;) pause();
      }
      printf("pid %d\n", (int)pid);
    } else {
      printf("what? %s\n", line);
    }
  }
}
