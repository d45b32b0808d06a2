// Backing ids for kernel passthrough, one for each inode that was opened lately.
//
// While an inode is open with passthrough, the kernel takes no other backing id for it: an id that
// is in use stays (pinned) until the last RELEASE. Idle ids are kept too, so that opening a warm
// file costs no system call besides the reply; the oldest idle one is closed where there are too
// many, and one from before a content was lost (its file may be the damaged one) is not used again.
#pragma once

#include <atomic>
#include <cstdint>
#include <list>
#include <mutex>
#include <unordered_map>

#include "template.h"
#include "transport.h"

namespace firstlight {

class BackingTable {
 public:
  BackingTable(Template& tree, Transport& transport, size_t idle_max)
      : template_(tree), transport_(transport), idle_max_(idle_max) {}
  ~BackingTable();
  BackingTable(const BackingTable&) = delete;
  BackingTable& operator=(const BackingTable&) = delete;

  /**
   * Backing id (above 0) of an inode's content, pinned until `release`; a negative errno where the
   * file cannot be had. -EOPNOTSUPP: passthrough is not to be had here, now or later.
   */
  int acquire(uint32_t row, uint32_t content);
  /** The id, pinned once more, where the inode is open with passthrough now; else 0. */
  int acquire_pinned(uint32_t row);
  void release(uint32_t row);
  /** False once the kernel has said that it takes no file of this store. */
  bool usable() const { return usable_.load(std::memory_order_relaxed); }

  /** Idle ids that are kept open, unless told otherwise. Each pins one open file in the kernel. */
  static constexpr size_t kIdleMax = 1024;

 private:
  struct Entry {
    uint32_t row;
    int32_t id;
    uint32_t pins;
    /** ContentTable::epoch from before the file was opened. */
    uint32_t epoch;
  };
  using Entries = std::list<Entry>;
  int pin(Entries::iterator entry);
  int insert(uint32_t row, int32_t id, uint32_t epoch);

  Template& template_;
  Transport& transport_;
  const size_t idle_max_;
  std::atomic<bool> usable_{true};
  std::mutex mutex_;
  Entries pinned_;
  Entries idle_;  // latest first
  std::unordered_map<uint32_t, Entries::iterator> by_row_;
};

}  // namespace firstlight
