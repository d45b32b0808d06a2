// Open files: every handle that was given to the kernel, and how many opens of each kind a node
// has.
//
// The rule that this file guards: a passthrough open may join handles that were opened with
// FOPEN_DIRECT_IO only where none of them can get, or has, a shared mapping; and no other open may
// join passthrough. The kernel refuses the passthrough open while there is such a mapping (EIO),
// refuses the mapping while passthrough is open (ETXTBSY), refuses the other open beside
// passthrough (EIO), and tells us of none of it. An open is counted (`commit`) under the table's
// lock before its reply is sent, so that of two opens decided at the same moment one sees the
// other.
//
// A read-only session can do without opens (`OpenMode`): the kernel then opens through its page
// cache and tells us of nothing any more. It refuses that beside passthrough too (EIO), so that the
// step is taken only while no passthrough open is counted, and none is counted after it.
#pragma once

#include <time.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "divergence.h"
#include "transport.h"
#include "unique_fd.h"

namespace firstlight {

struct Handle {
  uint64_t fh = 0;
  uint64_t node = 0;
  uint32_t content = 0;
  /** Process that opened it; 0 where it cannot be seen. */
  uint32_t process = 0;
  /** Opened with FOPEN_DIRECT_IO, and without passthrough. */
  bool direct = false;
  /** Opened with passthrough: a pin of the backing table belongs to it. */
  bool backed = false;
  /** Opened to be run: it has no descriptor, and its first READ says that the open has ended. */
  bool exec = false;
  /** Descriptor of a file of the writable layer, with the access that the open asked for. Set for
   * good; other handles may share it. */
  std::shared_ptr<const UniqueFd> upper;
  /** Inode number that is shown of a file of the writable layer; 0: not told. */
  uint64_t ino = 0;
  /** What the tree wants to hear of the close; 0: nothing. */
  double tag = 0;
  /** Status change time of a file that is open to be written, when it was opened: a mapping changes
   * the file, and tells the kernel nothing of it. */
  timespec changed = {};
  bool writable = false;
  /** Its file was synced through it, and not its data alone. */
  std::atomic<bool> synced{false};

  // Under the table's lock.
  /** Its opener has closed a descriptor of it (or never had one): what still holds it is a mapping.
   */
  bool flushed = false;
  enum class Mapping : uint8_t { kUnknown, kPrivate, kShared } mapping = Mapping::kUnknown;

  // Under `lock`.
  std::mutex lock;
  /** Shared with READs that are under way. */
  std::shared_ptr<const UniqueFd> fd;
  /** ContentTable::epoch when fd was opened. */
  uint32_t epoch = 0;
  /** fd is the verified whole. One opened while parts arrive may stay behind: where the content
   * came another way (another image brought it), what was missing in it never follows. */
  bool whole = false;
};

/** What became of an open that was to be counted. */
enum class Commit {
  kDone,
  /** Another open came between the look and the commit: look again. */
  kAgain,
  /** The node has diverged from the template: the tree answers. */
  kThawed,
  /** Opens are unseen by now: the kernel is to be told so. */
  kUnseen,
};

/** What becomes of opens in a read-only session; the numbers are those of src/native/index.ts. */
enum class OpenMode : uint8_t {
  /** They come here, and get passthrough. */
  kSeen = 0,
  /** They come here, and go through the kernel's page cache: nothing will bar `kUnseen`. */
  kCached = 1,
  /** As soon as no passthrough open is left they come here no more, for good. */
  kUnseen = 2,
};

class HandleTable {
 public:
  HandleTable(Transport& transport, const Divergence& divergence)
      : transport_(transport), divergence_(divergence) {}

  /**
   * Counts a handle and names it (`fh`). A backed one only where no direct handle came since
   * `seen` (of passthrough_may_join), one without passthrough only where none has it.
   * @param by_tree  the tree has decided: also on a thawed node
   */
  Commit commit(const std::shared_ptr<Handle>& handle, uint64_t seen, bool by_tree);
  /** The same for a passthrough open of the template that needs no handle. */
  Commit commit_passthrough(uint64_t node, uint64_t seen, bool by_tree);
  /** Counts one more passthrough open where one is counted already; its backing is pinned before.
   */
  Commit join_passthrough(uint64_t node, bool by_tree);

  /** Says what is to become of opens. False where they are unseen already, which stays so. */
  bool set_open_mode(OpenMode mode);
  OpenMode open_mode() const { return open_mode_.load(std::memory_order_relaxed); }
  /** True where opens are unseen from now on, or were before. Closes what handles have open: the
   * kernel tells of no close any more, and they can be read by node. */
  bool end_opens();
  bool unseen() const { return unseen_.load(std::memory_order_relaxed); }

  /** nullptr where there is none of that name. For a READ: notes it as the sign of life of an exec.
   */
  std::shared_ptr<Handle> find(uint64_t fh);
  /** Takes the handle out of the table; nullptr where there is none of that name. */
  std::shared_ptr<Handle> remove(uint64_t fh);
  /** A passthrough open without a handle is over; `refused`: its reply did not arrive. */
  void passthrough_left(uint64_t node, bool undelivered);
  /** A FLUSH: the thread `tid` has closed a descriptor of the handle. */
  void flushed(uint64_t fh, uint32_t tid);
  /**
   * True where a passthrough open of the node cannot collide with a handle that is open on it now;
   * `seen` is for the commit. May read /proc/TID/maps of the openers; see the comment there about
   * what that may wait for.
   * @param by_tree  the tree's thread asks, for which all changes wait: it does not look, and takes
   * whatever is not known yet for a collision
   */
  bool passthrough_may_join(uint64_t node, bool by_tree, uint64_t* seen);

  /** True where the node is open through the kernel's page cache, which keeps passthrough out. */
  bool cached(uint64_t node);
  /** Opens of the node that the kernel has not released. */
  uint32_t opens(uint64_t node);
  /** A descriptor of the writable layer's file of a node, where the node is open with it; else
   * nullptr. `ino`: the number that is shown, 0 where nobody has told it. */
  std::shared_ptr<const UniqueFd> upper_of(uint64_t node, uint64_t* ino);
  /** The tree has said which inode number a node shows. */
  void learn_ino(uint64_t node, uint64_t ino);
  /** Waits until no open that began before is between its look at the divergence and its commit. */
  void drain() { std::lock_guard lock(mutex_); }

 private:
  struct Direct {
    std::vector<std::shared_ptr<Handle>> handles;
    /** Name of the last that was added. */
    uint64_t last = 0;
    /** When passthrough was last let in beside them. */
    std::chrono::steady_clock::time_point joined;
  };
  struct Opens {
    uint32_t passthrough = 0;
    uint32_t direct = 0;
    /** Through the kernel's page cache; passthrough never joins them. */
    uint32_t cached = 0;
    /** Those on the file of the writable layer, and the inode number that it shows. */
    std::vector<std::shared_ptr<Handle>> upper;
    uint64_t ino = 0;
  };
  enum class Kind { kPassthrough, kDirect, kCached };
  static Kind kind_of(const Handle& handle);
  static uint32_t& count_of(Opens& opens, Kind kind);
  bool bars_passthrough(uint64_t node, uint64_t seen) const;
  void left(uint64_t node, Kind kind);
  void learn_refusal(uint64_t node);

  Transport& transport_;
  const Divergence& divergence_;
  std::atomic<uint32_t> direct_{0};
  /** Opens of all nodes through the kernel's page cache. */
  std::atomic<uint32_t> cached_{0};
  // Written under the lock.
  std::atomic<OpenMode> open_mode_{OpenMode::kSeen};
  std::atomic<bool> unseen_{false};
  std::mutex mutex_;
  /** Passthrough opens of all nodes. */
  uint32_t passthrough_ = 0;
  uint64_t next_ = 1;
  std::unordered_map<uint64_t, std::shared_ptr<Handle>> handles_;
  std::unordered_map<uint64_t, Direct> direct_by_node_;
  std::unordered_map<uint64_t, Opens> opens_;
};

}  // namespace firstlight
