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

}  // namespace

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
  if (!holding_ && !alone_) {
    gate_->enter();
    queued_ = 0;
  }
  holding_ = true;
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
  if (!std::exchange(holding_, false) || alone_) return;
  gate_->leave();
}

}  // namespace firstlight
