// READ, RELEASE, FLUSH and INTERRUPT of files of the template, and what becomes of requests that
// have waited. OPEN stands in open_template.cc, files of the writable layer in ops_write.cc.
#include <errno.h>
#include <fcntl.h>
#include <sys/uio.h>

#include <algorithm>
#include <chrono>

#include "open_template.h"
#include "ops.h"
#include "upper_open.h"

namespace firstlight {

namespace {

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

// The first READ of a file opens it: from memory mostly; else another lane takes over meanwhile.
UniqueFd open_whole(Session& session, uint32_t content, int* error) {
  UniqueFd fd = session.tree().open_content(content, error, true);
  if (fd) return fd;
  session.about_to_block();
  return session.tree().open_content(content, error);
}

// The READ names no handle, since opens are unseen, or one without a file of its own. What has no
// file yet is one that was lost.
int read_by_node(Session& session, const Target& t, uint64_t offset, uint32_t bytes,
                 uint8_t* scratch) {
  Template& tree = session.tree();
  int error = 0;
  if (tree.table().state(t.content) == ContentState::kRoLayer) {
    // A file that this READ takes whole will hardly be asked for again: the kernel has its pages.
    bool whole = bytes == session.toc().content(t.content).size;
    auto fd = tree.shared_content(t.content, !whole, &error, true);
    if (!fd) {
      session.about_to_block();
      fd = tree.shared_content(t.content, !whole, &error, false);
    }
    return fd ? read_file(session, t, fd->get(), offset, bytes, scratch) : -error;
  }
  UniqueFd fd = tree.open_arriving(t.content, &error);
  return fd ? read_file(session, t, fd.get(), offset, bytes, scratch) : -error;
}

int read_handle(Session& session, const Target& t, Handle& handle, uint64_t offset, uint32_t bytes,
                uint8_t* scratch) {
  std::shared_ptr<const UniqueFd> fd;
  {
    std::unique_lock lock(handle.lock, std::try_to_lock);
    if (!lock) {
      session.about_to_block();
      lock.lock();
    }
    ContentTable& table = session.tree().table();
    uint32_t epoch = table.epoch();
    bool whole = table.state(t.content) == ContentState::kRoLayer;
    // Programs have thousands of files open, and where opens become unseen a handle stays for good.
    if (whole && (!handle.fd || session.handles().open_mode() != OpenMode::kSeen)) {
      handle.fd.reset();
      lock.unlock();
      return read_by_node(session, t, offset, bytes, scratch);
    }
    if (!handle.fd || handle.epoch != epoch || (whole && !handle.whole)) {
      int error = 0;
      UniqueFd opened = whole ? open_whole(session, t.content, &error)
                              : session.tree().open_arriving(t.content, &error);
      if (!opened) return -error;
      handle.fd = std::make_shared<const UniqueFd>(std::move(opened));
      handle.epoch = epoch;
      handle.whole = whole;
    }
    fd = handle.fd;
  }
  return read_file(session, t, fd->get(), offset, bytes, scratch);
}

// The kernel reads through a passthrough handle only for fadvise(WILLNEED) and the like.
int read_passthrough(Session& session, const Target& t, uint64_t offset, uint32_t bytes,
                     uint8_t* scratch) {
  int error = 0;
  UniqueFd fd = open_whole(session, t.content, &error);
  if (!fd) return -error;
  return read_file(session, t, fd.get(), offset, bytes, scratch);
}

int read_now(Session& session, const Target& t, uint64_t fh, uint64_t offset, uint32_t bytes,
             uint8_t* scratch) {
  if (fh == kFhEmpty) return read_by_node(session, t, offset, bytes, scratch);
  if (fh == kFhPassthrough) return read_passthrough(session, t, offset, bytes, scratch);
  auto handle = session.handles().find(fh - kFhTable);
  if (handle == nullptr || handle->node != t.node()) return -EBADF;
  return read_handle(session, t, *handle, offset, bytes, scratch);
}

}  // namespace

int op_read(const Context& c) {
  Session& session = c.session;
  session.count().reads.fetch_add(1, std::memory_order_relaxed);
  const auto& in = c.request.as<fuse_read_in>();
  if ((in.fh & kFhUpper) != 0) return read_upper(c);
  const TocRow* file = c.inode();
  if (file == nullptr) return -ESTALE;
  uint32_t content = c.toc().content_of(*file);
  // At or past the end, and empty files: no bytes.
  if (content == kNone || in.offset >= file->size || in.size == 0) return 0;
  uint64_t end = std::min({file->size, in.offset + in.size, in.offset + kMaxReply});
  uint32_t bytes = static_cast<uint32_t>(end - in.offset);
  const fuse_in_header& header = *c.request.header;
  Target t = {header.unique, c.request.lane, c.row(), content, header.pid, 0};
  // In a read-only session that has no more opens it names no handle, and else an empty file's.
  if (in.fh == kFhEmpty && !session.handles().unseen()) return -EBADF;
  auto now = [&, fh = in.fh, offset = in.offset] {
    trace_read(session, t, offset, bytes);
    return read_now(session, t, fh, offset, bytes, c.scratch);
  };
  AccessTrace& trace = session.trace();
  if (trace.on() && trace.first_read(t.row, in.offset, bytes, t.tid)) {
    t.traced = true;
    t.at = Clock::now();
  }
  ContentTable& table = session.tree().table();
  uint32_t first = static_cast<uint32_t>(in.offset / kPartBytes);
  uint32_t last = static_cast<uint32_t>((end - 1) / kPartBytes);
  if (table.readable(content, first, last)) return now();
  if (table.state(content) == ContentState::kFailed) return -table.failure(content);
  auto parked = make_parked(FUSE_READ, t);
  parked->fh = in.fh;
  parked->offset = in.offset;
  parked->bytes = bytes;
  parked->first_part = first;
  parked->last_part = last;
  return park_or(session, std::move(parked), now);
}

int op_release(const Context& c) {
  uint64_t fh = c.request.as<fuse_release_in>().fh;
  if ((fh & kFhUpper) != 0) return release_upper(c);
  if (c.inode() == nullptr) return -ESTALE;
  if (fh == kFhPassthrough) {
    // Not counted any more before the id may become idle: who joins looks in the other order.
    c.session.handles().passthrough_left(c.node(), false);
    c.session.backing().release(c.node());
  } else if (fh >= kFhTable) {
    c.session.handles().remove(fh - kFhTable);
  }
  return 0;
}

int op_flush(const Context& c) {
  // Closes without an open tell nothing: the kernel need not ask again.
  if (c.session.handles().unseen()) return -ENOSYS;
  uint64_t fh = c.request.as<fuse_flush_in>().fh;
  if ((fh & kFhUpper) != 0) return 0;
  if (fh >= kFhTable) c.session.handles().flushed(fh - kFhTable, c.request.header->pid);
  return 0;
}

int op_interrupt(const Context& c) {
  c.session.interrupted(c.request.as<fuse_interrupt_in>().unique);
  return kAnswered;
}

void complete(Session& session, const Parked& p, uint8_t* scratch) {
  if (p.call != 0) return session.resume_upcall(p);
  Target t = {p.unique, p.lane, p.row, p.content, p.tid, p.flags};
  t.uid = p.uid;
  t.gid = p.gid;
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
    result = open ? open_complete_or_divert(session, t)
                  : read_now(session, t, p.fh, p.offset, p.bytes, scratch);
  }
  if (open && result < 0) trace_open(session, t, AccessTrace::kOpen);
  if (result != kAnswered) session.reply(p.lane, p.unique, result, nullptr, 0);
}

}  // namespace firstlight
