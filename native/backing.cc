// Pinning, and the bound on idle ids.
#include "backing.h"

#include <errno.h>
#include <sys/stat.h>

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

int BackingTable::acquire_pinned(uint64_t node) {
  std::lock_guard lock(mutex_);
  auto found = by_node_.find(node);
  if (found == by_node_.end() || found->second->pins == 0 || found->second->source.upper) return 0;
  return pin(found->second);
}

// The id of the same file, pinned; 0 where there is none, with an idle one of another file closed;
// -EBUSY where another file's is in use.
int BackingTable::pin_existing(uint64_t node, const Source& source, bool keep) {
  int32_t old = 0;
  {
    std::lock_guard lock(mutex_);
    auto found = by_node_.find(node);
    if (found == by_node_.end()) return 0;
    auto entry = found->second;
    if (entry->source == source) {
      entry->keep |= keep;
      return pin(entry);
    }
    if (entry->pins > 0) {
      // Of a content that was lost meanwhile: the kernel takes no other id while one is in use.
      return !entry->source.upper && !source.upper ? pin(entry) : -EBUSY;
    }
    old = entry->id;
    by_node_.erase(found);
    idle_.erase(entry);
  }
  transport_.close_backing(old);
  return 0;
}

int BackingTable::acquire(uint64_t node, uint32_t content) {
  Source source;
  source.epoch = template_.table().epoch();
  int id = pin_existing(node, source, true);
  if (id != 0) return id;
  // Without the lock: opening a cold file may wait for the disk.
  transport_.about_to_block();
  int error = 0;
  UniqueFd fd = template_.open_content(content, &error);
  if (!fd) return -error;
  id = register_file(fd.get(), &usable_);
  return id > 0 ? insert(node, id, true, source) : id;
}

int BackingTable::acquire_file(uint64_t node, int fd, bool keep) {
  struct stat st;
  if (fstat(fd, &st) != 0) return -errno;
  Source source;
  source.upper = true;
  source.device = st.st_dev;
  source.inode = st.st_ino;
  int id = pin_existing(node, source, keep);
  if (id != 0) return id;
  id = register_file(fd, &usable_upper_);
  return id > 0 ? insert(node, id, keep, source) : id;
}

int BackingTable::register_file(int fd, std::atomic<bool>* usable) {
  int id = transport_.open_backing(fd);
  switch (id > 0 ? 0 : id) {
    case 0:
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
      usable->store(false, std::memory_order_relaxed);
      return -EOPNOTSUPP;
  }
}

int BackingTable::insert(uint64_t node, int32_t id, bool keep, const Source& source) {
  int32_t surplus = 0;
  int result;
  {
    std::lock_guard lock(mutex_);
    auto found = by_node_.find(node);
    if (found != by_node_.end()) {
      // Another thread was faster; the inode may be open with its id already.
      surplus = id;
      bool same =
          found->second->source == source || (!found->second->source.upper && !source.upper);
      result = same ? pin(found->second) : -EBUSY;
    } else {
      pinned_.push_front({node, id, 1, keep, source});
      by_node_[node] = pinned_.begin();
      result = id;
    }
  }
  if (surplus != 0) transport_.close_backing(surplus);
  return result;
}

void BackingTable::release(uint64_t node) {
  int32_t evicted = 0;
  {
    std::lock_guard lock(mutex_);
    auto found = by_node_.find(node);
    if (found == by_node_.end() || found->second->pins == 0) return;
    auto entry = found->second;
    if (--entry->pins != 0) return;
    if (!entry->keep) {
      evicted = entry->id;
      pinned_.erase(entry);
      by_node_.erase(found);
    } else {
      idle_.splice(idle_.begin(), pinned_, entry);
      if (idle_.size() > idle_max_) {
        evicted = idle_.back().id;
        by_node_.erase(idle_.back().node);
        idle_.pop_back();
      }
    }
  }
  if (evicted != 0) transport_.close_backing(evicted);
}

void BackingTable::forget(uint64_t node) {
  int32_t closed = 0;
  {
    std::lock_guard lock(mutex_);
    auto found = by_node_.find(node);
    if (found == by_node_.end()) return;
    found->second->keep = false;
    if (found->second->pins > 0) return;
    closed = found->second->id;
    idle_.erase(found->second);
    by_node_.erase(found);
  }
  transport_.close_backing(closed);
}

}  // namespace firstlight
