// Who changes the writable layer: the tree's thread, or a lane in its place, never both at once.
//
// The tree is inside while it works on a request. A lane may change something only while the tree
// is outside, and keeps it there meanwhile; what it has done it says before it lets go. So the
// changes of both form one sequence, and the tree hears of those before a request when it begins
// with it: whatever it does in a request, it does on the layer that it knows.
//
// A lane never waits for the tree: where that is inside, it hands the request over. Nor does it
// wait for another lane longer than a few system calls take from memory: should the disk keep that
// one, there must be lanes left for what needs no disk. The tree waits for a lane as long as it
// takes: it would have to make the same calls itself.
#pragma once

#include <chrono>
#include <condition_variable>
#include <mutex>

namespace firstlight {

class TreeGate {
 public:
  // The tree's thread.
  void enter() {
    std::unique_lock lock(mutex_);
    tree_waits_ = true;
    changed_.wait(lock, [&] { return who_ == Who::kNobody; });
    tree_waits_ = false;
    who_ = Who::kTree;
  }
  void leave() { set_free(); }

  // Lanes.
  /** The tree stays outside until `let_in`. False: it is inside or wants to be, or another lane is
   * and takes its time. */
  bool keep_out() {
    std::unique_lock lock(mutex_);
    changed_.wait_for(lock, kPatience, [&] { return who_ != Who::kLane; });
    if (who_ != Who::kNobody || tree_waits_) return false;
    who_ = Who::kLane;
    return true;
  }
  void let_in() { set_free(); }

 private:
  enum class Who { kNobody, kTree, kLane };
  static constexpr std::chrono::microseconds kPatience{200};

  void set_free() {
    std::lock_guard lock(mutex_);
    who_ = Who::kNobody;
    changed_.notify_all();
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  Who who_ = Who::kNobody;
  bool tree_waits_ = false;
};

/** The tree is inside as long as it lives. */
class TreeInside {
 public:
  explicit TreeInside(TreeGate& gate) : gate_(gate) { gate_.enter(); }
  ~TreeInside() { gate_.leave(); }
  TreeInside(const TreeInside&) = delete;
  TreeInside& operator=(const TreeInside&) = delete;

 private:
  TreeGate& gate_;
};

}  // namespace firstlight
