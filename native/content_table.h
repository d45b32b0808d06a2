// What has arrived of an image, and the requests that wait for the rest. One table serves every
// session of a template. It decides when a wait is over; answering the request is its owner's work.
//
// Threads: states and parts are read without a lock by the threads that answer requests; marks come
// from the JavaScript thread, which only ever holds the lock for the length of a few list moves.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <span>
#include <unordered_map>
#include <vector>

#include "toc.h"

namespace firstlight {

using Clock = std::chrono::steady_clock;

/** State of a content; the numbers are those of src/native/index.ts. */
enum class ContentState : uint8_t { kEmpty = 0, kPartial = 1, kRoLayer = 2, kFailed = 4 };

class WaitOwner;

/** One request that waits for bytes. */
struct Parked {
  std::shared_ptr<WaitOwner> owner;
  // The request, as far as its answer needs it.
  uint64_t unique = 0;
  uint32_t lane = 0;
  uint32_t opcode = 0;
  uint32_t row = 0;
  uint32_t tid = 0;
  uint32_t uid = 0;
  uint32_t gid = 0;
  uint32_t flags = 0;
  uint64_t fh = 0;
  uint64_t offset = 0;
  uint32_t bytes = 0;
  // What it waits for: parts first to last of the content, or all of it and its verified file.
  uint32_t content = 0;
  uint32_t first_part = 0;
  uint32_t last_part = 0;
  bool whole = false;
  /** The upcall that waits, and is sent again; 0: the request is answered here. */
  uint64_t call = 0;
  /** A first access: it goes into the trace when it is answered. */
  bool traced = false;
  Clock::time_point since;
  /** time_point::max() where the wait has no bound. */
  Clock::time_point deadline;
  /** An INTERRUPT has come: its thread's signals are looked at from now on. */
  bool interrupted = false;
  /** Why the wait ended: 0, or a positive errno. */
  int error = 0;
};

using ParkedList = std::vector<std::unique_ptr<Parked>>;

/** The side that answers: a session. `resume` may be called under the table's lock. */
class WaitOwner {
 public:
  virtual ~WaitOwner() = default;
  /** Takes a request whose wait is over, to be answered on a thread of the owner. */
  virtual void resume(std::unique_ptr<Parked> parked) = 0;
  /** A complete content was lost: its file is damaged, and so may be what was read of it. To those
   * who `watch`, under the table's lock. */
  virtual void lost(uint32_t) {}

 private:
  friend class ContentTable;
  // INTERRUPTs whose request was not parked (yet): the kernel sends each once, and may send it
  // before the request itself is seen. Bounded: an old one belongs to a request that was answered
  // long ago.
  std::deque<uint64_t> early_interrupts_;
  bool closed_ = false;
};

class ContentTable {
 public:
  explicit ContentTable(const Toc& toc);

  ContentState state(uint32_t content) const {
    return static_cast<ContentState>(states_[content].load(std::memory_order_acquire));
  }
  /** True where the parts (numbers within the content) can be read. */
  bool readable(uint32_t content, uint32_t first_part, uint32_t last_part) const;
  /** Errno of a failed content (EIO where the failure has been cleared meanwhile). */
  int failure(uint32_t content) const;
  /** Changes whenever a complete content is lost, a failure is cleared, or what had arrived of a
   * content is forgotten: a file that was opened before may not be the one that is filled, or was
   * fetched again, since. */
  uint32_t epoch() const { return epoch_.load(std::memory_order_acquire); }

  /** True once a complete content was lost: its file was found damaged, and what the kernel has
   * cached of it may be, too. */
  bool lost() const { return lost_.load(std::memory_order_acquire); }

  enum class Outcome { kParked, kReady, kFailed, kClosed };
  /** Lets a request wait, unless what it wants is there by now. kParked takes it. */
  Outcome park(std::unique_ptr<Parked>& parked);
  /** First and last of the wanted parts that are missing; false where none is. */
  bool missing(const Parked& parked, uint32_t* first, uint32_t* last) const;

  void mark_ready(std::span<const uint32_t> contents);
  void mark_parts(std::span<const uint32_t> parts);
  void mark_failed(std::span<const uint32_t> contents, int error);
  void clear_failed(std::span<const uint32_t> contents);
  /** Back to Empty, whatever was there of them: reads wait from now on, and who waits goes on
   * waiting. */
  void forget(std::span<const uint32_t> contents);

  /** Notes that the caller of a request got a signal. True where the request is parked. */
  bool interrupt(WaitOwner* owner, uint64_t unique);
  /** True where an INTERRUPT came for a request that was not parked; once. */
  bool take_early(WaitOwner* owner, uint64_t unique);
  /** Takes one waiting request back, or nullptr. */
  std::unique_ptr<Parked> take(WaitOwner* owner, uint64_t unique);
  /** Takes the owner's requests whose deadline has passed. */
  ParkedList take_expired(WaitOwner* owner, Clock::time_point now);
  struct Interrupted {
    uint64_t unique;
    uint32_t tid;
  };
  /** The owner's waiting requests that were interrupted, and its earliest deadline (max() where
   * none). */
  std::vector<Interrupted> interrupted(WaitOwner* owner, Clock::time_point* deadline) const;
  /** Tells the owner of contents that are lost, until `unwatch`: also one that is closed may have
   * given them to somebody who reads on. */
  void watch(WaitOwner* owner);
  void unwatch(WaitOwner* owner);
  /** Takes everything of an owner; no request of it can wait from then on. */
  ParkedList close(WaitOwner* owner);
  /** Requests that wait now, through all owners. */
  uint32_t waiting() const { return waiting_.load(std::memory_order_relaxed); }

 private:
  bool satisfied(const Parked& parked) const;
  bool take_early_locked(WaitOwner* owner, uint64_t unique);
  void finish(uint32_t content, int error);
  int failure_locked(uint32_t content) const;
  bool any_part(uint32_t content) const;
  void forget_parts(uint32_t content);
  template <class Wanted>
  ParkedList take_where(Wanted wanted);

  const Toc& toc_;
  std::unique_ptr<std::atomic<uint8_t>[]> states_;
  std::unique_ptr<std::atomic<uint64_t>[]> parts_;
  std::atomic<uint32_t> epoch_{0};
  std::atomic<bool> lost_{false};
  std::atomic<uint32_t> waiting_{0};
  mutable std::mutex mutex_;
  std::unordered_map<uint32_t, ParkedList> waits_;
  std::unordered_map<uint32_t, int> failures_;
  std::vector<WaitOwner*> watchers_;
};

}  // namespace firstlight
