// OPEN, READ, RELEASE, FLUSH and INTERRUPT: who gets passthrough, who waits, and what READs answer.
//
// How a file is opened:
//   empty                          no handle at all
//   complete (RoLayer)             passthrough; where there is none, a cached handle with a
//   descriptor arriving, one part             the OPEN itself waits, and ends as above arriving,
//   several parts        at once; READs wait for the parts they touch. FOPEN_DIRECT_IO where
//                                  passthrough is to follow (a cached open would bar it)
//   failed                         its errno
#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/uio.h>

#include <algorithm>
#include <chrono>

#include "ops.h"
#include "procfs.h"

namespace firstlight {

namespace {

// File handles: what RELEASE and READ find again.
constexpr uint64_t kFhEmpty = 0;
constexpr uint64_t kFhPassthrough = 1;
constexpr uint64_t kFhTable = 2;  // from here on: 2 + name in the handle table

// The kernel's own mark (__FMODE_EXEC) on an open by execve(2); open(2) takes it from no program.
constexpr uint32_t kOpenForExec = 0x20;

/** What an answer needs of its request, whether it was parked or not. */
struct Target {
  uint64_t unique;
  uint32_t lane;
  uint32_t row;
  uint32_t content;
  uint32_t tid;
  uint32_t flags;  // of an OPEN
  // Of a first access, for the trace.
  bool traced = false;
  Clock::time_point at = {};
  Clock::duration wait = {};
};

void trace_open(Session& session, const Target& t, AccessTrace::Kind kind) {
  if (t.traced) session.trace().record(kind, t.row, 0, 0, t.at, t.wait);
}

void trace_read(Session& session, const Target& t, uint64_t offset, uint32_t bytes) {
  if (!t.traced) return;
  session.trace().record(AccessTrace::kRead, t.row, offset, bytes, t.at, t.wait);
}

int reply_open(Session& session, const Target& t, uint64_t fh, uint32_t flags, int32_t backing) {
  trace_open(session, t, fh >= kFhTable ? AccessTrace::kOpenSeen : AccessTrace::kOpen);
  abi::OpenOut out = {fh, flags, backing};
  return session.reply(t.lane, t.unique, 0, &out, sizeof out);
}

// The id is pinned by now. A reply that does not reach the kernel has no RELEASE to follow.
int open_passthrough(Session& session, const Target& t, int32_t id) {
  // The kernel refuses (EIO) most other flags beside passthrough, FOPEN_KEEP_CACHE among them.
  constexpr uint32_t kFlags = abi::kOpenPassthrough | FOPEN_NOFLUSH;
  if (reply_open(session, t, kFhPassthrough, kFlags, id) != 0) session.backing().release(t.row);
  session.count().passthrough_opens.fetch_add(1, std::memory_order_relaxed);
  session.gave_content();
  return kAnswered;
}

// `fd` is of the whole content, opened at `epoch`, or none yet.
int open_handle(Session& session, const Target& t, bool direct, UniqueFd fd, uint32_t epoch) {
  auto handle = std::make_shared<Handle>();
  handle->row = t.row;
  handle->content = t.content;
  // A thread may be gone by the time its process' mappings are of interest.
  if (direct) handle->process = process_of(t.tid);
  handle->direct = direct;
  handle->exec = (t.flags & kOpenForExec) != 0;
  handle->whole = static_cast<bool>(fd);
  handle->fd = std::move(fd);
  handle->epoch = epoch;
  session.handles().add(handle);
  // FLUSH tells when a descriptor of a direct handle is closed; nothing is learnt from others.
  uint32_t flags = direct ? FOPEN_DIRECT_IO : FOPEN_NOFLUSH;
  if (!session.tree().table().lost()) flags |= FOPEN_KEEP_CACHE;
  if (reply_open(session, t, kFhTable + handle->fh, flags, 0) != 0) {
    session.handles().remove(handle->fh);
  }
  return kAnswered;
}

// Not complete, several parts. The descriptor is opened by the first READ: there may be no file
// yet.
int open_arriving(Session& session, const Target& t) {
  return open_handle(session, t, session.passthrough(), UniqueFd(), 0);
}

int open_complete(Session& session, const Target& t) {
  // While passthrough is open on the inode, the kernel takes nothing else.
  if (session.features().passthrough) {
    if (int id = session.backing().acquire_pinned(t.row); id > 0) {
      return open_passthrough(session, t, id);
    }
  }
  if (session.passthrough()) {
    // Passthrough hides reads.
    if (session.trace().on() && session.trace().wants_reads(t.row)) {
      return open_arriving(session, t);
    }
    if (!session.handles().passthrough_may_join(t.row)) return open_arriving(session, t);
    int id = session.backing().acquire(t.row, t.content);
    if (id > 0) return open_passthrough(session, t, id);
    if (id != -EOPNOTSUPP) return id;
  }
  session.about_to_block();
  uint32_t epoch = session.tree().table().epoch();
  int error = 0;
  UniqueFd fd = session.tree().open_content(t.content, &error);
  if (!fd) return -error;
  return open_handle(session, t, false, std::move(fd), epoch);
}

std::unique_ptr<Parked> make_parked(const Context& c, const Target& t) {
  auto parked = std::make_unique<Parked>();
  parked->unique = t.unique;
  parked->lane = t.lane;
  parked->opcode = c.request.header->opcode;
  parked->row = t.row;
  parked->content = t.content;
  parked->tid = t.tid;
  parked->traced = t.traced;
  parked->flags = t.flags;
  return parked;
}

// Bytes [offset, offset + bytes) of a content, all of them readable by now, as a reply.
int read_file(Session& session, const Target& t, int fd, uint64_t offset, uint32_t bytes,
              uint8_t* scratch) {
  uint32_t have = 0;
  // What the page cache holds is given at once; for the rest another lane takes over meanwhile.
  int flags = RWF_NOWAIT;
  while (have < bytes) {
    iovec piece = {scratch + have, bytes - have};
    ssize_t got = preadv2(fd, &piece, 1, static_cast<off_t>(offset + have), flags);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0 && flags != 0 && (errno == EAGAIN || errno == EOPNOTSUPP)) {
      session.about_to_block();
      flags = 0;
      continue;
    }
    if (got < 0) return -errno;
    // Shorter than it was when it was verified: zeros or a short read would be a lie.
    if (got == 0) return -EIO;
    have += static_cast<uint32_t>(got);
  }
  session.count().bytes_read.fetch_add(bytes, std::memory_order_relaxed);
  session.gave_content();
  session.reply(t.lane, t.unique, 0, scratch, bytes);
  return kAnswered;
}

int read_handle(Session& session, const Target& t, Handle& handle, uint64_t offset, uint32_t bytes,
                uint8_t* scratch) {
  int fd;
  {
    std::lock_guard lock(handle.lock);
    ContentTable& table = session.tree().table();
    uint32_t epoch = table.epoch();
    bool whole = table.state(t.content) == ContentState::kRoLayer;
    if (!handle.fd || handle.epoch != epoch || (whole && !handle.whole)) {
      int error = 0;
      UniqueFd opened = whole ? session.tree().open_content(t.content, &error)
                              : session.tree().open_arriving(t.content, &error);
      if (!opened) return -error;
      // A READ of another thread may still use the old one: keep its number, change what it names.
      if (!handle.fd) {
        handle.fd = std::move(opened);
      } else if (dup3(opened.get(), handle.fd.get(), O_CLOEXEC) < 0) {
        return -errno;
      }
      handle.epoch = epoch;
      handle.whole = whole;
    }
    fd = handle.fd.get();
  }
  return read_file(session, t, fd, offset, bytes, scratch);
}

// The kernel reads through a passthrough handle only for fadvise(WILLNEED) and the like.
int read_passthrough(Session& session, const Target& t, uint64_t offset, uint32_t bytes,
                     uint8_t* scratch) {
  int error = 0;
  UniqueFd fd = session.tree().open_content(t.content, &error);
  if (!fd) return -error;
  return read_file(session, t, fd.get(), offset, bytes, scratch);
}

int read_now(Session& session, const Target& t, uint64_t fh, uint64_t offset, uint32_t bytes,
             uint8_t* scratch) {
  if (fh == kFhPassthrough) return read_passthrough(session, t, offset, bytes, scratch);
  auto handle = session.handles().find(fh - kFhTable);
  if (handle == nullptr || handle->row != t.row) return -EBADF;
  return read_handle(session, t, *handle, offset, bytes, scratch);
}

// What to do with a request that was to be parked; kAnswered where it was.
template <class Now>
int park_or(Session& session, std::unique_ptr<Parked> parked, Now now) {
  switch (session.park(parked)) {
    case ContentTable::Outcome::kParked:
      return kAnswered;
    case ContentTable::Outcome::kReady:
      return now();
    case ContentTable::Outcome::kFailed:
      return -parked->error;
    case ContentTable::Outcome::kClosed:
      return -EIO;
  }
  return -EIO;
}

int open_file(const Context& c, const Target& t) {
  Session& session = c.session;
  if (t.content == kNone) {
    reply_open(session, t, kFhEmpty, FOPEN_KEEP_CACHE | FOPEN_NOFLUSH, 0);
    return kAnswered;
  }
  ContentTable& table = session.tree().table();
  switch (table.state(t.content)) {
    case ContentState::kRoLayer:
      return open_complete(session, t);
    case ContentState::kFailed:
      return -table.failure(t.content);
    case ContentState::kEmpty:
    case ContentState::kPartial:
      break;
  }
  if (c.toc().part_count(t.content) > 1) return open_arriving(session, t);
  auto parked = make_parked(c, t);
  parked->whole = true;
  return park_or(session, std::move(parked), [&] { return open_complete(session, t); });
}

}  // namespace

int op_open(const Context& c) {
  c.session.count().opens.fetch_add(1, std::memory_order_relaxed);
  const TocRow* file = c.inode();
  if (file == nullptr) return -ESTALE;
  if ((file->mode & S_IFMT) == S_IFDIR) return -EISDIR;
  if ((file->mode & S_IFMT) != S_IFREG) return -EINVAL;
  uint32_t flags = c.request.as<fuse_open_in>().flags;
  if ((flags & O_ACCMODE) != O_RDONLY || (flags & O_TRUNC) != 0) return -EROFS;
  const fuse_in_header& header = *c.request.header;
  Target t = {header.unique, c.request.lane, c.row(), c.toc().content_of(*file), header.pid, flags};
  AccessTrace& trace = c.session.trace();
  if (trace.on() && trace.first_open(t.row)) {
    t.traced = true;
    t.at = Clock::now();
  }
  int result = open_file(c, t);
  if (result < 0) trace_open(c.session, t, AccessTrace::kOpen);
  return result;
}

int op_read(const Context& c) {
  Session& session = c.session;
  session.count().reads.fetch_add(1, std::memory_order_relaxed);
  const TocRow* file = c.inode();
  if (file == nullptr) return -ESTALE;
  const auto& in = c.request.as<fuse_read_in>();
  uint32_t content = c.toc().content_of(*file);
  // At or past the end, and empty files: no bytes.
  if (content == kNone || in.offset >= file->size || in.size == 0) return 0;
  uint64_t end = std::min({file->size, in.offset + in.size, in.offset + kMaxReply});
  uint32_t bytes = static_cast<uint32_t>(end - in.offset);
  const fuse_in_header& header = *c.request.header;
  Target t = {header.unique, c.request.lane, c.row(), content, header.pid, 0};
  if (in.fh == kFhEmpty) return -EBADF;
  auto now = [&, fh = in.fh, offset = in.offset] {
    trace_read(session, t, offset, bytes);
    return read_now(session, t, fh, offset, bytes, c.scratch);
  };
  AccessTrace& trace = session.trace();
  if (trace.on() && trace.first_read(t.row, in.offset, bytes)) {
    t.traced = true;
    t.at = Clock::now();
  }
  ContentTable& table = session.tree().table();
  uint32_t first = static_cast<uint32_t>(in.offset / kPartBytes);
  uint32_t last = static_cast<uint32_t>((end - 1) / kPartBytes);
  if (table.readable(content, first, last)) return now();
  if (table.state(content) == ContentState::kFailed) return -table.failure(content);
  auto parked = make_parked(c, t);
  parked->fh = in.fh;
  parked->offset = in.offset;
  parked->bytes = bytes;
  parked->first_part = first;
  parked->last_part = last;
  return park_or(session, std::move(parked), now);
}

int op_release(const Context& c) {
  if (c.inode() == nullptr) return -ESTALE;
  uint64_t fh = c.request.as<fuse_release_in>().fh;
  if (fh == kFhPassthrough) {
    c.session.backing().release(c.row());
    c.session.handles().passthrough_left(c.row());
  } else if (fh >= kFhTable) {
    c.session.handles().remove(fh - kFhTable);
  }
  return 0;
}

int op_flush(const Context& c) {
  uint64_t fh = c.request.as<fuse_flush_in>().fh;
  if (fh >= kFhTable) c.session.handles().flushed(fh - kFhTable, c.request.header->pid);
  return 0;
}

int op_interrupt(const Context& c) {
  c.session.interrupted(c.request.as<fuse_interrupt_in>().unique);
  return kAnswered;
}

void complete(Session& session, const Parked& p, uint8_t* scratch) {
  Target t = {p.unique, p.lane, p.row, p.content, p.tid, p.flags};
  if (p.traced) {
    t.traced = true;
    t.at = p.since;
    t.wait = Clock::now() - p.since;
  }
  bool open = p.opcode == FUSE_OPEN;
  // Also where it failed: it was wanted.
  if (!open) trace_read(session, t, p.offset, p.bytes);
  int result = -p.error;
  if (p.error == 0) {
    result =
        open ? open_complete(session, t) : read_now(session, t, p.fh, p.offset, p.bytes, scratch);
  }
  if (open && result < 0) trace_open(session, t, AccessTrace::kOpen);
  if (result != kAnswered) session.reply(p.lane, p.unique, result, nullptr, 0);
}

}  // namespace firstlight
