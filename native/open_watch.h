// Opens of a session's files that the kernel makes without asking (OpenMode::kUnseen), heard of by
// fanotify(7) while a trace is recorded. What the kernel has in its page cache is read without a
// word to anybody; Session::forget_reads deals with that.
//
// The mark stands on the superblock, so that opens through any mount of it count: bind mounts,
// other mount namespaces, and overlayfs above it (which opens its lower files with events since
// Linux 6.5). FUSE shows no fsid, and without one the kernel gives no events with file handles
// (FAN_REPORT_FID: ENODEV): each event brings a descriptor instead. Opening that one asks the
// session nothing, since opens are unseen, and its file handle holds the node id, so that the
// session's own mount is not touched. Closing it asks nothing either, once a FLUSH was refused: a
// short-lived process of its own sees to that first.
//
// Threads: `start` blocks, and may wait for an answer of the session: neither a thread that answers
// requests nor JavaScript's may call it. `stop` and `ended` are anybody's.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <string>
#include <thread>

#include "access_trace.h"
#include "toc.h"
#include "unique_fd.h"

namespace firstlight {

class OpenWatch {
 public:
  OpenWatch(const Toc& toc, AccessTrace& trace) : toc_(toc), trace_(trace) {}
  /** Has ended, or was never started. */
  ~OpenWatch();

  /**
   * Records first opens from now on, while the trace is on. `mount_point` is where the session's
   * filesystem stands. Returns 0, or a positive errno with the step that failed: EPERM without
   * CAP_SYS_ADMIN, ENOSYS where the kernel has no fanotify, EMFILE where there are too many of
   * these, ENODEV where another filesystem stands there.
   */
  int start(const std::string& mount_point, std::string* what);
  /** No event from now on; those that have come are still recorded, and then the thread ends. */
  void stop();
  /** Whether the thread has ended, or none was started. Waits so long for it. */
  bool ended(std::chrono::milliseconds bound);

  /** Row of the regular file that a file handle of FUSE names, or kNone. */
  static uint32_t row_of_handle(const Toc& toc, int type, const uint8_t* bytes, size_t length);

 private:
  /** Descriptors that are open at a time, one for each event of a read(2). */
  static constexpr size_t kEventsAtOnce = 64;

  void run();
  bool take();
  void opened(int fd);

  const Toc& toc_;
  AccessTrace& trace_;
  UniqueFd events_;
  UniqueFd wake_;
  size_t at_once_ = kEventsAtOnce;
  std::thread thread_;
  std::mutex mutex_;
  std::condition_variable changed_;
  bool running_ = false;
  bool stopping_ = false;
};

}  // namespace firstlight
