// Fuzzes the native core without a kernel, built with sanitizers.
//
//   harness toc|requests|threads|opens|writable|units SECONDS [SEED]
#include "harness.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>

#include <random>

using namespace firstlight::test;

int main(int count, char** words) {
  if (count < 3) {
    fprintf(stderr, "usage: harness toc|requests|threads|opens|writable|units SECONDS [SEED]\n");
    return 2;
  }
  std::string mode = words[1];
  Deadline deadline(atof(words[2]));
  uint64_t seed = count > 3 ? strtoull(words[3], nullptr, 10) : std::random_device{}();
  // Mutated requests ask for files of any size: the disk is not theirs to fill.
  const rlimit bound = {64 << 20, 64 << 20};
  if (setrlimit(RLIMIT_FSIZE, &bound) != 0 || signal(SIGXFSZ, SIG_IGN) == SIG_ERR) return 2;
  printf("%s: seed %llu\n", mode.c_str(), static_cast<unsigned long long>(seed));
  fflush(stdout);
  Random random(seed);
  if (mode == "toc") fuzz_toc(deadline, random);
  if (mode == "requests") fuzz_requests(deadline, random);
  if (mode == "threads") {
    lane_rules(random);
    fuzz_threads(deadline, random);
  }
  if (mode == "opens") fuzz_opens(deadline, random);
  if (mode == "writable") fuzz_writable(deadline, random);
  if (mode == "units") {
    units();
    open_rules();
    notifier_rules();
  }
  return 0;
}
