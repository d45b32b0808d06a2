// How a session hears, for a trace, of what the kernel does with its files without asking: opens
// (open_watch.h), and reads of what is cached.
#include <errno.h>
#include <sys/stat.h>

#include "session.h"

namespace firstlight {

namespace {

// A look at whether the watch is through, in case its end is told to nobody.
constexpr std::chrono::milliseconds kWatchPoll{1000};

}  // namespace

int Session::watch_opens(const std::string& mount_point, std::string* what) {
  std::shared_ptr<OpenWatch> watch;
  {
    std::lock_guard lock(mutex_);
    *what = "watch " + mount_point;
    if (ending_) return ENODEV;
    if (watch_ != nullptr) return EALREADY;
    watch = watch_ = std::make_shared<OpenWatch>(toc(), *trace_);
    guests_++;
  }
  int error = watch->start(mount_point, what);
  std::lock_guard lock(mutex_);
  if (error != 0) watch_.reset();
  guests_--;
  return error;
}

void Session::unwatch_opens() {
  std::shared_ptr<OpenWatch> watch;
  {
    std::lock_guard lock(mutex_);
    watch = watch_;
  }
  if (watch == nullptr) return;
  watch->stop();
  // It reads what is queued, and its own closes are answered: by a lane, or at the end of them.
  while (!watch->ended(kWatchPoll)) {
  }
  std::lock_guard lock(mutex_);
  if (watch_ == watch) watch_.reset();
}

bool Session::watches_opens() {
  std::lock_guard lock(mutex_);
  return watch_ != nullptr;
}

void Session::forget_reads() {
  {
    std::lock_guard lock(mutex_);
    if (ending_) return;
    guests_++;
  }
  for (uint32_t row = 0; row < toc().rows(); row++) {
    const TocRow& file = toc().row(row);
    if (file.inode != row || (file.mode & S_IFMT) != S_IFREG) continue;
    uint32_t content = toc().content_of(file);
    if (content == kNone || toc().part_count(content) < 2) continue;
    notifier_.invalidate_pages(uint64_t{row} + 1);
  }
  std::lock_guard lock(mutex_);
  guests_--;
}

bool Session::helpers_ended() {
  if (!notifier_.ended(std::chrono::milliseconds(0))) return false;
  std::lock_guard lock(mutex_);
  return guests_ == 0 && (watch_ == nullptr || watch_->ended(std::chrono::milliseconds(0)));
}

}  // namespace firstlight
