// Open files that are read through us: those that were opened before their content was complete,
// and all of them where there is no passthrough. Passthrough handles are not kept here.
//
// The rule that this file guards: a passthrough open may join handles that were opened with
// FOPEN_DIRECT_IO only where none of them can get, or has, a shared mapping. The kernel refuses the
// passthrough open while there is one (EIO), and refuses the mapping while passthrough is open
// (ETXTBSY), and tells us of neither.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "transport.h"
#include "unique_fd.h"

namespace firstlight {

struct Handle {
  uint64_t fh = 0;
  uint32_t row = 0;
  uint32_t content = 0;
  /** Process that opened it; 0 where it cannot be seen. */
  uint32_t process = 0;
  /** Opened with FOPEN_DIRECT_IO. */
  bool direct = false;
  /** Opened to be run: it has no descriptor, and its first READ says that the open has ended. */
  bool exec = false;

  // Under the table's lock.
  /** Its opener has closed a descriptor of it (or never had one): what still holds it is a mapping.
   */
  bool flushed = false;
  enum class Mapping : uint8_t { kUnknown, kPrivate, kShared } mapping = Mapping::kUnknown;

  // Under `lock`.
  std::mutex lock;
  UniqueFd fd;
  /** ContentTable::epoch when fd was opened. */
  uint32_t epoch = 0;
  /** fd is the verified whole. One opened while parts arrive may stay behind: where the content
   * came another way (another image brought it), what was missing in it never follows. */
  bool whole = false;
};

class HandleTable {
 public:
  explicit HandleTable(Transport& transport) : transport_(transport) {}

  /** Adds a handle and names it (`fh`). */
  void add(const std::shared_ptr<Handle>& handle);
  /** nullptr where there is none of that name. For a READ: notes it as the sign of life of an exec.
   */
  std::shared_ptr<Handle> find(uint64_t fh);
  void remove(uint64_t fh);
  /** A FLUSH: the thread `tid` has closed a descriptor of the handle. */
  void flushed(uint64_t fh, uint32_t tid);
  /**
   * True where a passthrough open of the inode cannot collide with a handle that is open on it. May
   * read /proc/TID/maps of the openers; see the comment there about what that may wait for.
   */
  bool passthrough_may_join(uint32_t row);
  /** A passthrough handle of the inode was released. Soon after `passthrough_may_join`, the kernel
   * has refused it. */
  void passthrough_left(uint32_t row);

 private:
  Transport& transport_;
  std::atomic<uint32_t> direct_{0};
  std::mutex mutex_;
  uint64_t next_ = 1;
  std::unordered_map<uint64_t, std::shared_ptr<Handle>> handles_;
  struct Direct {
    std::vector<std::shared_ptr<Handle>> handles;
    /** When passthrough was last let in beside them. */
    std::chrono::steady_clock::time_point joined;
  };
  std::unordered_map<uint32_t, Direct> direct_by_row_;
};

}  // namespace firstlight
