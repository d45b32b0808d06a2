// Random input and output on one file, held against a copy in memory after every step: reads,
// writes, appends, truncations, mappings, holes, copies within the file, reopening, fsync. The same
// seed gives the same steps. What does not live here: other files, names, attributes (the
// interpreter).
//
//   exerciser FILE SEED STEPS     what FILE holds before counts; it may stand in an image
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/falloc.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { MOST = 1 << 19, LONGEST = 1 << 16, PAGE = 4096 };

static const char* path;
static int fd;
static uint64_t state;
static unsigned step;
static size_t size;
static unsigned char good[MOST + LONGEST], seen[MOST + LONGEST];
static char last[16][120];

static _Noreturn void fail(const char* format, ...) {
  va_list list;
  va_start(list, format);
  printf("step %u: ", step);
  vprintf(format, list);
  va_end(list);
  printf(" (%s)\nthe last steps:\n", strerror(errno));
  for (unsigned i = step > 15 ? step - 15 : 0; i <= step; i++) printf("  %s\n", last[i % 16]);
  exit(1);
}

static uint64_t any(uint64_t below) {
  state ^= state << 13, state ^= state >> 7, state ^= state << 17;
  return below == 0 ? 0 : (state >> 11) % below;
}

static void note(const char* what, size_t at, size_t bytes) {
  snprintf(last[step % 16], sizeof last[0], "%u %s at %zu, %zu bytes, of %zu", step, what, at,
           bytes, size);
}

// Ends where a range of the file differs from what it must be.
static void compare(const unsigned char* got, size_t at, size_t bytes, const char* how) {
  if (memcmp(got, good + at, bytes) == 0) return;
  size_t i = 0;
  while (got[i] == good[at + i]) i++;
  errno = 0;
  fail("%s: byte %zu is %02x, not %02x", how, at + i, got[i], good[at + i]);
}

static void check_size(void) {
  struct stat st;
  if (fstat(fd, &st) != 0) fail("fstat");
  if ((size_t)st.st_size != size) {
    errno = 0;
    fail("fstat: %lld bytes, not %zu", (long long)st.st_size, size);
  }
  if (stat(path, &st) != 0) fail("stat");
  if ((size_t)st.st_size != size) fail("stat: %lld bytes, not %zu", (long long)st.st_size, size);
}

// Fills what is to be written with bytes that tell the step.
static void fresh(size_t at, size_t bytes) {
  for (size_t i = 0; i < bytes; i++) good[at + i] = (unsigned char)(step * 31 + i + (i >> 8) + 1);
}

static void grow(size_t end) {
  if (end > size) size = end;
}

static void do_write(size_t at, size_t bytes) {
  note("write", at, bytes);
  fresh(at, bytes);
  if (pwrite(fd, good + at, bytes, (off_t)at) != (ssize_t)bytes) fail("write");
  if (bytes > 0) grow(at + bytes);
}

static void do_append(size_t bytes) {
  if (size + bytes > MOST) return;
  note("append", size, bytes);
  int other = open(path, O_WRONLY | O_APPEND | O_CLOEXEC);
  if (other < 0) fail("open to append");
  fresh(size, bytes);
  if (write(other, good + size, bytes) != (ssize_t)bytes) fail("append");
  if (close(other) != 0) fail("close");
  size += bytes;
}

static void do_read(size_t at, size_t bytes) {
  note("read", at, bytes);
  size_t want = at >= size ? 0 : bytes < size - at ? bytes : size - at;
  ssize_t got = pread(fd, seen, bytes, (off_t)at);
  if (got != (ssize_t)want) fail("read gave %zd bytes, not %zu", got, want);
  compare(seen, at, want, "read");
}

static void do_truncate(size_t to) {
  note(to > size ? "truncate up" : "truncate down", to, 0);
  if ((any(2) == 0 ? ftruncate(fd, (off_t)to) : truncate(path, (off_t)to)) != 0) fail("truncate");
  if (to > size)
    memset(good + size, 0, to - size);
  else
    memset(good + to, 0, size - to);
  size = to;
}

// Bytes behind the end of the file in its last page must not come back when it grows.
static void do_map_write(size_t at, size_t bytes) {
  if (at >= size) return;
  if (bytes > size - at) bytes = size - at;
  if (bytes == 0) return;
  note("map, write", at, bytes);
  size_t from = at & ~(size_t)(PAGE - 1);
  unsigned char* map =
      mmap(NULL, at + bytes - from, PROT_READ | PROT_WRITE, MAP_SHARED, fd, (off_t)from);
  if (map == MAP_FAILED) fail("mmap");
  fresh(at, bytes);
  memcpy(map + (at - from), good + at, bytes);
  if (any(2) == 0 && msync(map, at + bytes - from, MS_SYNC) != 0) fail("msync");
  if (munmap(map, at + bytes - from) != 0) fail("munmap");
}

static void do_map_read(size_t at, size_t bytes) {
  if (at >= size) return;
  if (bytes > size - at) bytes = size - at;
  if (bytes == 0) return;
  note("map, read", at, bytes);
  size_t from = at & ~(size_t)(PAGE - 1);
  size_t end = at + bytes;
  unsigned char* map =
      mmap(NULL, end - from, PROT_READ, any(2) == 0 ? MAP_SHARED : MAP_PRIVATE, fd, (off_t)from);
  if (map == MAP_FAILED) fail("mmap");
  compare(map + (at - from), at, bytes, "map");
  size_t page_end = (end + PAGE - 1) & ~(size_t)(PAGE - 1);
  for (size_t i = size; i < page_end; i++)
    if (map[i - from] != 0)
      fail("byte %zu behind the end is %02x in the mapping", i, map[i - from]);
  munmap(map, end - from);
}

static void do_fallocate(int mode, const char* what, size_t at, size_t bytes) {
  if (bytes == 0) return;
  note(what, at, bytes);
  if (fallocate(fd, mode, (off_t)at, (off_t)bytes) != 0) {
    // Not every filesystem has every kind.
    if (errno == EOPNOTSUPP) return;
    fail("%s", what);
  }
  bool grows = (mode & FALLOC_FL_KEEP_SIZE) == 0;
  size_t end = at + bytes;
  if ((mode & (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE)) != 0) memset(good + at, 0, bytes);
  if (grows) grow(end);
  // Beyond the end nothing is to be seen yet.
  if (end > size) memset(good + size, 0, end - size);
}

static void do_copy(size_t from, size_t to, size_t bytes) {
  if (from >= size) return;
  if (bytes > size - from) bytes = size - from;
  if (from + bytes > to && to + bytes > from) return;
  note("copy", to, bytes);
  off_t in = (off_t)from, out = (off_t)to;
  for (size_t done = 0; done < bytes;) {
    ssize_t got = copy_file_range(fd, &in, fd, &out, bytes - done, 0);
    if (got <= 0) fail("copy_file_range gave %zd", got);
    done += (size_t)got;
  }
  memmove(good + to, good + from, bytes);
  if (bytes > 0) grow(to + bytes);
}

static void do_reopen(void) {
  note("reopen", 0, 0);
  if (close(fd) != 0) fail("close");
  fd = open(path, O_RDWR | O_CLOEXEC);
  if (fd < 0) fail("open");
}

// What is a hole must read as zeros, and what is not zero must be data.
static void do_seek(void) {
  note("seek", 0, 0);
  for (off_t at = 0; (size_t)at < size;) {
    off_t data = lseek(fd, at, SEEK_DATA);
    if (data < 0 && errno != ENXIO) fail("SEEK_DATA");
    size_t end = data < 0 ? size : (size_t)data;
    for (size_t i = (size_t)at; i < end; i++)
      if (good[i] != 0) fail("byte %zu is in a hole, but %02x", i, good[i]);
    if (data < 0) return;
    at = lseek(fd, data, SEEK_HOLE);
    if (at <= data) fail("SEEK_HOLE gave %lld after %lld", (long long)at, (long long)data);
  }
}

static void one_step(void) {
  size_t at = any(MOST - LONGEST), bytes = any(8) == 0 ? any(LONGEST) : any(5000);
  // Half of them where the file is.
  if (any(2) == 0) at = any(size + 1);
  if (at + bytes > MOST) bytes = MOST - at;
  switch (any(20)) {
    case 0:
    case 1:
    case 2:
    case 3:
      do_write(at, bytes);
      break;
    case 4:
    case 5:
    case 6:
    case 7:
      do_read(at, bytes);
      break;
    case 8:
      do_append(bytes);
      break;
    case 9:
      do_truncate(any(4) == 0 ? at : any(size + 1));
      break;
    case 10:
    case 11:
      do_map_write(at, bytes);
      break;
    case 12:
    case 13:
      do_map_read(at, bytes);
      break;
    case 14:
      do_fallocate(FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, "punch", at, bytes);
      break;
    case 15:
      do_fallocate(FALLOC_FL_ZERO_RANGE | (any(2) == 0 ? FALLOC_FL_KEEP_SIZE : 0), "zero", at,
                   bytes);
      break;
    case 16:
      do_fallocate(any(2) == 0 ? FALLOC_FL_KEEP_SIZE : 0, "allocate", at, bytes);
      break;
    case 17:
      do_copy(any(size + 1), at, bytes);
      break;
    case 18:
      if (any(3) == 0 && (any(2) == 0 ? fsync(fd) : fdatasync(fd)) != 0) fail("fsync");
      do_seek();
      break;
    default:
      do_reopen();
  }
  check_size();
}

int main(int argc, char** argv) {
  if (argc != 4) {
    fprintf(stderr, "usage: exerciser FILE SEED STEPS\n");
    return 2;
  }
  path = argv[1];
  state = strtoull(argv[2], NULL, 10) * UINT64_C(0x9e3779b97f4a7c15) + 1;
  unsigned steps = (unsigned)strtoul(argv[3], NULL, 10);
  int before = open(path, O_RDONLY | O_CLOEXEC);
  if (before >= 0) {
    ssize_t got = read(before, good, MOST);
    if (got < 0) fail("read");
    size = (size_t)got;
    // It stays open: what is written now is written beside an open reader of what was there.
  }
  fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  if (fd < 0) fail("open");
  for (step = 1; step <= steps; step++) one_step();
  do_read(0, size);
  do_reopen();
  do_read(0, size);
  if (fsync(fd) != 0 || close(fd) != 0) fail("the end");
  printf("ok %zu bytes\n", size);
  return 0;
}
