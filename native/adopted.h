// Files of the writable layer whose opens and attributes are answered here, for the tree; and its
// root, whose extended attributes are.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>

#include "node_table.h"
#include "unique_fd.h"
#include "write_lease.h"

namespace firstlight {

/** A file, or a directory of which attributes alone are answered. */
struct AdoptedFile {
  /** For reading, whatever it is opened for: what is open for writing is told apart by it. */
  std::shared_ptr<const UniqueFd> fd;
  /** Inode number that is shown. */
  uint64_t ino = 0;
  /** Opens to write are answered too: a write takes nothing away from the file. */
  bool writable = false;
  /** Of a directory: its link count, which counts what the image has in it too. 0: no directory. */
  uint32_t links = 0;
  /** Times that it was opened for writing; one more for what was before it was adopted. */
  mutable std::atomic<uint64_t> write_opens{1};
  /** How many of them there had been when nobody was left who could write to it. */
  mutable std::atomic<uint64_t> write_opens_over{0};

  /** It was opened for writing, and that open is counted. */
  void opened_for_writing() const { write_opens.fetch_add(1, std::memory_order_seq_cst); }

  /**
   * Whether somebody can write to it now, by a handle or by a mapping that has outlived its handle.
   * Several threads may look at once. They are counted before the look: an open that comes between
   * has the next one look again.
   */
  bool is_written() const {
    uint64_t opens = write_opens.load(std::memory_order_seq_cst);
    if (write_opens_over.load(std::memory_order_seq_cst) == opens) return false;
    if (is_held_for_writing(fd->get())) return true;
    write_opens_over.store(opens, std::memory_order_seq_cst);
    return false;
  }
};

/** By node id. */
class AdoptedFiles : public NodeTable<AdoptedFile> {
 public:
  /** Once, before the first request. */
  void hold_root(UniqueFd fd) {
    std::lock_guard lock(root_mutex_);
    root_ = std::make_shared<const UniqueFd>(std::move(fd));
  }
  /** nullptr where it is not held. */
  std::shared_ptr<const UniqueFd> root() {
    std::lock_guard lock(root_mutex_);
    return root_;
  }

 private:
  std::mutex root_mutex_;
  std::shared_ptr<const UniqueFd> root_;
};

}  // namespace firstlight
