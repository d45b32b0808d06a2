// Threads that look at names race with threads that change them: first writes, renames, exchanges,
// links and unlinks of files that stood in an image. Each name belongs to one changing thread,
// which knows what it must be: after each of its changes it looks at the name, and at the end of
// each round the whole directory is held against what all of them know.
//
//   racer DIR ROUNDS-DIRS SECONDS SEED     DIR/d000 ... hold FILES files n00 ... each (see `fill`)
//   racer fill DIR ROUNDS-DIRS             makes them
//
// A file is lines of 64 bytes that all name the same file number: whoever reads lines of two files
// through one open has met a stale node. What does not live here: single calls (the interpreter).
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum {
  LINE = 64,
  CHANGERS = 4,
  LOOKERS = 4,
  OWN = 6,
  FILES = CHANGERS * OWN,
  CHANGES = 30,
  MOST = 64
};

struct slot {
  bool there;
  int number, lines;
  mode_t mode;
};

static const char* root;
static int directories;
static struct slot slots[FILES];
static atomic_int current;  // directory of this round
static atomic_bool stop;
static atomic_int next_number;
static atomic_ulong looks, changes;
static pthread_barrier_t begin, end;

static _Noreturn void fail(const char* format, ...) {
  char text[500];
  int error = errno;
  va_list list;
  va_start(list, format);
  vsnprintf(text, sizeof text, format, list);
  va_end(list);
  printf("failed: %s (%s), round %d\n", text, strerror(error), atomic_load(&current));
  fflush(stdout);
  _exit(1);
}

static uint64_t any(uint64_t* state, uint64_t below) {
  *state ^= *state << 13, *state ^= *state >> 7, *state ^= *state << 17;
  return (*state >> 11) % below;
}

static void line_of(char* line, int number, int at) {
  snprintf(line, LINE + 1, "%08u %08u %45s\n", (unsigned)number % 100000000,
           (unsigned)at % 100000000, "");
}

static void name_of(char* path, int directory, int slot) {
  sprintf(path, "%s/d%03d/n%02d", root, directory, slot);
}

static void write_lines(int fd, int number, int from, int count) {
  char text[MOST * LINE + 1];
  for (int i = 0; i < count; i++) line_of(text + i * LINE, number, from + i);
  if (write(fd, text, (size_t)count * LINE) != (ssize_t)count * LINE) fail("write");
}

static void make(const char* path, struct slot* slot, mode_t mode, int number, int lines) {
  int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, mode);
  if (fd < 0) fail("create %s", path);
  write_lines(fd, number, 0, lines);
  if (close(fd) != 0) fail("close");
  *slot = (struct slot){true, number, lines, mode};
}

// Reads a whole open file: every line must be one of the same file. Its number, or -1 where empty.
static int number_in(int fd, const char* path, int* lines) {
  char text[(MOST + 1) * LINE];
  ssize_t got = pread(fd, text, sizeof text, 0);
  if (got < 0) fail("read %s", path);
  *lines = (int)(got / LINE);
  if (got < LINE) return -1;
  int number = atoi(text);
  for (int i = 1; i < *lines; i++)
    if (atoi(text + i * LINE) != number) {
      errno = 0;
      fail("%s: line %d is of file %d, line 0 of file %d", path, i, atoi(text + i * LINE), number);
    }
  return number;
}

// The owner's look at its own name: nothing but what it did.
static void check(const char* path, const struct slot* slot, const char* after, bool whole) {
  struct stat st;
  if (lstat(path, &st) != 0) {
    if (errno == ENOENT && !slot->there) return;
    fail("after %s, lstat %s", after, path);
  }
  errno = 0;
  if (!slot->there) fail("after %s, %s is still there", after, path);
  if (st.st_size != (off_t)slot->lines * LINE)
    fail("after %s, %s has %lld bytes, not %d", after, path, (long long)st.st_size,
         slot->lines * LINE);
  if ((st.st_mode & 07777) != slot->mode)
    fail("after %s, %s has mode %o, not %o", after, path, st.st_mode & 07777, slot->mode);
  if (!whole) return;
  int fd = open(path, O_RDONLY | O_CLOEXEC), lines;
  if (fd < 0) fail("after %s, open %s", after, path);
  int number = number_in(fd, path, &lines);
  errno = 0;
  if (slot->lines > 0 && (number != slot->number || lines != slot->lines))
    fail("after %s, %s holds file %d with %d lines, not %d with %d", after, path, number, lines,
         slot->number, slot->lines);
  close(fd);
}

static const char* change(uint64_t* random, int directory, int first) {
  char path[300], other[300], extra[320];
  int a = first + (int)any(random, OWN), b = first + (int)any(random, OWN);
  struct slot *slot = &slots[a], *to = &slots[b];
  name_of(path, directory, a);
  name_of(other, directory, b);
  if (!slot->there) {
    make(path, slot, 0644, atomic_fetch_add(&next_number, 1), 1 + (int)any(random, 8));
    check(path, slot, "create", true);
    return "create";
  }
  const char* what = "nothing";
  int fd;
  switch (any(random, 9)) {
    case 0:
    case 1:
      what = "append";
      if (slot->lines + 2 > MOST) break;
      if ((fd = open(path, O_WRONLY | O_APPEND | O_CLOEXEC)) < 0) fail("open %s to append", path);
      write_lines(fd, slot->number, slot->lines, 2);
      if (close(fd) != 0) fail("close");
      slot->lines += 2;
      break;
    case 2:
      what = "truncate";
      slot->lines = (slot->lines + 1) / 2;
      if (truncate(path, (off_t)slot->lines * LINE) != 0) fail("truncate %s", path);
      break;
    case 3:
      what = "chmod";
      slot->mode = slot->mode == 0644 ? 0600 : 0644;
      if (chmod(path, slot->mode) != 0) fail("chmod %s", path);
      break;
    case 4:
      what = "unlink";
      if (unlink(path) != 0) fail("unlink %s", path);
      slot->there = false;
      break;
    case 5:
      what = "rename";
      if (rename(path, other) != 0) fail("rename %s %s", path, other);
      if (a == b) break;
      *to = *slot;
      slot->there = false;
      check(other, to, what, true);
      break;
    case 6:
      what = "exchange";
      if (!to->there) break;
      if (renameat2(AT_FDCWD, path, AT_FDCWD, other, RENAME_EXCHANGE) != 0) fail("exchange");
      struct slot saved = *to;
      *to = *slot;
      *slot = saved;
      check(other, to, what, true);
      break;
    case 7:
      what = "O_TRUNC";
      if ((fd = open(path, O_WRONLY | O_TRUNC | O_CLOEXEC)) < 0) fail("open %s to truncate", path);
      write_lines(fd, slot->number, 0, 3);
      if (close(fd) != 0) fail("close");
      slot->lines = 3;
      break;
    default:
      what = "link and unlink";
      snprintf(extra, sizeof extra, "%s.link", path);
      if (link(path, extra) != 0) fail("link %s", path);
      if (unlink(path) != 0) fail("unlink %s", path);
      if (rename(extra, path) != 0) fail("rename %s", extra);
  }
  check(path, slot, what, any(random, 3) == 0);
  return what;
}

static void* changer(void* argument) {
  int index = (int)(intptr_t)argument & 255;
  uint64_t random = (uint64_t)(intptr_t)argument * UINT64_C(0x9e3779b97f4a7c15) + 7;
  for (;;) {
    pthread_barrier_wait(&begin);
    if (atomic_load(&stop)) return NULL;
    for (int i = 0; i < CHANGES; i++) {
      change(&random, atomic_load(&current), index * OWN);
      atomic_fetch_add(&changes, 1);
    }
    pthread_barrier_wait(&end);
  }
}

static void look_at_directory(int directory) {
  char path[300];
  snprintf(path, sizeof path, "%s/d%03d", root, directory);
  DIR* listing = opendir(path);
  if (listing == NULL) fail("opendir %s", path);
  struct dirent* entry;
  while ((entry = readdir(listing)) != NULL) {
    struct stat st;
    if (fstatat(dirfd(listing), entry->d_name, &st, AT_SYMLINK_NOFOLLOW) != 0 && errno != ENOENT)
      fail("fstatat %s/%s", path, entry->d_name);
  }
  closedir(listing);
}

static void look_through(const char* path, uint64_t* random) {
  int lines, fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) {
    if (errno != ENOENT) fail("open %s", path);
    return;
  }
  int number = number_in(fd, path, &lines);
  if (number >= 0 && any(random, 2) == 0) {
    char* map = mmap(NULL, LINE, PROT_READ, any(random, 2) == 0 ? MAP_PRIVATE : MAP_SHARED, fd, 0);
    if (map == MAP_FAILED) fail("mmap %s", path);
    sched_yield();
    munmap(map, LINE);
  }
  // Now and then it stays open while the name is changed: the next opens meet it.
  if (any(random, 4) == 0) usleep((useconds_t)any(random, 3000));
  int again = number_in(fd, path, &lines);
  errno = 0;
  if (number >= 0 && again >= 0 && number != again)
    fail("%s: one descriptor shows file %d and then %d", path, number, again);
  close(fd);
}

static void* looker(void* argument) {
  uint64_t random = (uint64_t)(intptr_t)argument * UINT64_C(0xd1342543de82ef95) + 3;
  while (!atomic_load(&stop)) {
    char path[300];
    struct stat st;
    int directory = atomic_load(&current);
    name_of(path, directory, (int)any(&random, FILES));
    switch (any(&random, 8)) {
      case 0:
        look_at_directory(directory);
        break;
      case 1:
      case 2:
      case 3:
        look_through(path, &random);
        break;
      case 4:
        if (access(path, R_OK) != 0 && errno != ENOENT) fail("access %s", path);
        break;
      default:
        if (lstat(path, &st) != 0 && errno != ENOENT) fail("lstat %s", path);
    }
    atomic_fetch_add(&looks, 1);
  }
  return NULL;
}

static void load(int directory) {
  for (int i = 0; i < FILES; i++) {
    char path[300];
    struct stat st;
    name_of(path, directory, i);
    slots[i] = (struct slot){0};
    if (lstat(path, &st) != 0) {
      if (errno != ENOENT) fail("lstat %s", path);
      continue;
    }
    int lines, fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) fail("open %s", path);
    slots[i] = (struct slot){true, number_in(fd, path, &lines), (int)(st.st_size / LINE),
                             st.st_mode & 07777};
    close(fd);
  }
}

// All names of the directory, and no other.
static void verify(int directory) {
  char path[300];
  int there = 0, listed = 0;
  for (int i = 0; i < FILES; i++) {
    name_of(path, directory, i);
    check(path, &slots[i], "the round", true);
    there += slots[i].there;
  }
  snprintf(path, sizeof path, "%s/d%03d", root, directory);
  DIR* listing = opendir(path);
  if (listing == NULL) fail("opendir %s", path);
  struct dirent* entry;
  while ((entry = readdir(listing)) != NULL) {
    if (entry->d_name[0] == '.') continue;
    listed++;
    int slot = atoi(entry->d_name + 1);
    errno = 0;
    if (strlen(entry->d_name) != 3 || slot >= FILES || !slots[slot].there)
      fail("%s lists %s, which is not there", path, entry->d_name);
  }
  closedir(listing);
  if (there != listed) fail("%s lists %d names, not %d", path, listed, there);
}

static void fill(void) {
  for (int directory = 0; directory < directories; directory++) {
    char path[300];
    snprintf(path, sizeof path, "%s/d%03d", root, directory);
    if (mkdir(path, 0755) != 0) fail("mkdir %s", path);
    for (int i = 0; i < FILES; i++) {
      struct slot ignored;
      name_of(path, directory, i);
      make(path, &ignored, 0644, directory * FILES + i, 1 + (directory * 7 + i) % 9);
    }
  }
}

int main(int argc, char** argv) {
  setvbuf(stdout, NULL, _IOLBF, 0);
  if (argc == 4 && strcmp(argv[1], "fill") == 0) {
    root = argv[2];
    directories = atoi(argv[3]);
    fill();
    return 0;
  }
  if (argc != 5) return 2;
  root = argv[1];
  directories = atoi(argv[2]);
  int seconds = atoi(argv[3]);
  long seed = atol(argv[4]);
  next_number = 1000000;
  pthread_barrier_init(&begin, NULL, CHANGERS + 1);
  pthread_barrier_init(&end, NULL, CHANGERS + 1);
  load(0);
  pthread_t threads[CHANGERS + LOOKERS];
  for (int i = 0; i < CHANGERS + LOOKERS; i++)
    pthread_create(&threads[i], NULL, i < CHANGERS ? changer : looker,
                   (void*)(intptr_t)(seed * 256 + i));
  time_t until = time(NULL) + seconds;
  int rounds = 0;
  while (time(NULL) < until) {
    pthread_barrier_wait(&begin);
    pthread_barrier_wait(&end);
    verify(atomic_load(&current));
    rounds++;
    load(rounds % directories);
    atomic_store(&current, rounds % directories);
  }
  atomic_store(&stop, true);
  pthread_barrier_wait(&begin);
  for (int i = 0; i < CHANGERS + LOOKERS; i++) pthread_join(threads[i], NULL);
  printf("ok %d rounds, %lu changes, %lu looks\n", rounds, atomic_load(&changes),
         atomic_load(&looks));
  return 0;
}
