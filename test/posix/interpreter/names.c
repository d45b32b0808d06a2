// Commands on names: make, link, rename and remove them, list directories. What does not live here:
// file contents (files.c) and attributes (attributes.c).
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/un.h>
#include <unistd.h>

#include "interpreter.h"

static void do_mkdir(int argc, char** argv) {
  struct at at = at_of(argv[0]);
  reply_result(mkdirat(at.fd, at.path, argc > 1 ? mode_of(argv[1]) : 0755));
}

static void do_rmdir(int argc, char** argv) {
  (void)argc;
  struct at at = at_of(argv[0]);
  reply_result(unlinkat(at.fd, at.path, AT_REMOVEDIR));
}

static void do_unlink(int argc, char** argv) {
  (void)argc;
  struct at at = at_of(argv[0]);
  reply_result(unlinkat(at.fd, at.path, 0));
}

static void do_mkfifo(int argc, char** argv) {
  struct at at = at_of(argv[0]);
  reply_result(mkfifoat(at.fd, at.path, argc > 1 ? mode_of(argv[1]) : 0644));
}

static mode_t type_of(const char* token) {
  switch (token[0]) {
    case 'c':
      return S_IFCHR;
    case 'b':
      return S_IFBLK;
    case 'p':
      return S_IFIFO;
    case 's':
      return S_IFSOCK;
    case 'f':
      return S_IFREG;
    case 'd':
      return S_IFDIR;
    default:
      bad("not a type of file", token);
  }
}

// mknod PATH TYPE MODE [MAJOR MINOR]
static void do_mknod(int argc, char** argv) {
  struct at at = at_of(argv[0]);
  dev_t device = argc > 4 ? makedev((unsigned)number(argv[3]), (unsigned)number(argv[4])) : 0;
  reply_result(mknodat(at.fd, at.path, type_of(argv[1]) | mode_of(argv[2]), device));
}

// symlink TARGET PATH
static void do_symlink(int argc, char** argv) {
  (void)argc;
  struct at at = at_of(argv[1]);
  reply_result(symlinkat(argv[0], at.fd, at.path));
}

static void do_readlink(int argc, char** argv) {
  char target[8192];
  struct at at = at_of(argv[0]);
  ssize_t got =
      readlinkat(at.fd, at.path, target, argc > 1 ? (size_t)number(argv[1]) : sizeof target);
  if (got < 0) {
    reply_errno();
    return;
  }
  append("ok ");
  append_bytes(target, (size_t)got);
  reply("%s", "");
}

// link OLD NEW [follow]; OLD may be an open file, such as one made with O_TMPFILE
static void do_link(int argc, char** argv) {
  struct at from = at_of(argv[0]), to = at_of(argv[1]);
  int flags = argc > 2 && strcmp(argv[2], "follow") == 0 ? AT_SYMLINK_FOLLOW : 0;
  if (!from.empty) {
    reply_result(linkat(from.fd, from.path, to.fd, to.path, flags));
    return;
  }
  char path[64];
  snprintf(path, sizeof path, "/proc/self/fd/%d", from.fd);
  reply_result(linkat(AT_FDCWD, path, to.fd, to.path, AT_SYMLINK_FOLLOW));
}

// rename OLD NEW [noreplace|exchange|whiteout]
static void do_rename(int argc, char** argv) {
  struct at from = at_of(argv[0]), to = at_of(argv[1]);
  unsigned flags = 0;
  if (argc > 2) {
    flags |= has_word(argv[2], "noreplace") ? RENAME_NOREPLACE : 0;
    flags |= has_word(argv[2], "exchange") ? RENAME_EXCHANGE : 0;
    flags |= has_word(argv[2], "whiteout") ? RENAME_WHITEOUT : 0;
  }
  reply_result(renameat2(from.fd, from.path, to.fd, to.path, flags));
}

// bind PATH: a socket of the unix domain
static void do_bind(int argc, char** argv) {
  (void)argc;
  struct sockaddr_un name = {.sun_family = AF_UNIX};
  if (strlen(argv[0]) >= sizeof name.sun_path) bad("too long for a socket", argv[0]);
  strcpy(name.sun_path, argv[0]);
  int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  int result = bind(fd, (struct sockaddr*)&name, sizeof name);
  int saved = errno;
  close(fd);
  errno = saved;
  reply_result(result);
}

static int by_name(const void* a, const void* b) {
  return strcmp(*(char* const*)a, *(char* const*)b);
}

static unsigned char dt_of(mode_t mode) { return (unsigned char)((mode & S_IFMT) >> 12); }

// Inode numbers in listings are not compared: kernel overlayfs over two filesystems makes up
// others.
static bool lax_inodes;

// lax inodes
static void do_lax(int argc, char** argv) {
  (void)argc;
  lax_inodes = strcmp(argv[0], "inodes") == 0;
  reply("ok");
}

// Type and inode number of an entry, held against lstat; a reason or NULL. Mount points and ".."
// of the top are not compared.
static const char* entry_fault(int fd, const struct dirent64* entry) {
  if (strcmp(entry->d_name, "..") == 0) return NULL;
  struct stat st;
  if (fstatat(fd, entry->d_name, &st, AT_SYMLINK_NOFOLLOW) != 0)
    // Removed meanwhile, or who asks may not search the directory.
    return errno == ENOENT || errno == EACCES ? NULL : "cannot be looked at";
  if (entry->d_type != DT_UNKNOWN && entry->d_type != dt_of(st.st_mode))
    return "has another type in the listing";
  if (!lax_inodes && entry->d_ino != st.st_ino) return "has another inode number in the listing";
  return NULL;
}

// list PATH [BUFFER-BYTES]: all names sorted, "." and ".." left out but required; every name is
// held against lstat.
static void do_list(int argc, char** argv) {
  struct at at = at_of(argv[0]);
  size_t room = argc > 1 ? (size_t)number(argv[1]) : 32768;
  int fd = openat(at.fd, at.empty ? "." : at.path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) {
    reply_errno();
    return;
  }
  char** names = NULL;
  size_t count = 0;
  int dots = 0;
  char* buffer = malloc(room);
  const char* fault = NULL;
  char faulty[300] = "";
  long got;
  while ((got = syscall(SYS_getdents64, fd, buffer, room)) > 0) {
    for (long i = 0; i < got;) {
      struct dirent64* entry = (struct dirent64*)(buffer + i);
      i += entry->d_reclen;
      const char* reason = entry_fault(fd, entry);
      if (reason != NULL && fault == NULL)
        fault = reason, snprintf(faulty, sizeof faulty, "%s", entry->d_name);
      if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0) {
        dots++;
        continue;
      }
      names = realloc(names, (count + 1) * sizeof *names);
      names[count++] = strdup(entry->d_name);
    }
  }
  if (got < 0) {
    reply_errno();
  } else if (fault != NULL || dots != 2) {
    reply("bad %s %s", dots != 2 ? "dots" : faulty, fault != NULL ? fault : "are not two");
  } else {
    qsort(names, count, sizeof *names, by_name);
    append("ok");
    for (size_t i = 0; i < count; i++) {
      append(" ");
      append_bytes(names[i], strlen(names[i]));
    }
    reply("%s", "");
  }
  for (size_t i = 0; i < count; i++) free(names[i]);
  free(names);
  free(buffer);
  close(fd);
}

// Names that `getdents` has given since the last `forget`.
static char** given;
static size_t given_count;

static void do_forget(int argc, char** argv) {
  (void)argc, (void)argv;
  while (given_count > 0) free(given[--given_count]);
  reply("ok");
}

// given NAME: how often a listing has given it
static void do_given(int argc, char** argv) {
  (void)argc;
  size_t times = 0;
  for (size_t i = 0; i < given_count; i++) times += strcmp(given[i], argv[0]) == 0;
  reply("ok %zu", times);
}

// getdents NAME BUFFER-BYTES [all]: how many names one call on an open directory gives, or all
// calls up to the end
static void do_getdents(int argc, char** argv) {
  size_t room = (size_t)number(argv[1]), count = 0;
  char* buffer = malloc(room);
  long got;
  do {
    got = syscall(SYS_getdents64, fd_of(argv[0]), buffer, room);
    for (long i = 0; i < got;) {
      struct dirent64* entry = (struct dirent64*)(buffer + i);
      i += entry->d_reclen;
      given = realloc(given, (given_count + 1) * sizeof *given);
      given[given_count++] = strdup(entry->d_name);
      count++;
    }
  } while (got > 0 && argc > 2);
  if (got < 0)
    reply_errno();
  else
    reply("ok %zu", count);
  free(buffer);
}

const struct command name_commands[] = {
    {"mkdir", 1, 2, do_mkdir},       {"rmdir", 1, 1, do_rmdir},
    {"unlink", 1, 1, do_unlink},     {"mkfifo", 1, 2, do_mkfifo},
    {"mknod", 3, 5, do_mknod},       {"symlink", 2, 2, do_symlink},
    {"readlink", 1, 2, do_readlink}, {"link", 2, 3, do_link},
    {"rename", 2, 3, do_rename},     {"bind", 1, 1, do_bind},
    {"lax", 1, 1, do_lax},           {"list", 1, 2, do_list},
    {"getdents", 2, 3, do_getdents}, {"forget", 0, 0, do_forget},
    {"given", 1, 1, do_given},       {NULL, 0, 0, NULL}};
