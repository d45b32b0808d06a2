// Threads for requests that wait for a disk for long (fsync and the like), so that those who answer
// everything else do not.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace firstlight {

class BlockingPool {
 public:
  /** Threads are made when they are needed, up to this many. */
  static constexpr size_t kThreadsMax = 16;

  ~BlockingPool() { stop(); }
  /** Runs `job` on a thread of the pool; at once on this one where none can be had any more. */
  void run(std::function<void()> job);
  /** Finishes what was given, and ends the threads. */
  void stop();

 private:
  void work();

  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<std::function<void()>> jobs_;
  std::vector<std::thread> threads_;
  size_t idle_ = 0;
  bool stopping_ = false;
};

}  // namespace firstlight
