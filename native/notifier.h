// Notifications to the kernel, in order, by a thread of their own: they wait for inode locks, which
// programs hold while they wait for answers of ours.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <mutex>
#include <string>
#include <thread>

#include "transport.h"

namespace firstlight {

class Notifier {
 public:
  /** @param passed  called by the notifier's thread when a mark is reached; must not block */
  Notifier(Transport& transport, std::function<void(uint64_t)> passed)
      : transport_(transport), passed_(std::move(passed)) {}
  ~Notifier();

  void start();
  /** The kernel forgets a name of a directory or, where `name` is empty, attributes and cached
   * pages of a node. */
  void invalidate(uint64_t node, std::string name);
  /** The kernel forgets the attributes of a node alone: at once, by the calling thread, since the
   * kernel takes no lock for it that a request may hold (fuse_reverse_inval_inode with a negative
   * offset). */
  void invalidate_attributes(uint64_t node);
  /** Calls `passed(mark)` when everything before it has been done. */
  void mark(uint64_t mark);
  /** Drops what has not been done, marks excepted. `ended` tells when the thread is through: the
   * one notification that is under way may wait for a request that is to be answered first. */
  void stop();
  bool ended(std::chrono::milliseconds bound);

 private:
  struct Item {
    enum Kind : uint8_t { kName, kNode, kAttributes, kMark } kind;
    uint64_t node;
    std::string name;
  };
  void push(Item item);
  void run();
  void send(const Item& item);

  Transport& transport_;
  std::function<void(uint64_t)> passed_;
  std::thread thread_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Item> items_;
  bool stopping_ = false;
  bool ended_ = true;
};

}  // namespace firstlight
