// Which lane reads /dev/fuse, and how it waits for the next request.
//
// Waking a sleeping thread on another CPU is what a round trip costs most. Two things keep it low:
//
// One lane reads, the others stand by. The kernel wakes readers in turn, so that with several of
// them each request would find another thread, on another CPU, with cold caches. The reading lane
// keeps its place while it answers what it can answer from memory; it passes it on before it will
// block, and when requests queue up behind it.
//
// What hardly ever waits for a disk, but may (a file that is made in a directory, say), is not
// worth the wake-up of another lane each time. The reading lane says that it is at such a thing and
// keeps its place; meanwhile one of those that stand by patrols: it looks every millisecond, and
// takes the place where it finds the same thing still going on. When nothing of the kind has
// happened for a while it sleeps, until the next that does wakes it.
//
// The reading lane looks again for a short while before it sleeps, as long as that pays: programs
// that open one file after the other send the next request within some 20 us of a reply. It yields
// the CPU between two looks, since on a busy machine the caller may be waiting for this very CPU.
#pragma once

#include <sys/types.h>

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>

namespace firstlight {

/** Lets one lane at a time read. */
class LaneGate {
 public:
  /** Waits for the place. Gives the turn: the name under which the others below know whose it is.
   */
  uint64_t enter();
  /** Others may read. Of a turn that another lane has ended: nothing. */
  void leave(uint64_t turn);
  /** Whoever has the place may be at something for long: others may take it from now on. */
  void risk(uint64_t turn);
  /** That is over: the turn that it has now; 0: another lane has the place. */
  uint64_t safe(uint64_t turn);

 private:
  bool take(uint64_t* turn);
  bool take_over(uint64_t seen, uint64_t* turn);

  static constexpr uint64_t kRisk = 1;
  static constexpr uint64_t kTaken = 2;
  static constexpr uint64_t kNext = 4;

  /** Number of the turn, and the two bits. Each change of hands makes a new number, and each risk.
   */
  std::atomic<uint64_t> state_{0};
  std::mutex mutex_;
  std::condition_variable free_;
  std::condition_variable patrol_;
  bool patrolled_ = false;           // one of those that stand by does
  uint32_t standing_by_ = 0;         // others
  std::atomic<bool> asleep_{false};  // who patrols
};

/** Reads one lane's descriptor. Used by its thread alone. */
class LaneReader {
 public:
  LaneReader(int fd, LaneGate* gate, bool alone) : fd_(fd), gate_(gate), alone_(alone) {}

  /** read(2) of the next request, blocking; takes the place at the gate where it has not got it. */
  ssize_t read(uint8_t* buffer, size_t bytes);
  /** Lets another lane read. */
  void pass_on();
  /** What follows may take long, though it hardly ever does: until the next `read`. */
  void may_block();

 private:
  bool worth_looking();
  ssize_t look(uint8_t* buffer, size_t bytes);
  void set_blocking(bool blocking);

  int fd_;
  LaneGate* gate_;
  bool alone_;
  uint64_t turn_ = 0;  // 0: the place at the gate is not ours
  bool risky_ = false;
  bool blocking_ = true;
  int credit_ = 0;           // how well looking paid lately
  uint32_t since_look_ = 0;  // requests since the last attempt to look
  uint32_t queued_ = 0;      // requests in a row that were there already
};

}  // namespace firstlight
