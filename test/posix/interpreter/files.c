// Commands on open files: contents, sizes, holes, mappings, locks, programs. What does not live
// here: names (names.c) and attributes (attributes.c).
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "interpreter.h"

static const struct {
  const char* word;
  int flag;
} open_words[] = {{"r", O_RDONLY},         {"w", O_WRONLY},      {"rw", O_RDWR},
                  {"creat", O_CREAT},      {"excl", O_EXCL},     {"trunc", O_TRUNC},
                  {"append", O_APPEND},    {"dir", O_DIRECTORY}, {"nofollow", O_NOFOLLOW},
                  {"tmpfile", O_TMPFILE},  {"direct", O_DIRECT}, {"path", O_PATH},
                  {"noatime", O_NOATIME},  {"sync", O_SYNC},     {"dsync", O_DSYNC},
                  {"nonblock", O_NONBLOCK}};

static int open_flags(char* words) {
  int flags = O_CLOEXEC;
  char* rest;
  for (char* at = strtok_r(words, ",", &rest); at != NULL; at = strtok_r(NULL, ",", &rest)) {
    size_t i = 0, count = sizeof open_words / sizeof *open_words;
    while (i < count && strcmp(open_words[i].word, at) != 0) i++;
    if (i == count) bad("not a flag of open", at);
    flags |= open_words[i].flag;
  }
  return flags;
}

// open NAME PATH FLAGS [MODE]
static void do_open(int argc, char** argv) {
  struct at at = at_of(argv[1]);
  int flags = open_flags(argv[2]);
  char self[64];
  if (at.empty) {
    // An open file once more, as by /proc/self/fd.
    snprintf(self, sizeof self, "/proc/self/fd/%d", at.fd);
    at.path = self;
  }
  int fd = openat(at.fd, at.path, flags, argc > 3 ? mode_of(argv[3]) : 0644);
  if (fd < 0) {
    reply_errno();
    return;
  }
  fd_keep(argv[0], fd);
  reply("ok");
}

static void do_close(int argc, char** argv) {
  (void)argc;
  int fd = fd_of(argv[0]);
  fd_drop(argv[0]);
  reply_result(close(fd));
}

// Short data as text, longer data as size and hash.
static void reply_data(const unsigned char* data, ssize_t got) {
  if (got < 0) {
    reply_errno();
    return;
  }
  append("ok ");
  if (got <= 64) {
    append("=");
    append_bytes(data, (size_t)got);
    reply("%s", "");
  } else {
    reply("%zd:%016llx", got, (unsigned long long)hash_of(HASH_START, data, (size_t)got));
  }
}

// Aligned, for O_DIRECT.
static unsigned char* room_for(size_t bytes) {
  void* data;
  if (posix_memalign(&data, 4096, bytes + 1) != 0) bad("memory", "");
  return data;
}

// read NAME BYTES [OFFSET]
static void do_read(int argc, char** argv) {
  int fd = fd_of(argv[0]);
  size_t bytes = (size_t)number(argv[1]);
  unsigned char* data = room_for(bytes);
  reply_data(data, argc > 2 ? pread(fd, data, bytes, number(argv[2])) : read(fd, data, bytes));
  free(data);
}

// write NAME DATA [OFFSET]
static void do_write(int argc, char** argv) {
  int fd = fd_of(argv[0]);
  size_t bytes;
  unsigned char* given = data_of(argv[1], &bytes);
  unsigned char* data = room_for(bytes);
  memcpy(data, given, bytes);
  ssize_t done = argc > 2 ? pwrite(fd, data, bytes, number(argv[2])) : write(fd, data, bytes);
  free(given);
  free(data);
  if (done < 0)
    reply_errno();
  else
    reply("ok %zd", done);
}

// seek NAME OFFSET set|cur|end|data|hole
static void do_seek(int argc, char** argv) {
  (void)argc;
  static const char* const words[] = {"set", "cur", "end", "data", "hole"};
  static const int whence[] = {SEEK_SET, SEEK_CUR, SEEK_END, SEEK_DATA, SEEK_HOLE};
  int i = 0;
  while (i < 5 && strcmp(words[i], argv[2]) != 0) i++;
  if (i == 5) bad("not a way to seek", argv[2]);
  off_t at = lseek(fd_of(argv[0]), number(argv[1]), whence[i]);
  if (at < 0)
    reply_errno();
  else
    reply("ok %lld", (long long)at);
}

// truncate PATH BYTES; an open file where PATH is @NAME
static void do_truncate(int argc, char** argv) {
  (void)argc;
  struct at at = at_of(argv[0]);
  off_t bytes = number(argv[1]);
  reply_result(at.empty ? ftruncate(at.fd, bytes) : truncate(at.path, bytes));
}

// fallocate NAME keep|punch|zero|collapse|plain OFFSET BYTES
static void do_fallocate(int argc, char** argv) {
  (void)argc;
  int mode = 0;
  if (has_word(argv[1], "keep")) mode |= FALLOC_FL_KEEP_SIZE;
  if (has_word(argv[1], "punch")) mode |= FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
  if (has_word(argv[1], "zero")) mode |= FALLOC_FL_ZERO_RANGE;
  if (has_word(argv[1], "collapse")) mode |= FALLOC_FL_COLLAPSE_RANGE;
  reply_result(fallocate(fd_of(argv[0]), mode, number(argv[2]), number(argv[3])));
}

// copyrange FROM OFFSET TO OFFSET BYTES
static void do_copyrange(int argc, char** argv) {
  (void)argc;
  off_t from = number(argv[1]), to = number(argv[3]);
  ssize_t done =
      copy_file_range(fd_of(argv[0]), &from, fd_of(argv[2]), &to, (size_t)number(argv[4]), 0);
  if (done < 0)
    reply_errno();
  else
    reply("ok %zd", done);
}

// sync NAME [data|fs]
static void do_sync(int argc, char** argv) {
  int fd = fd_of(argv[0]);
  if (argc > 1 && strcmp(argv[1], "fs") == 0)
    reply_result(syncfs(fd));
  else
    reply_result(argc > 1 ? fdatasync(fd) : fsync(fd));
}

static void do_flock(int argc, char** argv) {
  (void)argc;
  int how = strcmp(argv[1], "sh") == 0 ? LOCK_SH : strcmp(argv[1], "ex") == 0 ? LOCK_EX : LOCK_UN;
  reply_result(flock(fd_of(argv[0]), how | LOCK_NB));
}

// lock NAME posix|ofd r|w|u START BYTES: sets, without waiting
static void do_lock(int argc, char** argv) {
  (void)argc;
  struct flock lock = {.l_whence = SEEK_SET, .l_start = number(argv[3]), .l_len = number(argv[4])};
  lock.l_type = argv[2][0] == 'r' ? F_RDLCK : argv[2][0] == 'w' ? F_WRLCK : F_UNLCK;
  int op = strcmp(argv[1], "ofd") == 0 ? F_OFD_SETLK : F_SETLK;
  reply_result(fcntl(fd_of(argv[0]), op, &lock));
}

// locked NAME r|w START BYTES: what would stand in the way, asked by another process
static void do_locked(int argc, char** argv) {
  (void)argc;
  int fd = fd_of(argv[0]);
  int status;
  fflush(stdout);
  pid_t child = fork();
  if (child == 0) {
    struct flock lock = {
        .l_whence = SEEK_SET, .l_start = number(argv[2]), .l_len = number(argv[3])};
    lock.l_type = argv[1][0] == 'r' ? F_RDLCK : F_WRLCK;
    _exit(fcntl(fd, F_GETLK, &lock) != 0 ? 3
          : lock.l_type == F_UNLCK       ? 0
          : lock.l_type == F_RDLCK       ? 1
                                         : 2);
  }
  waitpid(child, &status, 0);
  static const char* const answers[] = {"free", "r", "w", "failed"};
  reply("ok %s", answers[WEXITSTATUS(status) & 3]);
}

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

const struct command file_commands[] = {{"open", 3, 4, do_open},
                                        {"close", 1, 1, do_close},
                                        {"read", 2, 3, do_read},
                                        {"write", 2, 3, do_write},
                                        {"seek", 3, 3, do_seek},
                                        {"truncate", 2, 2, do_truncate},
                                        {"fallocate", 4, 4, do_fallocate},
                                        {"copyrange", 5, 5, do_copyrange},
                                        {"sync", 1, 2, do_sync},
                                        {"flock", 2, 2, do_flock},
                                        {"lock", 5, 5, do_lock},
                                        {"locked", 4, 4, do_locked},
                                        {"map", 5, 5, do_map},
                                        {"peek", 3, 3, do_peek},
                                        {"poke", 3, 3, do_poke},
                                        {"msync", 1, 1, do_msync},
                                        {"unmap", 1, 1, do_unmap},
                                        {"exec", 1, 1, do_exec},
                                        {"end", 0, 0, do_end},
                                        {"copyself", 1, 1, do_copyself},
                                        {NULL, 0, 0, NULL}};
