// Commands on mappings and running programs. What does not live here: reads and writes (files.c).
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "interpreter.h"

enum { MAPS = 64 };
static struct {
  char name[16];
  unsigned char* at;
  size_t bytes;
} maps[MAPS];
static sigjmp_buf on_bus;

static void bus(int number) {
  (void)number;
  siglongjmp(on_bus, 1);
}

static int map_of(const char* name) {
  for (int i = 0; i < MAPS; i++)
    if (maps[i].at != NULL && strcmp(maps[i].name, name) == 0) return i;
  bad("no such mapping", name);
}

// map NAME FILE BYTES r|rw|rx shared|private
static void do_map(int argc, char** argv) {
  (void)argc;
  int i = 0;
  while (i < MAPS && maps[i].at != NULL) i++;
  if (i == MAPS) bad("too many mappings", argv[0]);
  int protection = PROT_READ | (strcmp(argv[3], "rw") == 0 ? PROT_WRITE : 0) |
                   (strcmp(argv[3], "rx") == 0 ? PROT_EXEC : 0);
  size_t bytes = (size_t)number(argv[2]);
  void* at = mmap(NULL, bytes, protection, argv[4][0] == 's' ? MAP_SHARED : MAP_PRIVATE,
                  fd_of(argv[1]), 0);
  if (at == MAP_FAILED) {
    reply_errno();
    return;
  }
  snprintf(maps[i].name, sizeof maps[i].name, "%s", argv[0]);
  maps[i].at = at;
  maps[i].bytes = bytes;
  reply("ok");
}

static void catch_bus(bool on) {
  struct sigaction action = {.sa_handler = on ? bus : SIG_DFL};
  sigaction(SIGBUS, &action, NULL);
}

// Copies, one side of it mapped; false where the page is not there (SIGBUS).
static bool guarded_copy(void* to, const void* from, size_t bytes) {
  catch_bus(true);
  volatile bool whole = false;
  if (sigsetjmp(on_bus, 1) == 0) {
    memcpy(to, from, bytes);
    whole = true;
  }
  catch_bus(false);
  return whole;
}

// peek MAP OFFSET BYTES
static void do_peek(int argc, char** argv) {
  (void)argc;
  size_t bytes = (size_t)number(argv[2]);
  unsigned char* data = malloc(bytes + 1);
  if (guarded_copy(data, maps[map_of(argv[0])].at + number(argv[1]), bytes))
    reply_data(data, (ssize_t)bytes);
  else
    reply("SIGBUS");
  free(data);
}

// poke MAP OFFSET DATA
static void do_poke(int argc, char** argv) {
  (void)argc;
  size_t bytes;
  unsigned char* data = data_of(argv[2], &bytes);
  bool whole = guarded_copy(maps[map_of(argv[0])].at + number(argv[1]), data, bytes);
  reply(whole ? "ok" : "SIGBUS");
  free(data);
}

static void do_msync(int argc, char** argv) {
  (void)argc;
  int map = map_of(argv[0]);
  reply_result(msync(maps[map].at, maps[map].bytes, MS_SYNC));
}

static void do_unmap(int argc, char** argv) {
  (void)argc;
  int map = map_of(argv[0]);
  int result = munmap(maps[map].at, maps[map].bytes);
  maps[map].at = NULL;
  reply_result(result);
}

// A program in the tree (this one, under a name with "waits") runs until `end`.
static struct {
  pid_t pid;
  int input;
} program;

static void do_exec(int argc, char** argv) {
  (void)argc;
  int input[2], failure[2];
  if (pipe2(input, O_CLOEXEC) != 0 || pipe2(failure, O_CLOEXEC) != 0) bad("pipe", argv[0]);
  fflush(stdout);
  pid_t child = fork();
  if (child == 0) {
    dup2(input[0], 0);
    execl(argv[0], argv[0], (char*)NULL);
    int error = errno;
    if (write(failure[1], &error, sizeof error) < 0) _exit(126);
    _exit(127);
  }
  close(input[0]);
  close(failure[1]);
  int error = 0;
  // Nothing comes where exec closed the pipe.
  if (read(failure[0], &error, sizeof error) == 0) error = 0;
  close(failure[0]);
  if (error != 0) {
    waitpid(child, NULL, 0);
    close(input[1]);
    errno = error;
    reply_errno();
    return;
  }
  program.pid = child;
  program.input = input[1];
  reply("ok");
}

// copyself PATH: this program as a new file, by reads and writes
static void do_copyself(int argc, char** argv) {
  (void)argc;
  static char buffer[1 << 16];
  struct at at = at_of(argv[0]);
  int from = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
  int to = openat(at.fd, at.path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0755);
  ssize_t got = to < 0 ? -1 : 0;
  while (to >= 0 && (got = read(from, buffer, sizeof buffer)) > 0)
    if (write(to, buffer, (size_t)got) != got) break;
  int saved = errno;
  close(from);
  if (to >= 0) close(to);
  errno = saved;
  reply_result(got == 0 ? 0 : -1);
}

static void do_end(int argc, char** argv) {
  (void)argc, (void)argv;
  int status = 0;
  close(program.input);
  waitpid(program.pid, &status, 0);
  reply("ok %d", WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status));
}

const struct command mapping_commands[] = {
    {"map", 5, 5, do_map},     {"peek", 3, 3, do_peek},         {"poke", 3, 3, do_poke},
    {"msync", 1, 1, do_msync}, {"unmap", 1, 1, do_unmap},       {"exec", 1, 1, do_exec},
    {"end", 0, 0, do_end},     {"copyself", 1, 1, do_copyself}, {NULL, 0, 0, NULL}};
