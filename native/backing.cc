// Pinning, and the bound on idle ids.
#include "backing.h"

#include <errno.h>

namespace firstlight {

BackingTable::~BackingTable() {
  for (Entries* entries : {&pinned_, &idle_}) {
    for (const Entry& entry : *entries) transport_.close_backing(entry.id);
  }
}

int BackingTable::pin(Entries::iterator entry) {
  if (entry->pins++ == 0) pinned_.splice(pinned_.begin(), idle_, entry);
  return entry->id;
}

int BackingTable::acquire_pinned(uint32_t row) {
  std::lock_guard lock(mutex_);
  auto found = by_row_.find(row);
  if (found == by_row_.end() || found->second->pins == 0) return 0;
  return pin(found->second);
}

int BackingTable::acquire(uint32_t row, uint32_t content) {
  uint32_t epoch = template_.table().epoch();
  int32_t old = 0;
  {
    std::lock_guard lock(mutex_);
    auto found = by_row_.find(row);
    if (found != by_row_.end()) {
      auto entry = found->second;
      // The kernel takes no other id while one is in use.
      if (entry->pins > 0 || entry->epoch == epoch) return pin(entry);
      old = entry->id;
      by_row_.erase(found);
      idle_.erase(entry);
    }
  }
  if (old != 0) transport_.close_backing(old);
  // Without the lock: opening a cold file may wait for the disk.
  transport_.about_to_block();
  int error = 0;
  UniqueFd fd = template_.open_content(content, &error);
  if (!fd) return -error;
  int id = transport_.open_backing(fd.get());
  if (id > 0) return insert(row, id, epoch);
  switch (id) {
    case -ENOMEM:
    case -ENFILE:
    case -ENOSPC:
    case -EAGAIN:
      // Passing shortage. Falling back to cached reads for one open would bar passthrough from the
      // inode for as long as that file is open, so the program hears of it.
      return id;
    default:
      // EPERM: no CAP_SYS_ADMIN; ELOOP: the store stands on a stacked filesystem; ENOTTY,
      // EOPNOTSUPP...
      usable_.store(false, std::memory_order_relaxed);
      return -EOPNOTSUPP;
  }
}

int BackingTable::insert(uint32_t row, int32_t id, uint32_t epoch) {
  int32_t surplus = 0;
  int result;
  {
    std::lock_guard lock(mutex_);
    auto found = by_row_.find(row);
    if (found != by_row_.end()) {
      // Another thread was faster; the inode may be open with its id already.
      surplus = id;
      result = pin(found->second);
    } else {
      pinned_.push_front({row, id, 1, epoch});
      by_row_[row] = pinned_.begin();
      result = id;
    }
  }
  if (surplus != 0) transport_.close_backing(surplus);
  return result;
}

void BackingTable::release(uint32_t row) {
  int32_t evicted = 0;
  {
    std::lock_guard lock(mutex_);
    auto found = by_row_.find(row);
    if (found == by_row_.end() || found->second->pins == 0) return;
    auto entry = found->second;
    if (--entry->pins != 0) return;
    idle_.splice(idle_.begin(), pinned_, entry);
    if (idle_.size() > idle_max_) {
      evicted = idle_.back().id;
      by_row_.erase(idle_.back().row);
      idle_.pop_back();
    }
  }
  if (evicted != 0) transport_.close_backing(evicted);
}

}  // namespace firstlight
