// What a notification that the kernel keeps waiting delays, and what it does not.
#include <stdio.h>

#include <algorithm>
#include <chrono>

#include "harness.h"

namespace firstlight::test {

namespace {

using std::chrono::seconds;

// A kernel that keeps notifications of cached pages waiting, of the nodes that it is told.
class SlowKernel : public FakeTransport {
 public:
  SlowKernel() : FakeTransport(1) {}

  int notify(iovec* pieces, int count) override {
    int result = FakeTransport::notify(pieces, count);
    fuse_out_header header;
    memcpy(&header, pieces[0].iov_base, sizeof header);
    std::string what;
    uint64_t node = 0;
    if (header.error == FUSE_NOTIFY_INVAL_INODE) {
      fuse_notify_inval_inode_out out;
      memcpy(&out, pieces[1].iov_base, sizeof out);
      what = (out.off < 0 ? "attributes " : "pages ") + std::to_string(out.ino);
      if (out.off >= 0) node = out.ino;
    } else {
      what = std::string("name ") + static_cast<const char*>(pieces[2].iov_base);
    }
    std::unique_lock lock(mutex_);
    begun_.push_back(what);
    changed_.notify_all();
    changed_.wait(lock, [&] { return !slow_.contains(node); });
    return result;
  }
  void keep_waiting(uint64_t node) {
    std::lock_guard lock(mutex_);
    slow_.insert(node);
  }
  void let_go() {
    std::lock_guard lock(mutex_);
    slow_.clear();
    changed_.notify_all();
  }
  /** Ends the program where it does not come. */
  void expect_begun(const std::string& what) {
    std::unique_lock lock(mutex_);
    auto begun = [&] { return std::ranges::find(begun_, what) != begun_.end(); };
    if (!changed_.wait_for(lock, seconds(20), begun)) die("not sent to the kernel: " + what);
  }
  size_t begun() {
    std::lock_guard lock(mutex_);
    return begun_.size();
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::set<uint64_t> slow_;
  std::vector<std::string> begun_;
};

/** Marks that were passed. */
class Passed {
 public:
  void add(uint64_t mark) {
    std::lock_guard lock(mutex_);
    marks_.push_back(mark);
    changed_.notify_all();
  }
  bool is(const std::vector<uint64_t>& marks, seconds bound) {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, bound, [&] { return marks_ == marks; });
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<uint64_t> marks_;
};

void pages_that_wait_delay_nothing_else() {
  SlowKernel kernel;
  Passed passed;
  Notifier notifier(kernel, [&](uint64_t mark) { passed.add(mark); });
  notifier.start();
  notifier.mark(1);
  if (!passed.is({1}, seconds(20))) die("a mark with nothing before it");
  kernel.keep_waiting(7);
  notifier.invalidate(7, "");
  // Of the attributes it is told before the call returns.
  if (kernel.begun() == 0) die("attributes that wait for pages");
  kernel.expect_begun("attributes 7");
  kernel.expect_begun("pages 7");
  notifier.invalidate(8, "");
  notifier.invalidate(1, "name");
  kernel.expect_begun("pages 8");
  kernel.expect_begun("name name");
  notifier.mark(2);
  notifier.invalidate(9, "");
  notifier.mark(3);
  kernel.expect_begun("pages 9");
  if (!passed.is({1}, seconds(0))) die("a mark that passed what is before it");
  kernel.let_go();
  if (!passed.is({1, 2, 3}, seconds(20))) die("marks that are not passed, or not in order");
}

void more_pages_than_threads_wait_their_turn() {
  SlowKernel kernel;
  Passed passed;
  Notifier notifier(kernel, [&](uint64_t mark) { passed.add(mark); });
  notifier.start();
  constexpr uint64_t kMany = Notifier::kPageThreads + 3;
  for (uint64_t node = 1; node <= kMany; node++) kernel.keep_waiting(node);
  for (uint64_t node = 1; node <= kMany; node++) notifier.invalidate(node, "");
  notifier.mark(1);
  for (uint64_t node = 1; node <= kMany; node++) {
    kernel.expect_begun("attributes " + std::to_string(node));
  }
  notifier.invalidate(1, "name");
  kernel.expect_begun("name name");
  kernel.let_go();
  if (!passed.is({1}, seconds(20))) die("pages that were forgotten");
  for (uint64_t node = 1; node <= kMany; node++) {
    kernel.expect_begun("pages " + std::to_string(node));
  }
}

void stopping_drops_what_was_not_begun() {
  SlowKernel kernel;
  Passed passed;
  Notifier notifier(kernel, [&](uint64_t mark) { passed.add(mark); });
  notifier.start();
  kernel.keep_waiting(7);
  notifier.invalidate(7, "");
  kernel.expect_begun("pages 7");
  notifier.mark(1);
  notifier.stop();
  if (notifier.ended(std::chrono::milliseconds(1))) die("ended with a notification under way");
  notifier.invalidate(8, "");
  notifier.mark(2);
  kernel.let_go();
  if (!notifier.ended(seconds(20)) || !passed.is({1, 2}, seconds(20))) die("marks after the end");
}

}  // namespace

void notifier_rules() {
  pages_that_wait_delay_nothing_else();
  more_pages_than_threads_wait_their_turn();
  stopping_drops_what_was_not_begun();
  printf("notifier rules: passed\n");
}

}  // namespace firstlight::test
