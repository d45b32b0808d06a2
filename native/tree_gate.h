// Who changes the writable layer: the tree's thread, or a lane in its place, never both at once.
//
// The tree is inside while it works on a request. A lane may change something only while the tree
// is outside, and keeps it there meanwhile; what it has done it says before it lets go. So the
// changes of both form one sequence, and the tree hears of those before a request when it begins
// with it: whatever it does in a request, it does on the layer that it knows.
//
// A lane never waits for the tree: where that is inside, it hands the request over. The tree waits
// for a lane as long as a few system calls take, which it would have made itself.
#pragma once

#include <mutex>

namespace firstlight {

class TreeGate {
 public:
  // The tree's thread.
  void enter() {
    std::lock_guard lock(mutex_);
    inside_ = true;
  }
  void leave() {
    std::lock_guard lock(mutex_);
    inside_ = false;
  }

  /** Lanes: the tree stays outside as long as the lock is held. One without a lock: it is inside.
   */
  std::unique_lock<std::mutex> keep_out() {
    std::unique_lock lock(mutex_);
    if (inside_) lock.unlock();
    return lock;
  }

 private:
  std::mutex mutex_;
  bool inside_ = false;
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
