// Commands on open files: contents, sizes, holes, locks. What does not live
// here: names (names.c), attributes (attributes.c), mappings (mappings.c).
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
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
void reply_data(const unsigned char* data, ssize_t got) {
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

// put PATH FLAGS DATA [OFFSET]: open, write and close, up to the first error
static void do_put(int argc, char** argv) {
  struct at at = at_of(argv[0]);
  int fd = openat(at.fd, at.path, open_flags(argv[1]), 0644);
  if (fd < 0) {
    reply_errno();
    return;
  }
  size_t bytes;
  unsigned char* data = data_of(argv[2], &bytes);
  ssize_t done = argc > 3 ? pwrite(fd, data, bytes, number(argv[3])) : write(fd, data, bytes);
  free(data);
  int saved = errno;
  int closed = close(fd);
  if (done < 0) errno = saved;
  reply_result(done < 0 ? done : closed);
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

const struct command file_commands[] = {{"open", 3, 4, do_open},
                                        {"close", 1, 1, do_close},
                                        {"read", 2, 3, do_read},
                                        {"write", 2, 3, do_write},
                                        {"put", 3, 4, do_put},
                                        {"seek", 3, 3, do_seek},
                                        {"truncate", 2, 2, do_truncate},
                                        {"fallocate", 4, 4, do_fallocate},
                                        {"copyrange", 5, 5, do_copyrange},
                                        {"sync", 1, 2, do_sync},
                                        {"flock", 2, 2, do_flock},
                                        {"lock", 5, 5, do_lock},
                                        {"locked", 4, 4, do_locked},
                                        {NULL, 0, 0, NULL}};
