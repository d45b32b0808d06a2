// What the bench loops share: a clock, the report of a run, and how one ends that fails. The programs
// that include it are one file each.
#ifndef FIRSTLIGHT_BENCH_LOOPS_H
#define FIRSTLIGHT_BENCH_LOOPS_H
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

// Ends the program with errno's text for `what`.
static _Noreturn void die(const char* what) {
  fprintf(stderr, "%s: %s: %s\n", program_invocation_short_name, what, strerror(errno));
  exit(1);
}

static uint64_t now_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

// The one line of standard output. Returns main's exit code.
static int report(uint64_t ops, uint64_t bytes, uint64_t ns) {
  printf("{\"ops\":%" PRIu64 ",\"bytes\":%" PRIu64 ",\"ns\":%" PRIu64 "}\n", ops, bytes, ns);
  return 0;
}

#endif
