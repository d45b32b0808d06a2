// OPEN of files of the template: who gets passthrough, and who waits. What goes to the tree instead
// is decided here too; files of the writable layer stand in upper_open.cc.
//
// How a file is opened:
//   empty                          no handle at all
//   complete (RoLayer)             passthrough; where there is none, a cached handle with a
//                                  descriptor
//   arriving, one part             the OPEN itself waits, and ends as above
//   arriving, several parts        at once; READs wait for the parts they touch. FOPEN_DIRECT_IO
//   where
//                                  passthrough is to follow (a cached open would bar it)
//   failed                         its errno
// A read-only session can do without opens, or be on the way there (OpenMode in handles.h): then
// nothing gets passthrough, and in the end the kernel is told ENOSYS, once, after which it opens
// without us and reads by node id.
// In a writable session an empty file has a handle as one that is arriving has, since it is
// counted: the tree asks how many are open.
#include "open_template.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <sys/stat.h>

#include "procfs.h"
#include "upcall_decode.h"
#include "upper_open.h"

namespace firstlight {

namespace {

// The kernel's own mark (__FMODE_EXEC) on an open by execve(2); open(2) takes it from no program.
constexpr uint32_t kOpenForExec = 0x20;

/** Another open came between a look and its commit. */
constexpr int kRetry = 3;
// So often it is looked again: each time another open was faster.
constexpr int kTries = 200;

int reply_open(Session& session, const Target& t, uint64_t fh, uint32_t flags, int32_t backing) {
  trace_open(session, t, fh >= kFhTable ? AccessTrace::kOpenSeen : AccessTrace::kOpen);
  abi::OpenOut out = {fh, flags, backing};
  return session.reply(t.lane, t.unique, 0, &out, sizeof out);
}

// The id is pinned and the open counted by now. A reply that does not reach the kernel has no
// RELEASE to follow.
int open_passthrough(Session& session, const Target& t, int32_t id) {
  // The kernel refuses (EIO) most other flags beside passthrough, FOPEN_KEEP_CACHE among them.
  constexpr uint32_t kFlags = abi::kOpenPassthrough | FOPEN_NOFLUSH;
  if (reply_open(session, t, kFhPassthrough, kFlags, id) != 0) {
    session.handles().passthrough_left(t.node(), true);
    session.backing().release(t.node());
  }
  session.count().passthrough_opens.fetch_add(1, std::memory_order_relaxed);
  session.gave_content();
  return kAnswered;
}

// Ends an attempt with passthrough: the id is pinned.
int committed_passthrough(Session& session, const Target& t, int32_t id, Commit commit) {
  if (commit == Commit::kDone) return open_passthrough(session, t, id);
  session.backing().release(t.node());
  if (commit == Commit::kUnseen) return -ENOSYS;
  return commit == Commit::kThawed ? kDiverted : kRetry;
}

// Beside passthrough opens that the kernel has, or is about to have: it takes nothing else.
int join_passthrough(Session& session, const Target& t) {
  int id = session.backing().acquire_pinned(t.node());
  if (id <= 0) return kRetry;
  Commit commit = session.handles().join_passthrough(t.node(), t.by_tree);
  return committed_passthrough(session, t, id, commit);
}

// `fd` is of the whole content, opened at `epoch`, or none yet.
int open_handle(Session& session, const Target& t, bool direct, UniqueFd fd, uint32_t epoch) {
  auto handle = std::make_shared<Handle>();
  handle->node = t.node();
  handle->content = t.content;
  // A thread may be gone by the time its process' mappings are of interest.
  if (direct) handle->process = process_of(t.tid);
  handle->direct = direct;
  handle->exec = (t.flags & kOpenForExec) != 0;
  handle->whole = static_cast<bool>(fd);
  if (fd) handle->fd = std::make_shared<const UniqueFd>(std::move(fd));
  handle->epoch = epoch;
  switch (session.handles().commit(handle, 0, t.by_tree)) {
    case Commit::kDone:
      break;
    case Commit::kAgain:
      return kRetry;
    case Commit::kThawed:
      return kDiverted;
    case Commit::kUnseen:
      return -ENOSYS;
  }
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
  for (int tries = 0; tries < kTries; tries++, sched_yield()) {
    int result = open_handle(session, t, session.passthrough(), UniqueFd(), 0);
    // It has become complete meanwhile, and somebody has got passthrough.
    if (result == kRetry) result = join_passthrough(session, t);
    if (result != kRetry) return result;
  }
  return -EIO;
}

// Complete, through the kernel's page cache.
int open_cached(Session& session, const Target& t) {
  // The first READ opens it, as when no open comes: most files that are opened again are in the
  // kernel's cache by then.
  if (session.handles().open_mode() != OpenMode::kSeen) {
    return open_handle(session, t, false, UniqueFd(), 0);
  }
  session.about_to_block();
  uint32_t epoch = session.tree().table().epoch();
  int error = 0;
  UniqueFd fd = session.tree().open_content(t.content, &error);
  if (!fd) return -error;
  return open_handle(session, t, false, std::move(fd), epoch);
}

int try_open_complete(Session& session, const Target& t) {
  if (session.features().passthrough) {
    int result = join_passthrough(session, t);
    if (result != kRetry) return result;
  }
  if (session.passthrough() && session.handles().open_mode() == OpenMode::kSeen) {
    // Passthrough hides reads.
    bool traced =
        session.trace().on() &&
        session.trace().shows_reads(t.row, t.tid, t.traced, t.traced ? t.at : Clock::now());
    if (traced) return open_handle(session, t, true, UniqueFd(), 0);
    // Beside one from before opens were to be seen, for as long as it is open or mapped.
    if (session.handles().cached(t.node())) return open_cached(session, t);
    uint64_t seen = 0;
    if (!session.handles().passthrough_may_join(t.node(), t.by_tree, &seen)) {
      return open_handle(session, t, true, UniqueFd(), 0);
    }
    int id = session.backing().acquire(t.node(), t.content);
    if (id > 0) {
      Commit commit = session.handles().commit_passthrough(t.node(), seen, t.by_tree);
      return committed_passthrough(session, t, id, commit);
    }
    // The last handle on the file in upper/ is just being released: its lane has counted it out,
    // and its backing is let go next.
    if (id == -EBUSY) return kRetry;
    if (id != -EOPNOTSUPP) return id;
  }
  return open_cached(session, t);
}

int open_complete(Session& session, const Target& t) {
  for (int tries = 0; tries < kTries; tries++, sched_yield()) {
    int result = try_open_complete(session, t);
    if (result != kRetry) return result;
  }
  return -EIO;
}

int open_file(Session& session, const Target& t) {
  if (t.content == kNone) {
    if (session.features().writable) return open_arriving(session, t);
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
  if (session.toc().part_count(t.content) > 1) return open_arriving(session, t);
  auto parked = make_parked(FUSE_OPEN, t);
  parked->whole = true;
  return park_or(session, std::move(parked), [&] { return open_complete(session, t); });
}

void begin_trace(Session& session, Target* t) {
  AccessTrace& trace = session.trace();
  if (!trace.on() || !trace.first_open(t->row)) return;
  t->traced = true;
  t->at = Clock::now();
}

// The upcall of an OPEN whose node has diverged while it waited.
int divert(Session& session, const Target& t) {
  trace_open(session, t, AccessTrace::kOpen);
  auto upcall = std::make_shared<Upcall>();
  upcall->opcode = FUSE_OPEN;
  upcall->unique = t.unique;
  upcall->node = t.node();
  upcall->lane = t.lane;
  upcall->tid = t.tid;
  upcall->flags = t.flags;
  double* numbers = upcall->numbers;
  numbers[0] = FUSE_OPEN;
  numbers[1] = static_cast<double>(t.node());
  numbers[2] = t.uid;
  numbers[3] = t.gid;
  numbers[4] = t.tid;
  numbers[Upcall::kArg] = t.flags;
  return session.upcall(std::move(upcall));
}

// An OPEN that is the tree's affair: of a node that has diverged, or to write.
int open_by_tree(const Context& c, const Target& t) {
  bool truncates = (t.flags & O_TRUNC) != 0;
  if (!truncates) {
    int result = open_adopted(c);
    if (result != kDiverted) return result;
  }
  return send_upcall(c, decode_open);
}

}  // namespace

int open_or_divert(Session& session, const Target& t) {
  int result = open_file(session, t);
  if (result == kDiverted) result = divert(session, t);
  if (result < 0) trace_open(session, t, AccessTrace::kOpen);
  return result;
}

int open_complete_or_divert(Session& session, const Target& t) {
  int result = open_complete(session, t);
  return result == kDiverted ? divert(session, t) : result;
}

int op_open(const Context& c) {
  Session& session = c.session;
  session.count().opens.fetch_add(1, std::memory_order_relaxed);
  const TocRow* file = c.inode();
  bool writable = session.features().writable;
  uint32_t flags = c.request.as<fuse_open_in>().flags;
  bool writes = (flags & O_ACCMODE) != O_RDONLY || (flags & O_TRUNC) != 0;
  const fuse_in_header& header = *c.request.header;
  if (file == nullptr) {
    if (!session.divergence().thawed(c.node())) return -ESTALE;
    Target t = {header.unique, c.request.lane, 0, kNone, header.pid, flags};
    return open_by_tree(c, t);
  }
  if ((file->mode & S_IFMT) == S_IFDIR) return -EISDIR;
  if ((file->mode & S_IFMT) != S_IFREG) return -EINVAL;
  if (writes && !writable) return -EROFS;
  if (session.end_opens()) return -ENOSYS;
  Target t = {header.unique, c.request.lane, c.row(), c.toc().content_of(*file), header.pid, flags};
  t.uid = header.uid;
  t.gid = header.gid;
  // The tree's as well: what is wanted to be changed is wanted. Not what is only to be emptied.
  if ((flags & O_TRUNC) == 0) begin_trace(session, &t);
  if (writes || session.divergence().thawed(c.node())) {
    trace_open(session, t, AccessTrace::kOpen);
    return open_by_tree(c, t);
  }
  return open_or_divert(session, t);
}

void open_from_template(Session& session, const Upcall& upcall) {
  uint32_t row = static_cast<uint32_t>(upcall.node - 1);
  int result = -ESTALE;
  if (upcall.node != 0 && upcall.node <= session.toc().rows()) {
    const TocRow& file = session.toc().row(row);
    Target t = {upcall.unique, upcall.lane, row, session.toc().content_of(file),
                upcall.tid,    upcall.flags};
    t.uid = static_cast<uint32_t>(upcall.numbers[2]);
    t.gid = static_cast<uint32_t>(upcall.numbers[3]);
    t.by_tree = true;
    bool regular = (file.mode & S_IFMT) == S_IFREG;
    result = regular ? open_or_divert(session, t) : -EINVAL;
  }
  if (result != kAnswered) session.reply(upcall.lane, upcall.unique, result, nullptr, 0);
}

}  // namespace firstlight
