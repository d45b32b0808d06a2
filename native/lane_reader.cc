// Looking, sleeping and passing on; the reasons stand in lane_reader.h.
#include "lane_reader.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <utility>

namespace firstlight {

namespace {

using Clock = std::chrono::steady_clock;

// Longest look. The answer to a reply comes within this time where the caller goes on at once.
constexpr std::chrono::microseconds kLook{30};
// Looks that paid raise the credit by one step, those that did not lower it by four: at less than
// four hits in five the thread sleeps at once, but for one request in kRetry.
constexpr int kCreditMax = 64;
constexpr int kHit = 1;
constexpr int kMiss = 4;
constexpr uint32_t kRetry = 16;
// So many requests in a row that were waiting already: one lane is not enough.
constexpr uint32_t kQueuedMax = 8;
// A lane that is at the same thing for so long, or twice that, waits for a disk.
constexpr std::chrono::milliseconds kPatrol{1};
// Patrols without anything new after which it sleeps.
constexpr int kQuietMax = 50;

}  // namespace

// Under the lock.
bool LaneGate::take(uint64_t* turn) {
  uint64_t free = state_.load();
  if ((free & kTaken) != 0) return false;
  // Nobody else changes it: the place is nobody's.
  *turn = free + kNext + kTaken;
  state_.store(*turn);
  return true;
}

// Under the lock. `seen`: the state that has been there for a patrol.
bool LaneGate::take_over(uint64_t seen, uint64_t* turn) {
  if ((seen & kRisk) == 0) return false;
  *turn = (seen & ~kRisk) + kNext;
  // Fails where it was over at this moment.
  return state_.compare_exchange_strong(seen, *turn);
}

uint64_t LaneGate::enter() {
  uint64_t turn = 0;
  bool patrols = false;
  uint64_t seen = 0;
  int quiet = 0;
  std::unique_lock lock(mutex_);
  while (!take(&turn)) {
    if (!patrols && !patrolled_) patrols = patrolled_ = true;
    if (!patrols) {
      standing_by_++;
      free_.wait(lock);
      standing_by_--;
      continue;
    }
    seen = state_.load();
    if (quiet >= kQuietMax) {
      asleep_.store(true);
      // One that came before this was seen is looked at below; one that comes later wakes it.
      if ((state_.load() & kRisk) == 0) patrol_.wait(lock);
      asleep_.store(false);
      quiet = 0;
      continue;
    }
    patrol_.wait_for(lock, kPatrol);
    quiet = state_.load() == seen && (seen & kRisk) == 0 ? quiet + 1 : 0;
    if (state_.load() == seen && take_over(seen, &turn)) break;
  }
  if (patrols) {
    patrolled_ = false;
    // Another takes over the patrol.
    free_.notify_one();
  }
  return turn;
}

void LaneGate::leave(uint64_t turn) {
  std::lock_guard lock(mutex_);
  uint64_t now = state_.load();
  if ((now & ~kRisk) != (turn & ~kRisk)) return;
  // It may be taken over just now, and is not ours to give then.
  if (!state_.compare_exchange_strong(now, turn & ~(kRisk | kTaken))) return;
  if (standing_by_ > 0) {
    free_.notify_one();
  } else {
    patrol_.notify_one();
  }
}

void LaneGate::risk(uint64_t turn) {
  // Fails where another has the place: then there is nothing to say.
  if (!state_.compare_exchange_strong(turn, turn | kRisk)) return;
  if (!asleep_.load()) return;
  std::lock_guard lock(mutex_);
  patrol_.notify_one();
}

uint64_t LaneGate::safe(uint64_t turn) {
  uint64_t next = (turn & ~kRisk) + kNext;
  uint64_t now = turn | kRisk;
  if (state_.compare_exchange_strong(now, next)) return next;
  return now == turn ? turn : 0;
}

void LaneReader::set_blocking(bool blocking) {
  if (blocking_ == blocking) return;
  // Cannot fail on a descriptor of ours; if it did, the thread would spin or sleep, no more.
  fcntl(fd_, F_SETFL, blocking ? O_RDWR : O_RDWR | O_NONBLOCK);
  blocking_ = blocking;
}

bool LaneReader::worth_looking() {
  if (credit_ > 0) return true;
  if (++since_look_ < kRetry) return false;
  since_look_ = 0;
  return true;
}

ssize_t LaneReader::look(uint8_t* buffer, size_t bytes) {
  set_blocking(false);
  ssize_t got = ::read(fd_, buffer, bytes);
  if (got >= 0 || errno != EAGAIN) {
    queued_++;
    credit_ = std::min(credit_ + kHit, kCreditMax);
    return got;
  }
  queued_ = 0;
  Clock::time_point end = Clock::now() + kLook;
  do {
    sched_yield();
    got = ::read(fd_, buffer, bytes);
    if (got >= 0 || errno != EAGAIN) {
      credit_ = std::min(credit_ + kHit, kCreditMax);
      return got;
    }
  } while (Clock::now() < end);
  credit_ = std::max(credit_ - kMiss, 0);
  set_blocking(true);
  return -1;
}

ssize_t LaneReader::read(uint8_t* buffer, size_t bytes) {
  if (std::exchange(risky_, false)) turn_ = gate_->safe(turn_);
  if (turn_ == 0 && !alone_) {
    turn_ = gate_->enter();
    queued_ = 0;
  }
  ssize_t got = -1;
  errno = EAGAIN;
  if (worth_looking()) got = look(buffer, bytes);
  if (got < 0 && errno == EAGAIN) {
    set_blocking(true);
    got = ::read(fd_, buffer, bytes);
  }
  if (got <= 0 || queued_ > kQueuedMax) {
    int error = errno;
    pass_on();
    errno = error;
  }
  return got;
}

void LaneReader::pass_on() {
  risky_ = false;
  if (turn_ != 0) gate_->leave(std::exchange(turn_, 0));
}

void LaneReader::may_block() {
  if (turn_ == 0 || std::exchange(risky_, true)) return;
  gate_->risk(turn_);
}

}  // namespace firstlight
