// READ, WRITE, FSYNC, FALLOCATE, LSEEK and COPY_FILE_RANGE in a writable session: by the descriptor
// of the handle. Most reads and writes never come here, but go through passthrough.
//
// Setuid, setgid and capabilities: with HANDLE_KILLPRIV_V2 the kernel leaves it to us to clear
// them. A WRITE says so; FALLOCATE and COPY_FILE_RANGE do not, and are taken to want it from
// anybody but root.
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <algorithm>

#include "ops.h"
#include "upcall_decode.h"
#include "upper_open.h"

namespace firstlight {

namespace {

constexpr char kCapability[] = "security.capability";
// One COPY_FILE_RANGE copies no more: its caller cannot be killed meanwhile, and goes on by itself.
constexpr uint64_t kCopyMax = uint64_t{64} << 20;

bool can_write(const Handle& handle) {
  return (fcntl(handle.upper->get(), F_GETFL) & O_ACCMODE) != O_RDONLY;
}

// What setattr_should_drop_suidgid of the kernel does, and capabilities. 0 or a negative errno.
int clear_privileges(Session& session, const Handle& handle) {
  int fd = handle.upper->get();
  struct stat st;
  if (fstat(fd, &st) != 0) return -errno;
  mode_t drop = st.st_mode & S_ISUID;
  if ((st.st_mode & S_IXGRP) != 0) drop |= st.st_mode & S_ISGID;
  bool changed = drop != 0;
  if (changed && fchmod(fd, st.st_mode & ~drop & 07777) != 0) return -errno;
  if (fremovexattr(fd, kCapability) == 0) {
    changed = true;
  } else if (errno != ENODATA && errno != EOPNOTSUPP) {
    return -errno;
  }
  // The kernel asks for size and times after a write, and keeps the mode.
  if (changed) session.notifier().invalidate_attributes(handle.node);
  return 0;
}

int reply_written(const Context& c, size_t bytes) {
  fuse_write_out out = {};
  out.size = static_cast<uint32_t>(bytes);
  return c.send(&out, sizeof out);
}

// What is left of a request whose work is done by the pool.
struct Later {
  std::shared_ptr<Session> session;
  uint32_t lane;
  uint64_t unique;
  std::shared_ptr<Handle> handle;

  Later(const Context& c, std::shared_ptr<Handle> of)
      : session(c.session.shared_from_this()),
        lane(c.request.lane),
        unique(c.request.header->unique),
        handle(std::move(of)) {}
  void reply(int error, const void* data = nullptr, size_t bytes = 0) const {
    session->reply(lane, unique, error, data, bytes);
  }
};

int run_later(const Context& c, std::function<void()> job) {
  c.session.pool().run(std::move(job));
  return kAnswered;
}

// A file to be copied from, by its handle: an own descriptor, or one of the template's content.
struct CopySource {
  std::shared_ptr<Handle> handle;
  UniqueFd opened;
  int fd() const { return opened ? opened.get() : handle->upper->get(); }
};

int find_source(const Context& c, uint64_t fh, CopySource* source) {
  source->handle = find_upper(c.session, fh);
  if (source->handle != nullptr) return 0;
  const TocRow* file = c.inode();
  if (file == nullptr) return -EBADF;
  uint32_t content = c.toc().content_of(*file);
  // Empty, or not here yet: the kernel reads and writes it itself, and so waits.
  if (content == kNone || c.session.tree().table().state(content) != ContentState::kRoLayer) {
    return -EOPNOTSUPP;
  }
  int error = 0;
  source->opened = c.session.tree().open_content(content, &error);
  return source->opened ? 0 : -error;
}

int seek_template(const TocRow& file, const fuse_lseek_in& in, uint64_t* at) {
  // Contents have no holes that we know of.
  if (in.offset >= file.size) return -ENXIO;
  *at = in.whence == SEEK_HOLE ? file.size : in.offset;
  return 0;
}

}  // namespace

int read_upper(const Context& c) {
  const auto& in = c.request.as<fuse_read_in>();
  auto handle = find_upper(c.session, in.fh);
  if (handle == nullptr) return -EBADF;
  size_t wanted = std::min(in.size, kMaxReply);
  size_t have = 0;
  int flags = RWF_NOWAIT;
  while (have < wanted) {
    iovec piece = {c.scratch + have, wanted - have};
    ssize_t got =
        preadv2(handle->upper->get(), &piece, 1, static_cast<off_t>(in.offset + have), flags);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0 && flags != 0 && (errno == EAGAIN || errno == EOPNOTSUPP)) {
      c.session.about_to_block();
      flags = 0;
      continue;
    }
    if (got < 0 && have == 0) return -errno;
    if (got <= 0) break;
    have += static_cast<size_t>(got);
  }
  c.session.count().bytes_read.fetch_add(have, std::memory_order_relaxed);
  return c.send(c.scratch, have);
}

int op_write(const Context& c) {
  const auto& in = c.request.as<fuse_write_in>();
  if (in.size > c.request.body_bytes - sizeof in) return -EINVAL;
  auto handle = find_upper(c.session, in.fh);
  if (handle == nullptr) return -EBADF;
  if ((in.write_flags & FUSE_WRITE_KILL_SUIDGID) != 0) {
    if (int error = clear_privileges(c.session, *handle); error != 0) return error;
  }
  // The page cache may be full of what is to be written first.
  c.session.about_to_block();
  const uint8_t* data = c.request.body + sizeof in;
  size_t written = 0;
  while (written < in.size) {
    ssize_t put = pwrite(handle->upper->get(), data + written, in.size - written,
                         static_cast<off_t>(in.offset + written));
    if (put < 0 && errno == EINTR) continue;
    if (put < 0 && written == 0) return -errno;
    if (put <= 0) break;
    written += static_cast<size_t>(put);
  }
  return reply_written(c, written);
}

int op_fsync(const Context& c) {
  const auto& in = c.request.as<fuse_fsync_in>();
  if ((in.fh & kFhUpper) == 0) {
    // Of the template there is nothing that could be lost; but a change of its attributes through
    // this very handle has brought the file into the writable layer.
    return c.session.divergence().thawed(c.node()) ? send_upcall(c, decode_plain) : 0;
  }
  auto handle = find_upper(c.session, in.fh);
  if (handle == nullptr) return -EBADF;
  // Promotion gave the file its name, of which the program knows nothing: fdatasync leaves that to
  // a later crash (ext4). So the first sync of a handle is a whole one.
  bool data_only = (in.fsync_flags & FUSE_FSYNC_FDATASYNC) != 0 && handle->synced;
  return run_later(c, [later = Later(c, std::move(handle)), data_only] {
    int fd = later.handle->upper->get();
    int error = (data_only ? fdatasync(fd) : fsync(fd)) == 0 ? 0 : -errno;
    if (error == 0 && !data_only) later.handle->synced = true;
    later.reply(error);
  });
}

int op_fallocate(const Context& c) {
  const auto& in = c.request.as<fuse_fallocate_in>();
  auto handle = find_upper(c.session, in.fh);
  if (handle == nullptr || !can_write(*handle)) return -EBADF;
  if (c.request.header->uid != 0) {
    if (int error = clear_privileges(c.session, *handle); error != 0) return error;
  }
  return run_later(c, [later = Later(c, std::move(handle)), in] {
    int result;
    do {
      result = fallocate(later.handle->upper->get(), static_cast<int>(in.mode),
                         static_cast<off_t>(in.offset), static_cast<off_t>(in.length));
    } while (result != 0 && errno == EINTR);
    later.reply(result == 0 ? 0 : -errno);
  });
}

int op_lseek(const Context& c) {
  const auto& in = c.request.as<fuse_lseek_in>();
  if (in.whence != SEEK_DATA && in.whence != SEEK_HOLE) return -EINVAL;
  fuse_lseek_out out = {};
  if ((in.fh & kFhUpper) == 0) {
    const TocRow* file = c.inode();
    if (file == nullptr) return -ESTALE;
    if (int error = seek_template(*file, in, &out.offset); error != 0) return error;
  } else {
    auto handle = find_upper(c.session, in.fh);
    if (handle == nullptr) return -EBADF;
    // The descriptor's own offset moves, which nobody uses.
    off_t at =
        lseek(handle->upper->get(), static_cast<off_t>(in.offset), static_cast<int>(in.whence));
    if (at < 0) return -errno;
    out.offset = static_cast<uint64_t>(at);
  }
  return c.send(&out, sizeof out);
}

int op_copy_file_range(const Context& c) {
  const auto& in = c.request.as<fuse_copy_file_range_in>();
  auto target = find_upper(c.session, in.fh_out);
  if (target == nullptr || target->node != in.nodeid_out || !can_write(*target)) return -EBADF;
  auto source = std::make_shared<CopySource>();
  if (int error = find_source(c, in.fh_in, source.get()); error != 0) return error;
  if (c.request.header->uid != 0) {
    if (int error = clear_privileges(c.session, *target); error != 0) return error;
  }
  bool wide = c.request.header->opcode == abi::kOpCopyFileRange64;
  return run_later(c, [later = Later(c, std::move(target)), source, in, wide] {
    off_t from = static_cast<off_t>(in.off_in);
    off_t to = static_cast<off_t>(in.off_out);
    ssize_t copied;
    do {
      copied = copy_file_range(source->fd(), &from, later.handle->upper->get(), &to,
                               std::min(in.len, kCopyMax), 0);
    } while (copied < 0 && errno == EINTR);
    if (copied < 0) {
      // EXDEV, which the kernel has ruled out for its own files: it copies by reading and writing.
      return later.reply(errno == EXDEV ? -EOPNOTSUPP : -errno);
    }
    if (wide) {
      abi::CopyFileRangeOut out = {static_cast<uint64_t>(copied)};
      return later.reply(0, &out, sizeof out);
    }
    fuse_write_out out = {};
    out.size = static_cast<uint32_t>(copied);
    later.reply(0, &out, sizeof out);
  });
}

}  // namespace firstlight
