// Notifications to the kernel, by threads of their own: they wait for locks that programs hold
// while they wait for answers of ours. A name waits for the lock of its directory, cached pages for
// a page that is being read, which may be as long as its bytes are on the way. So names go in
// order, by one thread; pages of one node never wait for those of another, as long as there are
// threads.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "transport.h"

namespace firstlight {

class Notifier {
 public:
  /** @param passed  called by any thread when a mark is reached; must not block */
  Notifier(Transport& transport, std::function<void(uint64_t)> passed)
      : transport_(transport), passed_(std::move(passed)) {}
  ~Notifier();

  void start();
  bool started() {
    std::lock_guard lock(mutex_);
    return !threads_.empty();
  }
  /** The kernel forgets a name of a directory or, where `name` is empty, attributes (at once) and
   * cached pages of a node. */
  void invalidate(uint64_t node, std::string name);
  /** The kernel forgets the attributes of a node alone: at once, by the calling thread, since the
   * kernel takes no lock for it that a request may hold (fuse_reverse_inval_inode with a negative
   * offset). */
  void invalidate_attributes(uint64_t node);
  /** The kernel forgets the cached pages of a node: by the calling thread, which waits for those
   * that are being read. */
  void invalidate_pages(uint64_t node);
  /** True where all that it was given, marks excepted, has been done. */
  bool idle() {
    std::lock_guard lock(mutex_);
    return open_.empty();
  }
  /** Calls `passed(mark)` when everything before it has been done. */
  void mark(uint64_t mark);
  /** Drops what has not been begun, marks excepted. `ended` tells when the threads are through:
   * notifications that are under way may wait for requests that are to be answered first. */
  void stop();
  bool ended(std::chrono::milliseconds bound);

  /** Threads for pages at most; while all of them wait, further pages do too. */
  static constexpr uint32_t kPageThreads = 16;

 private:
  struct Item {
    enum Kind : uint8_t { kName, kPages, kAttributes } kind;
    uint64_t node;
    std::string name;
    /** Its place among all. */
    uint64_t turn = 0;
  };
  using Queue = std::deque<Item>;
  void push(Item item);
  void start_thread(Queue* queue);
  void run(Queue* queue);
  void settle_marks();
  void send(const Item& item);

  Transport& transport_;
  std::function<void(uint64_t)> passed_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<std::thread> threads_;
  uint32_t running_ = 0;
  uint32_t idle_page_threads_ = 0;
  Queue names_;
  Queue pages_;
  uint64_t next_turn_ = 1;
  std::set<uint64_t> open_;                          // turns that are not done
  std::deque<std::pair<uint64_t, uint64_t>> marks_;  // turn before which all is to be done, mark
  bool stopping_ = false;
};

}  // namespace firstlight
