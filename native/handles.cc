// Handles by name, opens by node, and who of them may keep passthrough out.
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

HandleTable::Kind HandleTable::kind_of(const Handle& handle) {
  return handle.backed ? Kind::kPassthrough : handle.direct ? Kind::kDirect : Kind::kCached;
}

uint32_t& HandleTable::count_of(Opens& opens, Kind kind) {
  switch (kind) {
    case Kind::kPassthrough:
      return opens.passthrough;
    case Kind::kDirect:
      return opens.direct;
    case Kind::kCached:
      break;
  }
  return opens.cached;
}

// Under the lock: a cached open, or a direct one that nobody has looked at.
bool HandleTable::bars_passthrough(uint64_t node, uint64_t seen) const {
  auto opens = opens_.find(node);
  if (opens != opens_.end() && opens->second.cached > 0) return true;
  auto found = direct_by_node_.find(node);
  return found != direct_by_node_.end() && found->second.last > seen;
}

Commit HandleTable::commit(const std::shared_ptr<Handle>& handle, uint64_t seen, bool by_tree) {
  std::lock_guard lock(mutex_);
  uint64_t node = handle->node;
  if (!by_tree && divergence_.thawed(node)) return Commit::kThawed;
  if (handle->backed) {
    if (unseen()) return Commit::kUnseen;
    if (bars_passthrough(node, seen)) return Commit::kAgain;
    passthrough_++;
  } else {
    auto found = opens_.find(node);
    if (found != opens_.end() && found->second.passthrough > 0) return Commit::kAgain;
  }
  handle->fh = next_++;
  handles_[handle->fh] = handle;
  Opens& opens = opens_[node];
  Kind kind = kind_of(*handle);
  count_of(opens, kind)++;
  if (kind == Kind::kCached) cached_.fetch_add(1, std::memory_order_release);
  if (handle->upper != nullptr) {
    opens.upper.push_back(handle);
    if (handle->ino != 0) opens.ino = handle->ino;
  }
  if (handle->direct) {
    Direct& direct = direct_by_node_[node];
    direct.handles.push_back(handle);
    direct.last = handle->fh;
    direct_.fetch_add(1, std::memory_order_release);
  }
  return Commit::kDone;
}

Commit HandleTable::commit_passthrough(uint64_t node, uint64_t seen, bool by_tree) {
  std::lock_guard lock(mutex_);
  if (!by_tree && divergence_.thawed(node)) return Commit::kThawed;
  if (unseen()) return Commit::kUnseen;
  if (bars_passthrough(node, seen)) return Commit::kAgain;
  opens_[node].passthrough++;
  passthrough_++;
  return Commit::kDone;
}

Commit HandleTable::join_passthrough(uint64_t node, bool by_tree) {
  std::lock_guard lock(mutex_);
  if (!by_tree && divergence_.thawed(node)) return Commit::kThawed;
  auto found = opens_.find(node);
  if (found == opens_.end() || found->second.passthrough == 0) return Commit::kAgain;
  found->second.passthrough++;
  passthrough_++;
  return Commit::kDone;
}

bool HandleTable::set_open_mode(OpenMode mode) {
  std::lock_guard lock(mutex_);
  if (unseen()) return false;
  open_mode_.store(mode, std::memory_order_relaxed);
  return true;
}

bool HandleTable::end_opens() {
  if (unseen()) return true;
  std::vector<std::shared_ptr<Handle>> open;
  {
    std::lock_guard lock(mutex_);
    // Again: an open that somebody wants to see may have come between.
    if (open_mode() != OpenMode::kUnseen || passthrough_ > 0) return false;
    unseen_.store(true, std::memory_order_relaxed);
    // They stay in the table until the session ends: the kernel sends no RELEASE any more.
    for (const auto& [fh, handle] : handles_) open.push_back(handle);
  }
  // A READ that is just opening its file may wait for the disk.
  if (!open.empty()) transport_.about_to_block();
  for (const auto& handle : open) {
    std::lock_guard lock(handle->lock);
    handle->fd.reset();
  }
  return true;
}

std::shared_ptr<Handle> HandleTable::find(uint64_t fh) {
  std::lock_guard lock(mutex_);
  auto found = handles_.find(fh);
  if (found == handles_.end()) return nullptr;
  // exec(2) closes no descriptor, so no FLUSH will come; it only maps privately.
  if (found->second->exec) found->second->flushed = true;
  return found->second;
}

void HandleTable::left(uint64_t node, Kind kind) {
  auto found = opens_.find(node);
  if (found == opens_.end()) return;
  Opens& opens = found->second;
  uint32_t& count = count_of(opens, kind);
  if (count > 0) {
    count--;
    if (kind == Kind::kPassthrough) passthrough_--;
    if (kind == Kind::kCached) cached_.fetch_sub(1, std::memory_order_release);
  }
  if (opens.passthrough == 0 && opens.direct == 0 && opens.cached == 0) opens_.erase(found);
}

std::shared_ptr<Handle> HandleTable::remove(uint64_t fh) {
  std::lock_guard lock(mutex_);
  auto found = handles_.find(fh);
  if (found == handles_.end()) return nullptr;
  std::shared_ptr<Handle> gone = std::move(found->second);
  handles_.erase(found);
  auto opens = opens_.find(gone->node);
  if (gone->upper != nullptr && opens != opens_.end()) std::erase(opens->second.upper, gone);
  left(gone->node, kind_of(*gone));
  if (gone->backed) learn_refusal(gone->node);
  if (!gone->direct) return gone;
  direct_.fetch_sub(1, std::memory_order_release);
  auto list = direct_by_node_.find(gone->node);
  std::erase(list->second.handles, gone);
  if (list->second.handles.empty()) direct_by_node_.erase(list);
  return gone;
}

void HandleTable::passthrough_left(uint64_t node, bool undelivered) {
  std::lock_guard lock(mutex_);
  left(node, Kind::kPassthrough);
  if (!undelivered) learn_refusal(node);
}

void HandleTable::flushed(uint64_t fh, uint32_t tid) {
  std::shared_ptr<Handle> handle = find(fh);
  if (handle == nullptr || !handle->direct) return;
  // A child that closes what it inherited says nothing about its parent's descriptor.
  if (process_of(tid) != handle->process) return;
  std::lock_guard lock(mutex_);
  handle->flushed = true;
}

bool HandleTable::cached(uint64_t node) {
  // One that is not committed yet is seen by the commit that follows.
  if (cached_.load(std::memory_order_acquire) == 0) return false;
  std::lock_guard lock(mutex_);
  auto found = opens_.find(node);
  return found != opens_.end() && found->second.cached > 0;
}

uint32_t HandleTable::opens(uint64_t node) {
  std::lock_guard lock(mutex_);
  auto found = opens_.find(node);
  if (found == opens_.end()) return 0;
  const Opens& opens = found->second;
  return opens.passthrough + opens.direct + opens.cached;
}

std::shared_ptr<const UniqueFd> HandleTable::upper_of(uint64_t node, uint64_t* ino) {
  std::lock_guard lock(mutex_);
  auto found = opens_.find(node);
  if (found == opens_.end() || found->second.upper.empty()) return nullptr;
  *ino = found->second.ino;
  return found->second.upper.back()->upper;
}

void HandleTable::learn_ino(uint64_t node, uint64_t ino) {
  std::lock_guard lock(mutex_);
  auto found = opens_.find(node);
  if (found != opens_.end()) found->second.ino = ino;
}

// What is looked at: the descriptors and mappings of the process that opened the handle. A child
// that inherited a descriptor whose parent closed its own is not seen: should it map the file
// shared, one passthrough open fails with EIO, and `learn_refusal` learns from it.
//
// Reading maps may wait for the process' mmap lock, which a thread of it can hold while it waits
// for a READ from us (a fault inside a system call, with a writer queued behind it). That READ is
// completed by the housekeeper or by another lane, or ends at its bound: a stall at worst.
bool HandleTable::passthrough_may_join(uint64_t node, bool by_tree, uint64_t* seen) {
  *seen = 0;
  // None of them is on the node, or it is not committed yet: then the commit sees it.
  if (direct_.load(std::memory_order_acquire) == 0) return true;
  std::vector<std::shared_ptr<Handle>> unknown;
  {
    std::lock_guard lock(mutex_);
    auto found = direct_by_node_.find(node);
    if (found == direct_by_node_.end()) return true;
    *seen = found->second.last;
    // The kernel has it beside them already.
    auto opens = opens_.find(node);
    if (opens != opens_.end() && opens->second.passthrough > 0) return true;
    if (found->second.handles.size() > kLookMax) return false;
    for (const auto& handle : found->second.handles) {
      // Not closed yet: it may be mapped at any moment, and its open may even be under way.
      if (!handle->flushed || handle->mapping == Handle::Mapping::kShared) return false;
      if (handle->mapping == Handle::Mapping::kUnknown) unknown.push_back(handle);
    }
  }
  if (!unknown.empty() && by_tree) return false;
  if (!unknown.empty()) transport_.about_to_block();
  // The number that stat shows keeps the row of a template's node in its low bits.
  uint32_t inode = static_cast<uint32_t>(node);
  for (const auto& handle : unknown) {
    // Descriptors first: one that is closed by now cannot become a mapping after the look at those.
    if (may_have_open(handle->process, inode)) return false;
    SharedMapping mapped = find_shared_mapping(handle->process, inode);
    if (mapped == SharedMapping::kUnknown) return false;
    std::lock_guard lock(mutex_);
    handle->mapping =
        mapped == SharedMapping::kNone ? Handle::Mapping::kPrivate : Handle::Mapping::kShared;
    if (mapped == SharedMapping::kFound) return false;
  }
  std::lock_guard lock(mutex_);
  auto found = direct_by_node_.find(node);
  if (found != direct_by_node_.end()) found->second.joined = std::chrono::steady_clock::now();
  return true;
}

// A passthrough handle of the node was released. Soon after it was let in beside direct handles,
// the kernel has refused it. Under the lock.
void HandleTable::learn_refusal(uint64_t node) {
  auto found = direct_by_node_.find(node);
  if (found == direct_by_node_.end()) return;
  if (std::chrono::steady_clock::now() - found->second.joined > kRefusedWithin) return;
  // Where it was no refusal but a quick program, the file is merely read through us for a while.
  for (const auto& handle : found->second.handles) handle->mapping = Handle::Mapping::kShared;
}

}  // namespace firstlight
