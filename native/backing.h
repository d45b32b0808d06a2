// Backing ids for kernel passthrough, one for each node that was opened lately.
//
// While a node is open with passthrough, the kernel takes no other backing id for it: an id that
// is in use stays (pinned) until the last RELEASE. Idle ids of the template's contents are kept
// too, so that opening a warm file costs no system call besides the reply; the oldest idle one is
// closed where there are too many, and one from before a content was lost (its file may be the
// damaged one) is not used again. An id of the writable layer is kept idle only where its caller
// asks for it: it holds the file, and its room on the disk, after the last name is gone.
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
   * Backing id (above 0) of a node's content, pinned until `release`; a negative errno where the
   * file cannot be had. -EOPNOTSUPP: passthrough is not to be had here, now or later. -EBUSY: the
   * node is open with another file.
   */
  int acquire(uint64_t node, uint32_t content);
  /** The same for a file of the writable layer. `keep`: its id stays when it is idle, until
   * `forget`. */
  int acquire_file(uint64_t node, int fd, bool keep);
  /** The id, pinned once more, where it is pinned now by an open of the template; else 0. */
  int acquire_pinned(uint64_t node);
  void release(uint64_t node);
  /** Closes the node's id as soon as it is idle, and keeps it no longer. */
  void forget(uint64_t node);
  /** False once the kernel has said that it takes no file of this store, or of the writable layer.
   */
  bool usable() const { return usable_.load(std::memory_order_relaxed); }
  bool usable_upper() const { return usable_upper_.load(std::memory_order_relaxed); }

  /** Idle ids that are kept open, unless told otherwise. Each pins one open file in the kernel. */
  static constexpr size_t kIdleMax = 1024;

 private:
  /** Which file an id stands for: ContentTable::epoch from before a content was opened, or device
   * and inode number of a file of the writable layer (which exists, and keeps its number, as long
   * as the id is open). */
  struct Source {
    bool upper = false;
    uint32_t epoch = 0;
    uint64_t device = 0;
    uint64_t inode = 0;
    bool operator==(const Source&) const = default;
  };
  struct Entry {
    uint64_t node;
    int32_t id;
    uint32_t pins;
    bool keep;
    Source source;
  };
  using Entries = std::list<Entry>;
  int pin(Entries::iterator entry);
  int pin_existing(uint64_t node, const Source& source, bool keep);
  int insert(uint64_t node, int32_t id, bool keep, const Source& source);
  int register_file(int fd, std::atomic<bool>* usable);

  Template& template_;
  Transport& transport_;
  const size_t idle_max_;
  std::atomic<bool> usable_{true};
  std::atomic<bool> usable_upper_{true};
  std::mutex mutex_;
  Entries pinned_;
  Entries idle_;  // latest first
  std::unordered_map<uint64_t, Entries::iterator> by_node_;
};

}  // namespace firstlight
