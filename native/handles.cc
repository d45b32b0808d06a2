// Handles by name, and who of them may keep passthrough out.
#include "handles.h"

#include <algorithm>

#include "procfs.h"

namespace firstlight {

namespace {
// More openers than this are not looked at one by one: the file stays without passthrough until
// they close.
constexpr size_t kLookMax = 64;
}  // namespace

void HandleTable::add(const std::shared_ptr<Handle>& handle) {
  std::lock_guard lock(mutex_);
  handle->fh = next_++;
  handles_[handle->fh] = handle;
  if (!handle->direct) return;
  direct_by_row_[handle->row].push_back(handle);
  direct_.fetch_add(1, std::memory_order_release);
}

std::shared_ptr<Handle> HandleTable::find(uint64_t fh) {
  std::lock_guard lock(mutex_);
  auto found = handles_.find(fh);
  return found == handles_.end() ? nullptr : found->second;
}

void HandleTable::remove(uint64_t fh) {
  std::shared_ptr<Handle> gone;  // closes its descriptor after the lock
  std::lock_guard lock(mutex_);
  auto found = handles_.find(fh);
  if (found == handles_.end()) return;
  gone = std::move(found->second);
  handles_.erase(found);
  if (!gone->direct) return;
  direct_.fetch_sub(1, std::memory_order_release);
  auto list = direct_by_row_.find(gone->row);
  std::erase(list->second, gone);
  if (list->second.empty()) direct_by_row_.erase(list);
}

void HandleTable::flushed(uint64_t fh, uint32_t tid) {
  std::shared_ptr<Handle> handle = find(fh);
  if (handle == nullptr || !handle->direct) return;
  // A child that closes what it inherited says nothing about its parent's descriptor.
  if (tid != handle->tid && process_of(tid) != process_of(handle->tid)) return;
  std::lock_guard lock(mutex_);
  handle->flushed = true;
}

// Reading maps may wait for the process' mmap lock, which a thread of it can hold while it waits
// for a READ from us (a fault inside a system call, with a writer queued behind it). That READ is
// completed by the housekeeper or by another lane, or ends at its bound: a stall at worst.
bool HandleTable::passthrough_may_join(uint32_t row) {
  if (direct_.load(std::memory_order_acquire) == 0) return true;
  std::vector<std::shared_ptr<Handle>> open;
  {
    std::lock_guard lock(mutex_);
    auto found = direct_by_row_.find(row);
    if (found == direct_by_row_.end()) return true;
    if (found->second.size() > kLookMax) return false;
    for (const auto& handle : found->second) {
      // Not closed yet: it may be mapped at any moment, and its open may even be under way.
      if (!handle->flushed || handle->mapping == Handle::Mapping::kShared) return false;
      if (handle->mapping == Handle::Mapping::kUnknown) open.push_back(handle);
    }
  }
  for (const auto& handle : open) {
    SharedMapping seen = find_shared_mapping(handle->tid, row + 1);
    if (seen == SharedMapping::kUnknown) return false;
    // Its descriptor is closed, so what the mapping is now it stays.
    std::lock_guard lock(mutex_);
    handle->mapping =
        seen == SharedMapping::kNone ? Handle::Mapping::kPrivate : Handle::Mapping::kShared;
    if (seen == SharedMapping::kFound) return false;
  }
  return true;
}

}  // namespace firstlight
