// A program that makes one system call for each line of its input and answers with one line: `ok`
// with what came back, or the name of the errno. Both sides of every comparison run through it, as
// any user, with files kept open by name. What does not live here: what is expected.
//
// Words are separated by blanks; %XX stands for a byte. Paths are relative to the working
// directory, or to an open file (`@NAME/path`). Lines that a test got wrong end the program with a
// message.
#define _GNU_SOURCE
#include "interpreter.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { FILES = 4096, WORDS = 64, NAME_ROOM = 32 };

static struct {
  char name[NAME_ROOM];
  int fd;
  bool used;
} files[FILES];

_Noreturn void bad(const char* what, const char* token) {
  fflush(stdout);
  fprintf(stderr, "interpreter: %s: %s\n", what, token);
  exit(2);
}

void append(const char* format, ...) {
  va_list list;
  va_start(list, format);
  vprintf(format, list);
  va_end(list);
}

void append_bytes(const void* data, size_t bytes) {
  const unsigned char* at = data;
  for (size_t i = 0; i < bytes; i++) {
    if (at[i] > ' ' && at[i] < 127 && at[i] != '%')
      putchar(at[i]);
    else
      printf("%%%02x", at[i]);
  }
}

void append_line(void) { putchar('\n'); }

void reply(const char* format, ...) {
  va_list list;
  va_start(list, format);
  vprintf(format, list);
  va_end(list);
  putchar('\n');
}

void reply_errno(void) { reply("%s", strerrorname_np(errno)); }

void reply_result(long result) {
  if (result < 0)
    reply_errno();
  else
    reply("ok");
}

int fd_of(const char* name) {
  for (int i = 0; i < FILES; i++)
    if (files[i].used && strcmp(files[i].name, name) == 0) return files[i].fd;
  return -1;
}

void fd_keep(const char* name, int fd) {
  if (strlen(name) >= NAME_ROOM) bad("name of an open file is too long", name);
  if (fd_of(name) >= 0) {
    close(fd_of(name));
    fd_drop(name);
  }
  for (int i = 0; i < FILES; i++) {
    if (files[i].used) continue;
    files[i].used = true;
    files[i].fd = fd;
    strcpy(files[i].name, name);
    return;
  }
  bad("too many open files", name);
}

void fd_drop(const char* name) {
  for (int i = 0; i < FILES; i++)
    if (files[i].used && strcmp(files[i].name, name) == 0) files[i].used = false;
}

struct at at_of(char* token) {
  struct at at = {AT_FDCWD, token, false};
  if (token[0] != '@') return at;
  char* slash = strchr(token, '/');
  if (slash == NULL) {
    at.fd = fd_of(token + 1);
    at.path = "";
    at.empty = true;
    return at;
  }
  *slash = '\0';
  at.fd = fd_of(token + 1);
  *slash = '/';
  at.path = slash + 1;
  return at;
}

long long number(const char* token) {
  char* end;
  long long value = strtoll(token, &end, 10);
  if (end == token || *end != '\0') bad("not a number", token);
  return value;
}

unsigned mode_of(const char* token) {
  char* end;
  unsigned long value = strtoul(token, &end, 8);
  if (end == token || *end != '\0') bad("not an octal mode", token);
  return (unsigned)value;
}

bool has_word(const char* list, const char* word) {
  size_t length = strlen(word);
  for (const char* at = list; at != NULL; at = strchr(at, ',')) {
    if (*at == ',') at++;
    if (strncmp(at, word, length) == 0 && (at[length] == ',' || at[length] == '\0')) return true;
  }
  return false;
}

unsigned char* data_of(char* token, size_t* bytes) {
  if (token[0] == '=') {
    *bytes = strlen(token + 1);
    return (unsigned char*)strdup(token + 1);
  }
  if (strncmp(token, "hex:", 4) == 0) {
    *bytes = strlen(token + 4) / 2;
    unsigned char* data = malloc(*bytes + 1);
    unsigned byte;
    for (size_t i = 0; i < *bytes; i++) {
      if (sscanf(token + 4 + 2 * i, "%2x", &byte) != 1) bad("not hexadecimal", token);
      data[i] = (unsigned char)byte;
    }
    return data;
  }
  char* star = strchr(token, '*');
  if (star == NULL) bad("neither =text nor SEED*BYTES", token);
  *star = '\0';
  uint64_t state = (uint64_t)number(token) * UINT64_C(0x9e3779b97f4a7c15) + 1;
  *bytes = (size_t)number(star + 1);
  unsigned char* data = malloc(*bytes + 8);
  if (data == NULL) bad("memory", token);
  for (size_t i = 0; i < *bytes; i += 8) {
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    memcpy(data + i, &state, 8);
  }
  return data;
}

uint64_t hash_of(uint64_t hash, const unsigned char* data, size_t bytes) {
  for (size_t i = 0; i < bytes; i++) hash = (hash ^ data[i]) * UINT64_C(1099511628211);
  return hash;
}

// as UID GID [GROUP,GROUP...]: the effective ids; 0 0 is root again.
static void do_as(int argc, char** argv) {
  gid_t groups[32];
  size_t count = 0;
  for (char* at = argc > 2 ? strtok(argv[2], ",") : NULL; at != NULL; at = strtok(NULL, ","))
    groups[count++] = (gid_t)number(at);
  if (seteuid(0) != 0 || setgroups(count, groups) != 0 || setegid((gid_t)number(argv[1])) != 0 ||
      seteuid((uid_t)number(argv[0])) != 0)
    bad("cannot become", argv[0]);
  // Else /proc/self would belong to root, and with it /proc/self/fd.
  prctl(PR_SET_DUMPABLE, 1);
  reply("ok");
}

static void do_umask(int argc, char** argv) {
  (void)argc;
  umask(mode_of(argv[0]));
  reply("ok");
}

static void do_cd(int argc, char** argv) {
  (void)argc;
  struct at at = at_of(argv[0]);
  reply_result(at.empty ? fchdir(at.fd) : chdir(argv[0]));
}

// Ends when the clock that stamps files has gone on: two stamps around it differ.
static void do_tick(int argc, char** argv) {
  (void)argc, (void)argv;
  struct timespec start, now, pause = {0, 1000000};
  clock_gettime(CLOCK_REALTIME_COARSE, &start);
  int steps = 0;
  struct timespec last = start;
  while (steps < 2) {
    nanosleep(&pause, NULL);
    clock_gettime(CLOCK_REALTIME_COARSE, &now);
    if (now.tv_sec != last.tv_sec || now.tv_nsec != last.tv_nsec) steps++, last = now;
  }
  reply("ok");
}

// After a case: everything closed, root again, umask 022.
static void do_reset(int argc, char** argv) {
  (void)argc;
  for (int i = 0; i < FILES; i++) {
    if (files[i].used) close(files[i].fd);
    files[i].used = false;
  }
  if (seteuid(0) != 0 || setegid(0) != 0 || setgroups(0, NULL) != 0)
    bad("cannot become root", "reset");
  prctl(PR_SET_DUMPABLE, 1);
  umask(022);
  reply_result(chdir(argv[0]));
}

static const struct command own_commands[] = {{"as", 2, 3, do_as},       {"umask", 1, 1, do_umask},
                                              {"cd", 1, 1, do_cd},       {"tick", 0, 0, do_tick},
                                              {"reset", 1, 1, do_reset}, {NULL, 0, 0, NULL}};

static void unescape(char* token) {
  char* to = token;
  for (const char* from = token; *from != '\0';) {
    unsigned byte;
    if (from[0] == '%' && sscanf(from + 1, "%2x", &byte) == 1) {
      *to++ = (char)byte;
      from += 3;
    } else {
      *to++ = *from++;
    }
  }
  *to = '\0';
}

static void run_line(char* line) {
  char* words[WORDS];
  int count = 0;
  for (char* at = strtok(line, " \n"); at != NULL; at = strtok(NULL, " \n")) {
    if (count == WORDS) bad("too many words", words[0]);
    words[count++] = at;
  }
  if (count == 0) bad("an empty line", "");
  const struct command* tables[] = {own_commands, name_commands, file_commands, attribute_commands,
                                    mapping_commands};
  for (size_t t = 0; t < sizeof tables / sizeof *tables; t++) {
    for (const struct command* c = tables[t]; c->name != NULL; c++) {
      if (strcmp(c->name, words[0]) != 0) continue;
      if (count - 1 < c->least || count - 1 > c->most) bad("wrong number of arguments", c->name);
      for (int i = 1; i < count; i++) unescape(words[i]);
      errno = 0;
      c->run(count - 1, words + 1);
      return;
    }
  }
  bad("unknown command", words[0]);
}

int main(int argc, char** argv) {
  // As `exec` and `spawn` of the commands use it: a program that waits until its input ends.
  if (argc == 1 && strstr(argv[0], "waits") != NULL) return getchar() == EOF ? 0 : 1;
  if (argc == 2 && chdir(argv[1]) != 0) bad("cannot enter", argv[1]);
  umask(022);
  char* line = NULL;
  size_t room = 0;
  while (getline(&line, &room, stdin) > 0) {
    run_line(line);
    fflush(stdout);
  }
  free(line);
  return 0;
}
