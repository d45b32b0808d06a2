// The fanotify group, and the thread that reads it.
#include "open_watch.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/fuse.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/fanotify.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <vector>

#include "root_below.h"

namespace firstlight {

namespace {

// FILEID_INO64_GEN (linux/exportfs.h): what FUSE gives. Node id, high half first, and generation.
constexpr int kHandleType = 0x81;
constexpr size_t kHandleBytes = 12;
// Larger than any handle of FUSE; a filesystem that wants more is another one.
constexpr size_t kHandleRoom = 64;
// An event for which there is no descriptor comes with the error in its place (linux/fanotify.h,
// FAN_REPORT_FD_ERROR, since Linux 6.13). Without, it goes unsaid where others came before it in
// the same read(2).
constexpr unsigned kReportFdError = 0x2000;

uint64_t node_of_handle(int type, const uint8_t* bytes, size_t length) {
  if (type != kHandleType || length != kHandleBytes) return 0;
  uint32_t halves[2];
  memcpy(halves, bytes, sizeof halves);
  return uint64_t{halves[0]} << 32 | halves[1];
}

// The kernel speaks of the node as it is on the wire.
bool is_root(uint64_t node) { return node == FUSE_ROOT_ID || node == kRootBelow; }

struct Handle {
  int type = 0;
  size_t length = 0;
  uint8_t bytes[kHandleRoom];
};

// From memory: the kernel asks the session nothing for it. 0 or a positive errno.
int handle_of(int fd, Handle* out) {
  alignas(file_handle) uint8_t room[sizeof(file_handle) + kHandleRoom];
  auto* handle = reinterpret_cast<file_handle*>(room);
  handle->handle_bytes = kHandleRoom;
  int mount_id;
  if (name_to_handle_at(fd, "", handle, &mount_id, AT_EMPTY_PATH) != 0) return errno;
  out->type = handle->handle_type;
  out->length = handle->handle_bytes;
  memcpy(out->bytes, handle->f_handle, out->length);
  return 0;
}

// Paths of some regular files, from the root directory on: those that come first, and are not deep.
std::vector<std::string> some_files(const Toc& toc) {
  constexpr size_t kFiles = 16;
  std::vector<std::string> paths;
  for (uint32_t row = 1; row < toc.rows() && paths.size() < kFiles; row++) {
    if ((toc.row(row).mode & S_IFMT) != S_IFREG) continue;
    std::string path(toc.name(toc.row(row)));
    for (uint32_t up = toc.row(row).parent; up != 0 && path.size() < PATH_MAX;) {
      path = std::string(toc.name(toc.row(up))) + "/" + path;
      up = toc.row(up).parent;
    }
    paths.push_back(std::move(path));
  }
  return paths;
}

// Has another process send the first FLUSH, after which the kernel sends none (the answer is
// ENOSYS). Nothing ends the wait for its answer but the answer, or the end of the session: a thread
// of this process that is killed meanwhile would keep the session's own device open, and wait for
// ever. Where this fails, the watch begins all the same, at that risk.
void let_another_flush(int root, const Toc& toc) {
  std::vector<std::string> paths = some_files(toc);
  pid_t child = fork();
  if (child < 0) return;
  if (child == 0) {
    // System calls alone: the locks of other threads are held for good here. Of the device this
    // process must have no copy while it waits.
    if (dup2(root, 0) < 0 || syscall(SYS_close_range, 1u, ~0u, 0u) != 0) _exit(1);
    for (const std::string& path : paths) {
      int fd = openat(0, path.c_str(), O_RDONLY | O_NOFOLLOW | O_NONBLOCK);
      if (fd >= 0) _exit(close(fd));
    }
    _exit(1);
  }
  while (waitpid(child, nullptr, 0) < 0 && errno == EINTR) {
  }
}

}  // namespace

OpenWatch::~OpenWatch() {
  stop();
  if (thread_.joinable()) thread_.join();
}

int OpenWatch::start(const std::string& mount_point, std::string* what) {
  auto fail = [&](const char* step) {
    int error = errno;
    *what = step + (" " + mount_point);
    return error;
  };
  UniqueFd root(open(mount_point.c_str(), O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
  if (!root) return fail("open");
  Handle handle;
  int error = handle_of(root.get(), &handle);
  // Unmounted: this is the directory below.
  if (error != 0 || !is_root(node_of_handle(handle.type, handle.bytes, handle.length))) {
    errno = ENODEV;
    return fail("look at");
  }
  constexpr unsigned kGroup = FAN_CLASS_NOTIF | FAN_CLOEXEC | FAN_NONBLOCK;
  constexpr unsigned kEventFlags = O_RDONLY | O_LARGEFILE | O_CLOEXEC | O_NOATIME;
  events_ = UniqueFd(fanotify_init(kGroup | kReportFdError, kEventFlags));
  if (!events_ && errno == EINVAL) {
    at_once_ = 1;
    events_ = UniqueFd(fanotify_init(kGroup, kEventFlags));
  }
  if (!events_) return fail("fanotify_init for");
  wake_ = UniqueFd(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!wake_) return fail("eventfd for");
  let_another_flush(root.get(), toc_);
  // An empty path would need AT_EMPTY_PATH, which this call does not know.
  if (fanotify_mark(events_.get(), FAN_MARK_ADD | FAN_MARK_FILESYSTEM, FAN_OPEN, root.get(), ".") !=
      0) {
    return fail("fanotify_mark");
  }
  std::lock_guard lock(mutex_);
  if (stopping_) {
    errno = ENODEV;
    return fail("watch");
  }
  running_ = true;
  thread_ = std::thread([this] { run(); });
  return 0;
}

void OpenWatch::stop() {
  std::lock_guard lock(mutex_);
  if (stopping_) return;
  stopping_ = true;
  uint64_t one = 1;
  // It can only fail where it was never made, and nobody waits for it.
  if (running_ && write(wake_.get(), &one, sizeof one) < 0) return;
}

bool OpenWatch::ended(std::chrono::milliseconds bound) {
  std::unique_lock lock(mutex_);
  return changed_.wait_for(lock, bound, [&] { return !running_; });
}

void OpenWatch::run() {
  pthread_setname_np(pthread_self(), "fl-opens");
  sigset_t all;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, nullptr);
  pollfd polls[2] = {{events_.get(), POLLIN, 0}, {wake_.get(), POLLIN, 0}};
  for (bool last = false; !last;) {
    if (poll(polls, 2, -1) < 0) continue;  // EINTR: every signal is blocked, but for a debugger's
    last = polls[1].revents != 0;
    // Without the mark the queue has an end.
    if (last) fanotify_mark(events_.get(), FAN_MARK_FLUSH | FAN_MARK_FILESYSTEM, 0, AT_FDCWD, "/");
    while (take() && last) {
    }
  }
  std::lock_guard lock(mutex_);
  running_ = false;
  changed_.notify_all();
}

// True where there may be more.
bool OpenWatch::take() {
  fanotify_event_metadata events[kEventsAtOnce];
  ssize_t got = read(events_.get(), events, at_once_ * sizeof *events);
  if (got < 0) {
    if (errno == EAGAIN) return false;
    // An event for which there was no descriptor (EMFILE) is gone with the error.
    if (errno != EINTR) trace_.add_lost(1);
    return true;
  }
  // FAN_EVENT_NEXT takes what it passes over from the length that it is given.
  ssize_t left = got;
  for (auto* event = events; FAN_EVENT_OK(event, left); event = FAN_EVENT_NEXT(event, left)) {
    if (event->vers != FANOTIFY_METADATA_VERSION || event->fd < 0) {
      // FAN_Q_OVERFLOW: the kernel has dropped events, and does not say how many.
      trace_.add_lost(1);
      continue;
    }
    UniqueFd file(event->fd);
    opened(file.get());
  }
  return got > 0;
}

void OpenWatch::opened(int fd) {
  Handle handle;
  if (handle_of(fd, &handle) != 0) return trace_.add_lost(1);
  uint32_t row = row_of_handle(toc_, handle.type, handle.bytes, handle.length);
  if (row == kNone || !trace_.first_open(row)) return;
  trace_.record(AccessTrace::kOpenSeen, row, 0, 0, Clock::now(), {});
}

uint32_t OpenWatch::row_of_handle(const Toc& toc, int type, const uint8_t* bytes, size_t length) {
  uint64_t node = node_of_handle(type, bytes, length);
  if (node == 0 || node > toc.rows()) return kNone;
  uint32_t row = static_cast<uint32_t>(node - 1);
  return (toc.row(row).mode & S_IFMT) == S_IFREG ? row : kNone;
}

}  // namespace firstlight
