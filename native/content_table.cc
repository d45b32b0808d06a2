// States, parts and waits; the contract stands in content_table.h.
#include "content_table.h"

#include <errno.h>

#include <algorithm>
#include <utility>

namespace firstlight {

namespace {
constexpr size_t kEarlyInterrupts = 256;
}

ContentTable::ContentTable(const Toc& toc)
    : toc_(toc),
      states_(new std::atomic<uint8_t>[toc.contents()]()),
      parts_(new std::atomic<uint64_t>[(size_t{toc.parts()} + 63) / 64]()) {}

bool ContentTable::readable(uint32_t content, uint32_t first_part, uint32_t last_part) const {
  ContentState now = state(content);
  if (now == ContentState::kRoLayer) return true;
  if (now != ContentState::kPartial) return false;
  uint32_t base = toc_.content(content).first_part;
  for (uint32_t part = base + first_part; part <= base + last_part; part++) {
    if ((parts_[part / 64].load(std::memory_order_acquire) >> (part % 64) & 1) == 0) return false;
  }
  return true;
}

bool ContentTable::satisfied(const Parked& parked) const {
  if (parked.whole) return state(parked.content) == ContentState::kRoLayer;
  return readable(parked.content, parked.first_part, parked.last_part);
}

int ContentTable::failure(uint32_t content) const {
  std::lock_guard lock(mutex_);
  return failure_locked(content);
}

int ContentTable::failure_locked(uint32_t content) const {
  auto found = failures_.find(content);
  return found == failures_.end() ? EIO : found->second;
}

ContentTable::Outcome ContentTable::park(std::unique_ptr<Parked>& parked) {
  std::lock_guard lock(mutex_);
  // Marks change the state before they take the lock to look for waits, so one of the two sides
  // sees the other.
  if (satisfied(*parked)) return Outcome::kReady;
  if (state(parked->content) == ContentState::kFailed) {
    parked->error = failure_locked(parked->content);
    return Outcome::kFailed;
  }
  // Only now: who uses a mount that was detached still gets what is there.
  if (parked->owner->closed_) return Outcome::kClosed;
  if (take_early_locked(parked->owner.get(), parked->unique)) parked->interrupted = true;
  waits_[parked->content].push_back(std::move(parked));
  waiting_.fetch_add(1, std::memory_order_relaxed);
  return Outcome::kParked;
}

bool ContentTable::take_early_locked(WaitOwner* owner, uint64_t unique) {
  auto& early = owner->early_interrupts_;
  auto came = std::find(early.begin(), early.end(), unique);
  if (came == early.end()) return false;
  early.erase(came);
  return true;
}

bool ContentTable::take_early(WaitOwner* owner, uint64_t unique) {
  std::lock_guard lock(mutex_);
  return take_early_locked(owner, unique);
}

bool ContentTable::missing(const Parked& parked, uint32_t* first, uint32_t* last) const {
  uint32_t low = parked.first_part;
  uint32_t high = parked.last_part;
  while (low <= high && readable(parked.content, low, low)) low++;
  if (low > high) return false;
  while (high > low && readable(parked.content, high, high)) high--;
  *first = low;
  *last = high;
  return true;
}

// Moves the waits of a content that are over (all of them where it failed) to their owners.
void ContentTable::finish(uint32_t content, int error) {
  auto found = waits_.find(content);
  if (found == waits_.end()) return;
  ParkedList& list = found->second;
  auto over = std::stable_partition(list.begin(), list.end(), [&](const auto& parked) {
    return error == 0 && !satisfied(*parked);
  });
  for (auto at = over; at != list.end(); ++at) {
    (*at)->error = error;
    WaitOwner* owner = (*at)->owner.get();
    waiting_.fetch_sub(1, std::memory_order_relaxed);
    owner->resume(std::move(*at));
  }
  list.erase(over, list.end());
  if (list.empty()) waits_.erase(found);
}

void ContentTable::mark_ready(std::span<const uint32_t> contents) {
  for (uint32_t content : contents) {
    states_[content].store(static_cast<uint8_t>(ContentState::kRoLayer), std::memory_order_release);
  }
  std::lock_guard lock(mutex_);
  if (!failures_.empty()) {
    for (uint32_t content : contents) failures_.erase(content);
  }
  if (waits_.empty()) return;
  for (uint32_t content : contents) finish(content, 0);
}

void ContentTable::mark_parts(std::span<const uint32_t> parts) {
  std::lock_guard lock(mutex_);
  for (uint32_t part : parts) {
    parts_[part / 64].fetch_or(uint64_t{1} << (part % 64), std::memory_order_release);
    uint32_t content = toc_.content_of_part(part);
    uint8_t empty = static_cast<uint8_t>(ContentState::kEmpty);
    states_[content].compare_exchange_strong(empty, static_cast<uint8_t>(ContentState::kPartial),
                                             std::memory_order_release);
    if (!waits_.empty()) finish(content, 0);
  }
}

void ContentTable::mark_failed(std::span<const uint32_t> contents, int error) {
  std::lock_guard lock(mutex_);
  bool lost = false;
  for (uint32_t content : contents) {
    bool complete = state(content) == ContentState::kRoLayer;
    failures_[content] = error;
    states_[content].store(static_cast<uint8_t>(ContentState::kFailed), std::memory_order_release);
    if (complete) {
      lost = true;
      // They were those of the file that is gone, and would be read as holes of the next one.
      forget_parts(content);
      // After the new state: what reads it from now on fails.
      for (WaitOwner* owner : watchers_) owner->lost(content);
    }
    finish(content, error);
  }
  if (!lost) return;
  lost_.store(true, std::memory_order_release);
  epoch_.fetch_add(1, std::memory_order_release);
}

bool ContentTable::any_part(uint32_t content) const {
  uint32_t base = toc_.content(content).first_part;
  for (uint32_t part = base; part < base + toc_.part_count(content); part++) {
    if ((parts_[part / 64].load(std::memory_order_relaxed) >> (part % 64) & 1) != 0) return true;
  }
  return false;
}

void ContentTable::forget_parts(uint32_t content) {
  uint32_t base = toc_.content(content).first_part;
  for (uint32_t part = base; part < base + toc_.part_count(content); part++) {
    parts_[part / 64].fetch_and(~(uint64_t{1} << (part % 64)), std::memory_order_relaxed);
  }
}

void ContentTable::clear_failed(std::span<const uint32_t> contents) {
  std::lock_guard lock(mutex_);
  for (uint32_t content : contents) {
    if (state(content) != ContentState::kFailed) continue;
    failures_.erase(content);
    auto next = any_part(content) ? ContentState::kPartial : ContentState::kEmpty;
    states_[content].store(static_cast<uint8_t>(next), std::memory_order_release);
  }
  epoch_.fetch_add(1, std::memory_order_release);
}

void ContentTable::forget(std::span<const uint32_t> contents) {
  std::lock_guard lock(mutex_);
  bool changed = false;
  for (uint32_t content : contents) {
    ContentState before = state(content);
    if (before == ContentState::kEmpty) continue;
    changed = true;
    failures_.erase(content);
    // Before the parts: with the old state, some of them would look like all that is there.
    states_[content].store(static_cast<uint8_t>(ContentState::kEmpty), std::memory_order_release);
    forget_parts(content);
    if (before != ContentState::kRoLayer) continue;
    lost_.store(true, std::memory_order_release);
    for (WaitOwner* owner : watchers_) owner->lost(content);
  }
  if (changed) epoch_.fetch_add(1, std::memory_order_release);
}

bool ContentTable::interrupt(WaitOwner* owner, uint64_t unique) {
  std::lock_guard lock(mutex_);
  for (auto& [content, list] : waits_) {
    for (auto& parked : list) {
      if (parked->unique != unique || parked->owner.get() != owner) continue;
      parked->interrupted = true;
      return true;
    }
  }
  if (owner->early_interrupts_.size() >= kEarlyInterrupts) owner->early_interrupts_.pop_front();
  owner->early_interrupts_.push_back(unique);
  return false;
}

template <class Wanted>
ParkedList ContentTable::take_where(Wanted wanted) {
  ParkedList taken;
  for (auto at = waits_.begin(); at != waits_.end();) {
    ParkedList& list = at->second;
    auto over = std::stable_partition(list.begin(), list.end(),
                                      [&](const auto& parked) { return !wanted(*parked); });
    waiting_.fetch_sub(static_cast<uint32_t>(list.end() - over), std::memory_order_relaxed);
    std::move(over, list.end(), std::back_inserter(taken));
    list.erase(over, list.end());
    at = list.empty() ? waits_.erase(at) : std::next(at);
  }
  return taken;
}

std::unique_ptr<Parked> ContentTable::take(WaitOwner* owner, uint64_t unique) {
  std::lock_guard lock(mutex_);
  ParkedList taken =
      take_where([&](const Parked& p) { return p.owner.get() == owner && p.unique == unique; });
  return taken.empty() ? nullptr : std::move(taken.front());
}

ParkedList ContentTable::take_expired(WaitOwner* owner, Clock::time_point now) {
  std::lock_guard lock(mutex_);
  return take_where([&](const Parked& p) { return p.owner.get() == owner && p.deadline <= now; });
}

std::vector<ContentTable::Interrupted> ContentTable::interrupted(
    WaitOwner* owner, Clock::time_point* deadline) const {
  std::vector<Interrupted> found;
  *deadline = Clock::time_point::max();
  std::lock_guard lock(mutex_);
  for (const auto& [content, list] : waits_) {
    for (const auto& parked : list) {
      if (parked->owner.get() != owner) continue;
      *deadline = std::min(*deadline, parked->deadline);
      if (parked->interrupted) found.push_back({parked->unique, parked->tid});
    }
  }
  return found;
}

void ContentTable::watch(WaitOwner* owner) {
  std::lock_guard lock(mutex_);
  watchers_.push_back(owner);
}

void ContentTable::unwatch(WaitOwner* owner) {
  std::lock_guard lock(mutex_);
  std::erase(watchers_, owner);
}

ParkedList ContentTable::close(WaitOwner* owner) {
  std::lock_guard lock(mutex_);
  owner->closed_ = true;
  return take_where([&](const Parked& p) { return p.owner.get() == owner; });
}

}  // namespace firstlight
