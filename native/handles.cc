// Handles by name, and who of them may keep passthrough out.
#include "handles.h"

#include <algorithm>

#include "procfs.h"

namespace firstlight {

namespace {
// More openers than this are not looked at one by one: the file stays without passthrough until
// they close.
constexpr size_t kLookMax = 64;
// The RELEASE of an open that the kernel refused follows the reply at once.
constexpr std::chrono::milliseconds kRefusedWithin{1};
}  // namespace

void HandleTable::add(const std::shared_ptr<Handle>& handle) {
  std::lock_guard lock(mutex_);
  handle->fh = next_++;
  handles_[handle->fh] = handle;
  if (!handle->direct) return;
  direct_by_row_[handle->row].handles.push_back(handle);
  direct_.fetch_add(1, std::memory_order_release);
}

std::shared_ptr<Handle> HandleTable::find(uint64_t fh) {
  std::lock_guard lock(mutex_);
  auto found = handles_.find(fh);
  if (found == handles_.end()) return nullptr;
  // exec(2) closes no descriptor, so no FLUSH will come; it only maps privately.
  if (found->second->exec) found->second->flushed = true;
  return found->second;
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
  std::erase(list->second.handles, gone);
  if (list->second.handles.empty()) direct_by_row_.erase(list);
}

void HandleTable::flushed(uint64_t fh, uint32_t tid) {
  std::shared_ptr<Handle> handle = find(fh);
  if (handle == nullptr || !handle->direct) return;
  // A child that closes what it inherited says nothing about its parent's descriptor.
  if (process_of(tid) != handle->process) return;
  std::lock_guard lock(mutex_);
  handle->flushed = true;
}

// What is looked at: the descriptors and mappings of the process that opened the handle. A child
// that inherited a descriptor whose parent closed its own is not seen: should it map the file
// shared, one passthrough open fails with EIO, and `passthrough_left` learns from it.
//
// Reading maps may wait for the process' mmap lock, which a thread of it can hold while it waits
// for a READ from us (a fault inside a system call, with a writer queued behind it). That READ is
// completed by the housekeeper or by another lane, or ends at its bound: a stall at worst.
bool HandleTable::passthrough_may_join(uint32_t row) {
  if (direct_.load(std::memory_order_acquire) == 0) return true;
  std::vector<std::shared_ptr<Handle>> unknown;
  {
    std::lock_guard lock(mutex_);
    auto found = direct_by_row_.find(row);
    if (found == direct_by_row_.end()) return true;
    if (found->second.handles.size() > kLookMax) return false;
    for (const auto& handle : found->second.handles) {
      // Not closed yet: it may be mapped at any moment, and its open may even be under way.
      if (!handle->flushed || handle->mapping == Handle::Mapping::kShared) return false;
      if (handle->mapping == Handle::Mapping::kUnknown) unknown.push_back(handle);
    }
  }
  if (!unknown.empty()) transport_.about_to_block();
  for (const auto& handle : unknown) {
    // Descriptors first: one that is closed by now cannot become a mapping after the look at those.
    if (may_have_open(handle->process, row + 1)) return false;
    SharedMapping seen = find_shared_mapping(handle->process, row + 1);
    if (seen == SharedMapping::kUnknown) return false;
    std::lock_guard lock(mutex_);
    handle->mapping =
        seen == SharedMapping::kNone ? Handle::Mapping::kPrivate : Handle::Mapping::kShared;
    if (seen == SharedMapping::kFound) return false;
  }
  std::lock_guard lock(mutex_);
  auto found = direct_by_row_.find(row);
  if (found != direct_by_row_.end()) found->second.joined = std::chrono::steady_clock::now();
  return true;
}

void HandleTable::passthrough_left(uint32_t row) {
  if (direct_.load(std::memory_order_acquire) == 0) return;
  std::lock_guard lock(mutex_);
  auto found = direct_by_row_.find(row);
  if (found == direct_by_row_.end()) return;
  if (std::chrono::steady_clock::now() - found->second.joined > kRefusedWithin) return;
  // Where it was no refusal but a quick program, the file is merely read through us for a while.
  for (const auto& handle : found->second.handles) handle->mapping = Handle::Mapping::kShared;
}

}  // namespace firstlight
