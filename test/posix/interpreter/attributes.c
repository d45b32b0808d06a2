// Commands on attributes: modes, owners, times, xattrs, ACLs, what stat says. What does not live
// here: names (names.c), contents (files.c), the listing of a whole tree (tree.c).
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/posix_acl_xattr.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "interpreter.h"

void do_tree(int argc, char** argv);  // tree.c

// chmod PATH MODE [proc]: with `proc` an open file by /proc/self/fd, as one that is open with
// O_PATH
static void do_chmod(int argc, char** argv) {
  struct at at = at_of(argv[0]);
  mode_t mode = mode_of(argv[1]);
  if (argc > 2) {
    char self[64];
    snprintf(self, sizeof self, "/proc/self/fd/%d", at.fd);
    reply_result(chmod(self, mode));
    return;
  }
  reply_result(at.empty ? fchmod(at.fd, mode) : fchmodat(at.fd, at.path, mode, 0));
}

// chown PATH UID GID [nofollow]; -1 leaves one
static void do_chown(int argc, char** argv) {
  struct at at = at_of(argv[0]);
  uid_t uid = (uid_t)number(argv[1]);
  gid_t gid = (gid_t)number(argv[2]);
  if (at.empty)
    reply_result(fchown(at.fd, uid, gid));
  else
    reply_result(fchownat(at.fd, at.path, uid, gid, argc > 3 ? AT_SYMLINK_NOFOLLOW : 0));
}

static struct timespec time_of(char* token) {
  struct timespec time = {0, 0};
  if (strcmp(token, "now") == 0) {
    time.tv_nsec = UTIME_NOW;
  } else if (strcmp(token, "omit") == 0) {
    time.tv_nsec = UTIME_OMIT;
  } else {
    char* dot = strchr(token, '.');
    if (dot != NULL) *dot = '\0', time.tv_nsec = number(dot + 1);
    time.tv_sec = number(token);
  }
  return time;
}

// utimes PATH ATIME MTIME [nofollow]: SECONDS[.NANOSECONDS], now or omit
static void do_utimes(int argc, char** argv) {
  struct at at = at_of(argv[0]);
  struct timespec times[2] = {time_of(argv[1]), time_of(argv[2])};
  if (at.empty)
    reply_result(futimens(at.fd, times));
  else
    reply_result(utimensat(at.fd, at.path, times, argc > 3 ? AT_SYMLINK_NOFOLLOW : 0));
}

// access PATH [r][w][x]: as the effective ids
static void do_access(int argc, char** argv) {
  struct at at = at_of(argv[0]);
  int mode = 0;
  for (const char* c = argc > 1 ? argv[1] : ""; *c != '\0'; c++)
    mode |= *c == 'r' ? R_OK : *c == 'w' ? W_OK : X_OK;
  reply_result(faccessat(at.fd, at.path, mode, AT_EACCESS));
}

static int stat_at(char* token, struct stat* st, bool follow) {
  struct at at = at_of(token);
  int flags = follow ? 0 : AT_SYMLINK_NOFOLLOW;
  return fstatat(at.fd, at.path, st, at.empty ? AT_EMPTY_PATH : flags);
}

static const char* type_name(mode_t mode) {
  switch (mode & S_IFMT) {
    case S_IFREG:
      return "file";
    case S_IFDIR:
      return "dir";
    case S_IFLNK:
      return "symlink";
    case S_IFIFO:
      return "fifo";
    case S_IFSOCK:
      return "socket";
    case S_IFCHR:
      return "char";
    default:
      return "block";
  }
}

static void append_field(const struct stat* st, const char* field) {
  if (strcmp(field, "type") == 0)
    append(" %s", type_name(st->st_mode));
  else if (strcmp(field, "mode") == 0)
    append(" %04o", st->st_mode & 07777);
  else if (strcmp(field, "nlink") == 0)
    append(" %lu", (unsigned long)st->st_nlink);
  else if (strcmp(field, "uid") == 0)
    append(" %u", st->st_uid);
  else if (strcmp(field, "gid") == 0)
    append(" %u", st->st_gid);
  else if (strcmp(field, "size") == 0)
    append(" %lld", (long long)st->st_size);
  else if (strcmp(field, "rdev") == 0)
    append(" %u:%u", major(st->st_rdev), minor(st->st_rdev));
  else if (strcmp(field, "atime") == 0)
    append(" %lld.%09ld", (long long)st->st_atim.tv_sec, st->st_atim.tv_nsec);
  else if (strcmp(field, "mtime") == 0)
    append(" %lld.%09ld", (long long)st->st_mtim.tv_sec, st->st_mtim.tv_nsec);
  else if (strcmp(field, "sparse") == 0)
    append(" %s", st->st_blocks * 512 < st->st_size ? "yes" : "no");
  else
    bad("not a field of stat", field);
}

static void stat_fields(char* path, char* fields, bool follow) {
  struct stat st;
  if (stat_at(path, &st, follow) != 0) {
    reply_errno();
    return;
  }
  append("ok");
  for (char* at = strtok(fields, ","); at != NULL; at = strtok(NULL, ",")) append_field(&st, at);
  reply("%s", "");
}

// lstat PATH FIELDS; stat PATH FIELDS
static void do_lstat(int argc, char** argv) {
  char none[] = "";
  stat_fields(argv[0], argc > 1 ? argv[1] : none, false);
}

static void do_stat(int argc, char** argv) {
  char none[] = "";
  stat_fields(argv[0], argc > 1 ? argv[1] : none, true);
}

enum { MARKS = 64 };
static struct {
  char name[32];
  struct stat st;
  uint64_t birth_ns;
} marks[MARKS];

static uint64_t birth_of(char* path) {
  struct at at = at_of(path);
  struct statx stx;
  int flags = AT_SYMLINK_NOFOLLOW | (at.empty ? AT_EMPTY_PATH : 0);
  if (statx(at.fd, at.path, flags, STATX_BTIME, &stx) != 0 || (stx.stx_mask & STATX_BTIME) == 0)
    return 0;
  return (uint64_t)stx.stx_btime.tv_sec * 1000000000u + stx.stx_btime.tv_nsec;
}

static int mark_of(const char* name, bool make) {
  int empty = -1;
  for (int i = 0; i < MARKS; i++) {
    if (strcmp(marks[i].name, name) == 0) return i;
    if (empty < 0 && marks[i].name[0] == '\0') empty = i;
  }
  if (!make || empty < 0) bad("no such mark", name);
  snprintf(marks[empty].name, sizeof marks[empty].name, "%s", name);
  return empty;
}

// mark NAME PATH: remembers what stat says of it
static void do_mark(int argc, char** argv) {
  (void)argc;
  int mark = mark_of(argv[0], true);
  int result = stat_at(argv[1], &marks[mark].st, false);
  marks[mark].birth_ns = birth_of(argv[1]);
  reply_result(result);
}

// since NAME PATH: which of the times are others now: some of a, m, c
static void do_since(int argc, char** argv) {
  (void)argc;
  const struct stat* old = &marks[mark_of(argv[0], false)].st;
  struct stat st;
  if (stat_at(argv[1], &st, false) != 0) {
    reply_errno();
    return;
  }
#define DIFFERS(field) \
  (old->field.tv_sec != st.field.tv_sec || old->field.tv_nsec != st.field.tv_nsec)
  reply("ok %s%s%s.", DIFFERS(st_atim) ? "a" : "", DIFFERS(st_mtim) ? "m" : "",
        DIFFERS(st_ctim) ? "c" : "");
#undef DIFFERS
}

// same NAME PATH: the same file (device and inode number)?
static void do_same(int argc, char** argv) {
  (void)argc;
  const struct stat* old = &marks[mark_of(argv[0], false)].st;
  struct stat st;
  if (stat_at(argv[1], &st, false) != 0)
    reply_errno();
  else
    reply("ok %s", old->st_ino != st.st_ino   ? "other"
                   : old->st_dev != st.st_dev ? "other device"
                                              : "same");
}

// born NAME PATH: is the time of birth what it was?
static void do_born(int argc, char** argv) {
  (void)argc;
  uint64_t old = marks[mark_of(argv[0], false)].birth_ns, now = birth_of(argv[1]);
  reply("ok %s", old == 0 || now == 0 ? "unknown" : old == now ? "same" : "other");
}

// setxattr PATH NAME VALUE [create|replace|nofollow]
static void do_setxattr(int argc, char** argv) {
  struct at at = at_of(argv[0]);
  const char* words = argc > 3 ? argv[3] : "";
  int flags = (has_word(words, "create") ? XATTR_CREATE : 0) |
              (has_word(words, "replace") ? XATTR_REPLACE : 0);
  size_t bytes;
  unsigned char* value = data_of(argv[2], &bytes);
  if (at.empty)
    reply_result(fsetxattr(at.fd, argv[1], value, bytes, flags));
  else
    reply_result(lsetxattr(at.path, argv[1], value, bytes, flags));
  free(value);
}

static unsigned char value[70000];

// getxattr PATH NAME [ROOM]
static void do_getxattr(int argc, char** argv) {
  struct at at = at_of(argv[0]);
  size_t room = argc > 2 ? (size_t)number(argv[2]) : sizeof value;
  ssize_t got =
      at.empty ? fgetxattr(at.fd, argv[1], value, room) : lgetxattr(at.path, argv[1], value, room);
  if (got < 0) {
    reply_errno();
  } else if (room == 0 || got > 64) {
    reply("ok %zd", got);
  } else {
    append("ok =");
    append_bytes(value, (size_t)got);
    reply("%s", "");
  }
}

static int by_text(const void* a, const void* b) {
  return strcmp(*(char* const*)a, *(char* const*)b);
}

// listxattr PATH: sorted; names of security modules are left out
static void do_listxattr(int argc, char** argv) {
  struct at at = at_of(argv[0]);
  size_t room = argc > 1 ? (size_t)number(argv[1]) : sizeof value;
  char* list = (char*)value;
  ssize_t got = at.empty ? flistxattr(at.fd, list, room) : llistxattr(at.path, list, room);
  if (got < 0) {
    reply_errno();
    return;
  }
  if (room == 0) {
    reply("ok %zd", got);
    return;
  }
  char* names[1024];
  size_t count = 0;
  for (char* name = list; name < list + got; name += strlen(name) + 1)
    if (strcmp(name, "security.selinux") != 0 && count < 1024) names[count++] = name;
  qsort(names, count, sizeof *names, by_text);
  append("ok");
  for (size_t i = 0; i < count; i++) {
    append(" ");
    append_bytes(names[i], strlen(names[i]));
  }
  reply("%s", "");
}

static void do_removexattr(int argc, char** argv) {
  (void)argc;
  struct at at = at_of(argv[0]);
  reply_result(at.empty ? fremovexattr(at.fd, argv[1]) : lremovexattr(at.path, argv[1]));
}

// setacl PATH access|default ENTRY,ENTRY...: ENTRY is u|g|m|o:[ID]:PERMISSIONS(octal digit)
static void do_setacl(int argc, char** argv) {
  (void)argc;
  struct {
    uint32_t version;
    struct posix_acl_xattr_entry entries[32];
  } __attribute__((packed)) acl = {.version = POSIX_ACL_XATTR_VERSION};
  size_t count = 0;
  for (char* at = strtok(argv[2], ","); at != NULL; at = strtok(NULL, ",")) {
    char kind, id[16] = "";
    unsigned permissions;
    if (sscanf(at, "%c::%o", &kind, &permissions) != 2 &&
        sscanf(at, "%c:%15[0-9]:%o", &kind, id, &permissions) != 3)
      bad("not an entry of an ACL", at);
    bool named = id[0] != '\0';
    acl.entries[count].e_tag = kind == 'u'   ? (named ? 0x02 : 0x01)
                               : kind == 'g' ? (named ? 0x08 : 0x04)
                               : kind == 'm' ? 0x10
                                             : 0x20;
    acl.entries[count].e_perm = (uint16_t)permissions;
    acl.entries[count++].e_id = named ? (uint32_t)number(id) : (uint32_t)-1;
  }
  const char* name = argv[1][0] == 'd' ? "system.posix_acl_default" : "system.posix_acl_access";
  size_t bytes = sizeof acl.version + count * sizeof *acl.entries;
  reply_result(lsetxattr(argv[0], name, &acl, bytes, 0));
}

// statfs PATH: only what does not change
static void do_statfs(int argc, char** argv) {
  (void)argc;
  struct statvfs st;
  if (statvfs(argv[0], &st) != 0)
    reply_errno();
  else
    reply("ok namelen=%lu sane=%s", st.f_namemax,
          st.f_blocks > 0 && st.f_bfree <= st.f_blocks && st.f_bavail <= st.f_bfree &&
                  st.f_bsize >= 512 && st.f_frsize >= 512 && st.f_ffree <= st.f_files
              ? "yes"
              : "no");
}

const struct command attribute_commands[] = {
    {"chmod", 2, 3, do_chmod},         {"chown", 3, 4, do_chown},
    {"utimes", 3, 4, do_utimes},       {"access", 1, 2, do_access},
    {"lstat", 1, 2, do_lstat},         {"stat", 1, 2, do_stat},
    {"mark", 2, 2, do_mark},           {"since", 2, 2, do_since},
    {"same", 2, 2, do_same},           {"born", 2, 2, do_born},
    {"setxattr", 3, 4, do_setxattr},   {"getxattr", 2, 3, do_getxattr},
    {"listxattr", 1, 2, do_listxattr}, {"removexattr", 2, 2, do_removexattr},
    {"setacl", 3, 3, do_setacl},       {"statfs", 1, 1, do_statfs},
    {"tree", 1, 2, do_tree},           {NULL, 0, 0, NULL}};
