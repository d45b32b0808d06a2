// Two threads that meet at one file after the other, while a reader has each of them open: one
// truncates it by its path, the other renames or removes it. Both need the locks of the file and of
// its directory, each in another order as far as the filesystem's answers are concerned; a
// filesystem that waits in one of them for what the other holds stops here for ever.
//
//   crossing DIRECTORY COUNT    files f0 ... in DIRECTORY; ends with 0 and "ok"
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static pthread_barrier_t meet;
static int count;
static atomic_int wrong;

static void fails(const char* what, const char* path) {
  printf("%s %s: %s\n", what, path, strerror(errno));
  wrong++;
}

static void* truncates(void* unused) {
  char path[64];
  for (int i = 0; i < count; i++) {
    snprintf(path, sizeof path, "f%d", i);
    pthread_barrier_wait(&meet);
    // It may have lost its name by then.
    if (truncate(path, 1) != 0 && errno != ENOENT) fails("truncate", path);
  }
  return unused;
}

static void* moves(void* unused) {
  char path[64], other[64];
  for (int i = 0; i < count; i++) {
    snprintf(path, sizeof path, "f%d", i);
    snprintf(other, sizeof other, "g%d", i);
    pthread_barrier_wait(&meet);
    if (i % 3 == 0) usleep(300 * (i % 7));
    if (i % 2 == 0 ? rename(path, other) != 0 : unlink(path) != 0) fails("rename or unlink", path);
  }
  return unused;
}

int main(int argc, char** argv) {
  if (argc != 3 || chdir(argv[1]) != 0) return 2;
  count = atoi(argv[2]);
  for (int i = 0; i < count; i++) {
    char path[64];
    snprintf(path, sizeof path, "f%d", i);
    // Left open to the end: it is what makes the first change go to a new inode of the kernel.
    if (open(path, O_RDONLY) < 0) fails("open", path);
  }
  pthread_t one, other;
  pthread_barrier_init(&meet, NULL, 2);
  pthread_create(&one, NULL, truncates, NULL);
  pthread_create(&other, NULL, moves, NULL);
  pthread_join(one, NULL);
  pthread_join(other, NULL);
  if (wrong == 0) puts("ok");
  return wrong != 0;
}
