// The part of `upper` (src/native/upper.ts) that waits for the disk for long: fsync, syncfs, and
// the copy of a whole file. Each is a job of the thread pool, on descriptors of its own, so that
// nobody can close them under it.
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <memory>
#include <vector>

#include "unique_fd.h"
#include "upper_io.h"

namespace firstlight::upper {
namespace {

constexpr size_t kCopyBytes = 256 << 10;
// Of one copy_file_range(2): an interrupted daemon does not wait for gigabytes.
constexpr size_t kRangeBytes = 64 << 20;

class UpperJob : public napi::Job {
 public:
  UniqueFd fd;
};

class Fsync : public UpperJob {
 public:
  bool data_only = false;
  void run() override {
    int result = data_only ? fdatasync(fd.get()) : fsync(fd.get());
    if (result != 0) fail(errno, "fsync");
  }
};

/** For a descriptor that may be O_PATH, which cannot be synced. */
class SyncDirectory : public UpperJob {
 public:
  bool whole = false;
  void run() override {
    UniqueFd directory(openat(fd.get(), ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (!directory) return fail(errno, "open");
    int result = whole ? syncfs(directory.get()) : fsync(directory.get());
    if (result != 0) fail(errno, whole ? "syncfs" : "fsync");
  }
};

/** True where the kernel cannot copy between these two, and reading and writing may. */
bool unsupported(int error) {
  return error == EXDEV || error == EOPNOTSUPP || error == ENOSYS || error == EINVAL;
}

class CopyFile : public UpperJob {
 public:
  UniqueFd to;
  off_t bytes = 0;

  void run() override {
    struct stat from;
    if (fstat(fd.get(), &from) != 0) return fail(errno, "stat");
    // A shorter copy would be taken for the file.
    if (from.st_size < bytes) return fail(EIO, "copy: the source is too short");
    if (bytes > 0 && ioctl(to.get(), FICLONE, fd.get()) != 0 && !copy_ranges()) return;
    if (ftruncate(to.get(), bytes) != 0) fail(errno, "truncate");
  }

 private:
  bool copy_ranges() {
    for (off_t at = 0; at < bytes;) {
      off_t start = lseek(fd.get(), at, SEEK_DATA);
      if (start < 0 && errno == ENXIO) return true;  // a hole up to the end
      // A filesystem without SEEK_DATA says EINVAL: then all of it is data.
      off_t end = start < 0 ? bytes : lseek(fd.get(), start, SEEK_HOLE);
      if (start < 0) start = at;
      if (end < 0) return stopped("seek");
      end = std::min(end, bytes);
      if (start >= bytes) return true;
      if (!copy_range(start, end)) return false;
      at = end;
    }
    return true;
  }

  bool copy_range(off_t at, off_t end) {
    while (at < end && in_kernel_) {
      off_t from = at;
      off_t into = at;
      size_t length = std::min(static_cast<size_t>(end - at), kRangeBytes);
      ssize_t copied = copy_file_range(fd.get(), &from, to.get(), &into, length, 0);
      if (copied > 0) {
        at += copied;
      } else if (copied < 0 && errno == EINTR) {
        continue;
      } else if (copied == 0 || unsupported(errno)) {
        in_kernel_ = false;  // 0 also comes from filesystems that only seem to have it
      } else {
        return stopped("copy");
      }
    }
    return at >= end || copy_by_hand(at, end);
  }

  bool copy_by_hand(off_t at, off_t end) {
    room_.resize(kCopyBytes);
    while (at < end) {
      size_t wanted = std::min(static_cast<size_t>(end - at), room_.size());
      ssize_t got = pread(fd.get(), room_.data(), wanted, at);
      if (got < 0 && errno == EINTR) continue;
      if (got == 0) errno = EIO;
      if (got <= 0) return stopped("read");
      for (ssize_t written = 0; written < got;) {
        ssize_t now = pwrite(to.get(), room_.data() + written, got - written, at + written);
        if (now < 0 && errno == EINTR) continue;
        if (now < 0) return stopped("write");
        written += now;
      }
      at += got;
    }
    return true;
  }

  bool stopped(const char* what) {
    fail(errno, what);
    return false;
  }

  bool in_kernel_ = true;
  std::vector<char> room_;
};

// A descriptor of the job's own; false with errno where there is none.
bool take(int fd, UniqueFd* into) {
  into->reset(fcntl(fd, F_DUPFD_CLOEXEC, 0));
  return static_cast<bool>(*into);
}

napi_value fsync_call(napi_env env, napi_callback_info info) {
  Arguments call(env, info);
  auto job = std::make_unique<Fsync>();
  int fd = call.fd();
  job->data_only = call.flag();
  if (!call.good()) return throw_arguments(env, "fsync(fd, dataOnly)");
  if (!take(fd, &job->fd)) return throw_error(env, errno, "fsync");
  return napi::run_job(env, "upper.fsync", std::move(job));
}

template <bool kWhole>
napi_value sync_call(napi_env env, napi_callback_info info) {
  Arguments call(env, info);
  auto job = std::make_unique<SyncDirectory>();
  int fd = call.fd();
  job->whole = kWhole;
  if (!call.good()) return throw_arguments(env, "fsyncDirectory(dirfd)");
  if (!take(fd, &job->fd)) return throw_error(env, errno, "fsync");
  return napi::run_job(env, "upper.sync", std::move(job));
}

napi_value copy_call(napi_env env, napi_callback_info info) {
  Arguments call(env, info);
  auto job = std::make_unique<CopyFile>();
  int from = call.fd();
  int to = call.fd();
  double bytes = call.number();
  if (!call.good() || bytes < 0) return throw_arguments(env, "copyFile(fromFd, toFd, bytes)");
  job->bytes = static_cast<off_t>(bytes);
  if (!take(from, &job->fd) || !take(to, &job->to)) return throw_error(env, errno, "copyFile");
  return napi::run_job(env, "upper.copyFile", std::move(job));
}

constexpr Entry kCalls[] = {
    {"fsync", fsync_call},
    {"fsyncDirectory", sync_call<false>},
    {"syncfs", sync_call<true>},
    {"copyFile", copy_call},
};

}  // namespace

void export_jobs(napi_env env, napi_value upper) { export_calls(env, upper, kCalls); }

}  // namespace firstlight::upper
