// The parts of the harness: each runs until its deadline, or ends the program where something is
// wrong.
#pragma once

#include "world.h"

namespace firstlight::test {

class Deadline {
 public:
  explicit Deadline(double seconds)
      : end_(Clock::now() + std::chrono::milliseconds(static_cast<int64_t>(seconds * 1000))) {}
  bool passed() const { return Clock::now() >= end_; }

 private:
  Clock::time_point end_;
};

/** Damaged tables against the validator and every accessor. */
void fuzz_toc(const Deadline& deadline, Random& random);
/** Random and damaged requests against one thread, under the kernel's rules for opens. */
void fuzz_requests(const Deadline& deadline, Random& random);
/** Many threads that send, mark and interrupt. */
void fuzz_threads(const Deadline& deadline, Random& random);
/** Opens of one file while its content comes and goes. */
void fuzz_opens(const Deadline& deadline, Random& random);
/** Everything for a writable session, with a tree that answers anything. */
void fuzz_writable(const Deadline& deadline, Random& random);
/** What needs no fuzzing: signals, mappings, the handshake. */
void units();
/** What opens do while another thread opens, releases or maps the same file. */
void open_rules();
/** Which lane reads, and who takes its place. */
void lane_rules(Random& random);
/** What a notification that waits in the kernel delays. */
void notifier_rules();

}  // namespace firstlight::test
