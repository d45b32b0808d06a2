// Which lane reads /dev/fuse, and how it waits for the next request.
//
// Waking a sleeping thread on another CPU is what a round trip costs most. Two things keep it low:
//
// One lane reads, the others stand by. The kernel wakes readers in turn, so that with several of
// them each request would find another thread, on another CPU, with cold caches. The reading lane
// keeps its place while it answers what it can answer from memory; it passes it on before it may
// block, and when requests queue up behind it.
//
// The reading lane looks again for a short while before it sleeps, as long as that pays: programs
// that open one file after the other send the next request within some 20 us of a reply. It yields
// the CPU between two looks, since on a busy machine the caller may be waiting for this very CPU.
#pragma once

#include <sys/types.h>

#include <condition_variable>
#include <cstdint>
#include <mutex>

namespace firstlight {

/** Lets one lane at a time read. */
class LaneGate {
 public:
  void enter() {
    std::unique_lock lock(mutex_);
    free_.wait(lock, [&] { return !taken_; });
    taken_ = true;
  }
  void leave() {
    {
      std::lock_guard lock(mutex_);
      taken_ = false;
    }
    free_.notify_one();
  }

 private:
  std::mutex mutex_;
  std::condition_variable free_;
  bool taken_ = false;
};

/** Reads one lane's descriptor. Used by its thread alone. */
class LaneReader {
 public:
  LaneReader(int fd, LaneGate* gate, bool alone) : fd_(fd), gate_(gate), alone_(alone) {}

  /** read(2) of the next request, blocking; takes the place at the gate where it has not got it. */
  ssize_t read(uint8_t* buffer, size_t bytes);
  /** Lets another lane read. */
  void pass_on();

 private:
  bool worth_looking();
  ssize_t look(uint8_t* buffer, size_t bytes);
  void set_blocking(bool blocking);

  int fd_;
  LaneGate* gate_;
  bool alone_;
  bool holding_ = false;
  bool blocking_ = true;
  int credit_ = 0;           // how well looking paid lately
  uint32_t since_look_ = 0;  // requests since the last attempt to look
  uint32_t queued_ = 0;      // requests in a row that were there already
};

}  // namespace firstlight
