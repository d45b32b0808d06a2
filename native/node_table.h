// What is known of some nodes, by node id: found by many threads at once, and shared with them, so
// that who has found it goes on with it when it is dropped.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <shared_mutex>
#include <unordered_map>
#include <utility>

namespace firstlight {

template <class T>
class NodeTable {
 public:
  /** In place of what was there. */
  void put(uint64_t node, std::shared_ptr<const T> item) {
    std::unique_lock lock(mutex_);
    // The old one goes with `item`, after the lock: it may close a descriptor.
    items_[node].swap(item);
  }
  /** When it returns, nobody is inside `with` for the node. */
  void drop(uint64_t node) {
    std::shared_ptr<const T> gone;  // as above
    std::unique_lock lock(mutex_);
    auto found = items_.find(node);
    if (found == items_.end()) return;
    gone = std::move(found->second);
    items_.erase(found);
  }
  /** nullptr where there is none. */
  std::shared_ptr<const T> find(uint64_t node) {
    std::shared_lock lock(mutex_);
    auto found = items_.find(node);
    return found == items_.end() ? nullptr : found->second;
  }
  /** Calls `use(item)`, which must not block, unless there is none; then false. */
  template <class Use>
  bool with(uint64_t node, Use use) {
    std::shared_lock lock(mutex_);
    auto found = items_.find(node);
    if (found == items_.end()) return false;
    use(*found->second);
    return true;
  }

 private:
  std::shared_mutex mutex_;
  std::unordered_map<uint64_t, std::shared_ptr<const T>> items_;
};

}  // namespace firstlight
