// How a file of the writable layer is opened:
//   passthrough            FOPEN_PASSTHROUGH: reads, writes and mappings are the file's own
//   direct                 the same with FOPEN_DIRECT_IO, which takes reads and writes back to us
//   (a
//                          setuid bit is to be cleared) while mappings stay the file's own
//   passthrough not to be had, or barred by a mapping of a handle without it
//                          FOPEN_DIRECT_IO alone; where the kernel cannot map such files, neither
// A handle keeps its descriptor in every case, for fsync and the like.
#include "upper_open.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

namespace firstlight {

namespace {

constexpr int kTries = 200;

int send_open(Session& session, const UpperOpen& open, const abi::OpenOut& out) {
  uint8_t reply[sizeof(fuse_entry_out) + sizeof out];
  size_t head = 0;
  if (open.entry != nullptr) {
    memcpy(reply, open.entry, sizeof *open.entry);
    head = sizeof *open.entry;
  }
  memcpy(reply + head, &out, sizeof out);
  return session.reply(open.lane, open.unique, 0, reply, head + sizeof out);
}

// The handle is counted.
int send_handle(Session& session, const UpperOpen& open, const Handle& handle, int32_t backing) {
  uint32_t flags = FOPEN_NOFLUSH;
  if (handle.backed) flags |= abi::kOpenPassthrough;
  if (handle.direct || (handle.backed && open.direct)) flags |= FOPEN_DIRECT_IO;
  int result = send_open(session, open, {kFhUpper | handle.fh, flags, backing});
  if (handle.backed) session.count().passthrough_opens.fetch_add(1, std::memory_order_relaxed);
  if (result == 0) return 0;
  session.handles().remove(handle.fh);
  if (handle.backed) session.backing().release(open.node);
  return result;
}

/** Where an open is counted: at once for the tree; for an adopted node only while it is that. */
using CommitStep = Commit (*)(Session&, const UpperOpen&, const std::shared_ptr<Handle>&, uint64_t);

Commit commit_by_tree(Session& session, const UpperOpen&, const std::shared_ptr<Handle>& handle,
                      uint64_t seen) {
  return session.handles().commit(handle, seen, true);
}

Commit commit_adopted(Session& session, const UpperOpen& open,
                      const std::shared_ptr<Handle>& handle, uint64_t seen) {
  Commit result = Commit::kThawed;
  session.adopted().with(open.node, [&](const AdoptedFile& file) {
    if (&file == open.adopted.get()) result = session.handles().commit(handle, seen, true);
  });
  return result;
}

void note_change_time(Handle& handle) {
  int flags = fcntl(handle.upper->get(), F_GETFL);
  struct stat st;
  handle.writable =
      flags >= 0 && (flags & O_ACCMODE) != O_RDONLY && fstat(handle.upper->get(), &st) == 0;
  if (handle.writable) handle.changed = st.st_ctim;
}

// Through this handle an adopted file can be written, from the reply on: the handle is counted, so
// that who looks at the attributes from now on finds it (AdoptedFile::is_written). Where it can be
// mapped to be written, what the kernel keeps of them may be wrong at any time; what is on its way
// to it, it will not keep: the notification makes it older than what the kernel has
// (fuse_change_attributes).
void note_writer(Session& session, const UpperOpen& open, const Handle& handle) {
  int flags = fcntl(handle.upper->get(), F_GETFL);
  if (!handle.writable || flags < 0) return;
  bool adopted = session.adopted().with(handle.node,
                                        [](const AdoptedFile& file) { file.opened_for_writing(); });
  // Of a file that is just being made it has none.
  bool kept = open.entry == nullptr;
  if (adopted && kept && (flags & O_ACCMODE) == O_RDWR) {
    session.notifier().invalidate_attributes(handle.node);
  }
}

// The kernel has heard of what was written, and of nothing that came by a mapping.
void tell_changes(Session& session, const Handle& handle) {
  struct stat st;
  if (!handle.writable || fstat(handle.upper->get(), &st) != 0) return;
  bool same =
      st.st_ctim.tv_sec == handle.changed.tv_sec && st.st_ctim.tv_nsec == handle.changed.tv_nsec;
  // Without a name nobody asks.
  if (!same && st.st_nlink > 0) session.notifier().invalidate_attributes(handle.node);
}

// 0, -EAGAIN where another open came between, kDiverted, or a negative errno.
int try_open(Session& session, const UpperOpen& open, bool adopted, CommitStep commit) {
  auto handle = std::make_shared<Handle>();
  handle->node = open.node;
  handle->content = kNone;
  handle->upper = open.fd;
  handle->ino = open.ino;
  handle->tag = open.tag;
  note_change_time(*handle);
  uint64_t seen = 0;
  int id = 0;
  if (session.passthrough_upper() &&
      session.handles().passthrough_may_join(open.node, !adopted, &seen)) {
    id = session.backing().acquire_file(open.node, open.fd->get(), adopted);
    // The last handle on the other file is just being released: its lane has counted it out, and
    // its backing is let go next. (Or the tree opens a node with two files at once: the tries end.)
    if (id == -EBUSY) return -EAGAIN;
  }
  handle->backed = id > 0;
  handle->direct = id <= 0 && session.features().direct_io_allow_mmap;
  switch (commit(session, open, handle, seen)) {
    case Commit::kDone:
      note_writer(session, open, *handle);
      return send_handle(session, open, *handle, id > 0 ? id : 0);
    case Commit::kAgain:
      if (id > 0) session.backing().release(open.node);
      // Without passthrough there is nothing to join those who have it.
      return id < 0 || !session.passthrough_upper() ? -EIO : -EAGAIN;
    case Commit::kUnseen:  // of read-only sessions alone
    case Commit::kThawed:
      if (id > 0) session.backing().release(open.node);
      // The tree took the file back while this id was made, and has not found it.
      if (id > 0 && adopted) session.backing().forget(open.node);
      return kDiverted;
  }
  return -EIO;
}

int try_repeatedly(Session& session, const UpperOpen& open, bool adopted, CommitStep commit) {
  for (int tries = 0; tries < kTries; tries++, sched_yield()) {
    int result = try_open(session, open, adopted, commit);
    if (result != -EAGAIN) return result;
  }
  return -EIO;
}

}  // namespace

UniqueFd reopen(int fd, int access) {
  char path[32];
  snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
  return UniqueFd(open(path, access | O_CLOEXEC));
}

int open_upper(Session& session, const UpperOpen& open) {
  return try_repeatedly(session, open, false, commit_by_tree);
}

int open_adopted(const Context& c) {
  Session& session = c.session;
  auto file = session.adopted().find(c.node());
  if (file == nullptr || file->links != 0) return kDiverted;
  uint32_t flags = c.request.as<fuse_open_in>().flags;
  uint32_t access = flags & O_ACCMODE;
  UpperOpen open;
  open.unique = c.request.header->unique;
  open.lane = c.request.lane;
  open.node = c.node();
  open.fd = file->fd;
  open.adopted = file;
  open.ino = file->ino;
  if (access != O_RDONLY) {
    // Writes that are to last may need the name to last first (makeNameLast of the tree).
    if (!file->writable || (flags & O_DSYNC) != 0) return kDiverted;
    // The inode is in memory, so this waits for no disk.
    UniqueFd own = reopen(file->fd->get(), static_cast<int>(access));
    // Whatever it is, the tree has the words for it.
    if (!own) return kDiverted;
    open.fd = std::make_shared<const UniqueFd>(std::move(own));
  }
  int result = try_repeatedly(session, open, true, commit_adopted);
  if (result == kDiverted) return kDiverted;
  // A reply that did not arrive needs no other.
  return result == -ENOENT || result == -ENODEV ? kAnswered : result == 0 ? kAnswered : result;
}

std::shared_ptr<Handle> find_upper(Session& session, uint64_t fh) {
  if ((fh & kFhUpper) == 0) return nullptr;
  auto handle = session.handles().find(fh & ~kFhUpper);
  return handle != nullptr && handle->upper != nullptr ? handle : nullptr;
}

int release_upper(const Context& c) {
  Session& session = c.session;
  uint64_t fh = c.request.as<fuse_release_in>().fh;
  if (find_upper(session, fh) == nullptr) return -EBADF;
  auto handle = session.handles().remove(fh & ~kFhUpper);
  if (handle == nullptr) return -EBADF;
  tell_changes(session, *handle);
  if (handle->backed) session.backing().release(handle->node);
  if (handle->tag != 0) {
    auto message = std::make_shared<Upcall>();
    message->numbers[0] = FUSE_RELEASE;
    message->numbers[1] = static_cast<double>(handle->node);
    message->numbers[Upcall::kArg] = handle->tag;
    session.upcall(std::move(message));
  }
  // The last descriptor of a file without a name: its blocks are freed now.
  session.may_block();
  return 0;
}

}  // namespace firstlight
