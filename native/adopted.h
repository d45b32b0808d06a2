// Files of the writable layer whose opens and attributes are answered here, for the tree; and its
// root, whose extended attributes are.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <shared_mutex>
#include <unordered_map>

#include "unique_fd.h"

namespace firstlight {

/** A file, or a directory of which attributes alone are answered. */
struct AdoptedFile {
  std::shared_ptr<const UniqueFd> fd;
  /** Inode number that is shown. */
  uint64_t ino = 0;
  /** The descriptor can be written. */
  bool writable = false;
  /** Of a directory: its link count, which counts what the image has in it too. 0: no directory. */
  uint32_t links = 0;
};

class AdoptedFiles {
 public:
  void adopt(uint64_t node, AdoptedFile file) {
    std::unique_lock lock(mutex_);
    files_[node] = std::make_shared<const AdoptedFile>(std::move(file));
  }
  /** When it returns, nobody is inside `with` for the node. */
  void disown(uint64_t node) {
    std::shared_ptr<const AdoptedFile> gone;  // closes its descriptor after the lock
    std::unique_lock lock(mutex_);
    auto found = files_.find(node);
    if (found == files_.end()) return;
    gone = std::move(found->second);
    files_.erase(found);
  }
  std::shared_ptr<const AdoptedFile> find(uint64_t node) {
    std::shared_lock lock(mutex_);
    auto found = files_.find(node);
    return found == files_.end() ? nullptr : found->second;
  }
  /** Calls `use(file)`, which must not block, unless the node is not adopted; then false. */
  template <class Use>
  bool with(uint64_t node, Use use) {
    std::shared_lock lock(mutex_);
    auto found = files_.find(node);
    if (found == files_.end()) return false;
    use(*found->second);
    return true;
  }

  /** Once, before the first request. */
  void hold_root(UniqueFd fd) {
    std::unique_lock lock(mutex_);
    root_ = std::make_shared<const UniqueFd>(std::move(fd));
  }
  /** nullptr where it is not held. */
  std::shared_ptr<const UniqueFd> root() {
    std::shared_lock lock(mutex_);
    return root_;
  }

 private:
  std::shared_mutex mutex_;
  std::unordered_map<uint64_t, std::shared_ptr<const AdoptedFile>> files_;
  std::shared_ptr<const UniqueFd> root_;
};

}  // namespace firstlight
