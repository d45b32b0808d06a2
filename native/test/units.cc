// Pure functions of the native core, and what stands by itself.
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <thread>

#include "../adopted.h"
#include "../attributes.h"
#include "../negotiate.h"
#include "../open_watch.h"
#include "../procfs.h"
#include "../root_below.h"
#include "harness.h"
#include "world.h"

namespace firstlight::test {

namespace {

void check(bool holds, const char* what) {
  if (!holds) die(what);
}

// Whoever looks while a file is open for writing is told so, also while others look.
void written_files() {
  char path[] = "/tmp/firstlight-units-XXXXXX";
  UniqueFd writer(mkstemp(path));
  AdoptedFile file;
  file.fd = std::make_shared<const UniqueFd>(open(path, O_RDONLY | O_CLOEXEC));
  unlink(path);
  check(writer && *file.fd, "a temporary file");
  constexpr int kLooks = 50000;
  std::atomic<int> missed{0};
  auto look = [&] {
    for (int i = 0; i < kLooks; i++) missed += file.is_written() ? 0 : 1;
  };
  std::thread one(look), two(look);
  look();
  one.join();
  two.join();
  check(missed == 0, "a writer that was not seen");
  writer.reset();
  check(!file.is_written() && !file.is_written(), "a writer that has gone");
  file.opened_for_writing();
  check(!file.is_written(), "one that came and went");
}

// What a file handle of the kernel names is a regular file of the table, or nothing.
void opened_by_handle() {
  Store store(make_toc());
  auto tree = store.open();
  check(tree != nullptr, "a template");
  const Toc& toc = tree->toc();
  auto row_of = [&](int type, uint32_t high, uint32_t low, size_t length) {
    uint32_t words[4] = {high, low, 0, 0};
    uint8_t bytes[sizeof words];
    memcpy(bytes, words, sizeof words);
    return OpenWatch::row_of_handle(toc, type, bytes, length);
  };
  constexpr int kFuse = 0x81;
  uint32_t files = 0;
  for (uint32_t row = 0; row < toc.rows(); row++) {
    bool regular = (toc.row(row).mode & S_IFMT) == S_IFREG;
    files += regular ? 1 : 0;
    check(row_of(kFuse, 0, row + 1, 12) == (regular ? row : kNone), "a handle of FUSE");
    check(row_of(kFuse, 1, row + 1, 12) == kNone, "a node of another tree");
    check(row_of(1, 0, row + 1, 12) == kNone, "a handle of another kind");
    check(row_of(kFuse, 0, row + 1, 8) == kNone, "a short handle");
    check(row_of(kFuse, 0, row + 1, 16) == kNone, "a long handle");
  }
  check(files > 0, "a file in the table");
  check(row_of(kFuse, 0, 0, 12) == kNone, "no node");
  check(row_of(kFuse, 0, toc.rows() + 1, 12) == kNone, "a node beyond the table");
  check(row_of(kFuse, ~0u, ~0u, 12) == kNone, "the last node");
}

}  // namespace

// Wherever a request names the directory that stands for the root, it names the root afterwards.
void root_below() {
  struct {
    fuse_in_header header;
    uint64_t words[6];
  } request;
  auto taken = [&](uint32_t opcode, size_t bytes) {
    request = {};
    request.header.opcode = opcode;
    request.header.nodeid = kRootBelow;
    for (uint64_t& word : request.words) word = kRootBelow;
    take_root_up(reinterpret_cast<uint8_t*>(&request), bytes);
    check(request.header.nodeid == (bytes < sizeof request.header ? kRootBelow : FUSE_ROOT_ID),
          "the node of a request");
    uint32_t changed = 0;
    for (size_t i = 0; i < std::size(request.words); i++) {
      if (request.words[i] != kRootBelow) changed |= 1u << i;
    }
    return changed;
  };
  size_t all = sizeof request;
  check(taken(FUSE_LOOKUP, all) == 0 && taken(FUSE_GETATTR, all) == 0, "what is no node");
  check(taken(FUSE_RENAME, all) == 1 && taken(FUSE_RENAME2, all) == 1, "the new directory");
  // A count, then pairs of a node and its lookups.
  check(taken(FUSE_BATCH_FORGET, all) == (1u << 1 | 1u << 3 | 1u << 5), "each that is forgotten");
  // Cut off anywhere.
  for (size_t bytes = 0; bytes < all; bytes++) taken(FUSE_BATCH_FORGET, bytes);
  for (size_t bytes = 0; bytes < all; bytes++) taken(FUSE_RENAME2, bytes);
  request.header.nodeid = kRootBelow + 1;
  take_root_up(reinterpret_cast<uint8_t*>(&request), all);
  check(request.header.nodeid == kRootBelow + 1, "another node");
  for (uint64_t node : {uint64_t{FUSE_ROOT_ID}, uint64_t{2}}) {
    fuse_out_header header = {};
    fuse_notify_inval_entry_out entry = {node, 3, 0};
    iovec pieces[3] = {{&header, sizeof header}, {&entry, sizeof entry}, {nullptr, 0}};
    NotifyHead room;
    put_root_down(pieces, 3, room);
    const auto& sent = *static_cast<const fuse_notify_inval_entry_out*>(pieces[1].iov_base);
    check(sent.parent == (node == FUSE_ROOT_ID ? kRootBelow : node), "a notification's node");
    check(sent.namelen == 3 && entry.parent == node, "the rest of it, and the caller's own");
  }
}

void units() {
  written_files();
  root_below();
  opened_by_handle();
  // Signals: SigPnd ShdPnd SigBlk SigIgn SigCgt; SIGTERM is 15 (bit 14), SIGUSR1 10, SIGKILL 9.
  auto status = [](const char* pending, const char* shared, const char* blocked,
                   const char* ignored, const char* caught) {
    return std::string("Name:\tx\nSigQ:\t1/2\nSigPnd:\t") + pending + "\nShdPnd:\t" + shared +
           "\nSigBlk:\t" + blocked + "\nSigIgn:\t" + ignored + "\nSigCgt:\t" + caught + "\n";
  };
  const char* none = "0000000000000000";
  const char* term = "0000000000004000";
  const char* kill = "0000000000000100";
  const char* chld = "0000000000010000";
  const char* stop = "0000000000040000";
  const char* real = "0000000200000000";
  check(!fatal_signal_in(status(none, none, none, none, none)), "no signal");
  check(fatal_signal_in(status(none, term, none, none, none)), "SIGTERM by default");
  check(fatal_signal_in(status(term, none, none, none, none)), "SIGTERM to the thread");
  check(!fatal_signal_in(status(none, term, term, none, none)), "blocked");
  check(!fatal_signal_in(status(none, term, none, term, none)), "ignored");
  check(!fatal_signal_in(status(none, term, none, none, term)), "caught");
  check(fatal_signal_in(status(kill, none, kill, kill, kill)), "SIGKILL always");
  check(!fatal_signal_in(status(none, chld, none, none, none)), "SIGCHLD");
  check(!fatal_signal_in(status(none, stop, none, none, none)), "SIGSTOP");
  check(fatal_signal_in(status(none, real, none, none, none)), "a realtime signal");
  check(fatal_signal_in(""), "nothing to be seen");
  check(fatal_signal_pending(0), "a thread outside");
  check(!fatal_signal_pending(static_cast<uint32_t>(gettid())), "ourselves");

  check(is_shared_mapping("7f00-7f01 r--s 00000000 00:2f 12   /x", 12), "shared");
  check(!is_shared_mapping("7f00-7f01 r--p 00000000 00:2f 12   /x", 12), "private");
  check(!is_shared_mapping("7f00-7f01 r--s 00000000 08:01 12   /x", 12), "a disk");
  check(!is_shared_mapping("7f00-7f01 r--s 00000000 00:2f 13   /x", 12), "another inode");
  check(is_shared_mapping("7f00-7f01 r-xs 00000000 00:2f 4611686018427387916 /x", 12), "xino");
  check(!is_shared_mapping("garbage", 12), "garbage");

  fuse_init_in in = {};
  in.major = 7, in.minor = 45, in.flags = 0xffffffff, in.flags2 = 0xffffffff;
  in.max_readahead = 131072;
  abi::InitOut out;
  Features features;
  check(negotiate(&in, sizeof in, {}, &out, &features) == 0 && features.passthrough, "new kernel");
  check(out.max_stack_depth == 1 && (out.flags & FUSE_POSIX_ACL) == 0, "stack depth");
  check((out.flags & FUSE_WRITEBACK_CACHE) == 0, "writeback bars passthrough");
  check(negotiate(&in, sizeof in, {true, true}, &out, &features) == 0 &&
            (out.flags & FUSE_POSIX_ACL) != 0,
        "ACLs where the image has them");
  check(negotiate(&in, 16, {}, &out, &features) == 0 && !features.passthrough, "a short INIT");
  check(negotiate(&in, sizeof in, {false, false}, &out, &features) == 0 && !features.passthrough &&
            out.max_stack_depth == 0,
        "passthrough switched off");
  Wanted writable;
  writable.writable = true;
  check(negotiate(&in, sizeof in, writable, &out, &features) == 0 && features.writable &&
            features.passthrough && features.setxattr_ext && out.max_write == kMaxWrite &&
            out.max_pages * 4096u == kMaxWrite,
        "a writable session");
  constexpr uint32_t kAsked = FUSE_HANDLE_KILLPRIV_V2 | FUSE_DONT_MASK | FUSE_ATOMIC_O_TRUNC;
  constexpr uint32_t kNever = FUSE_WRITEBACK_CACHE | FUSE_POSIX_LOCKS | FUSE_FLOCK_LOCKS;
  check((out.flags & kAsked) == kAsked && (out.flags & kNever) == 0, "flags to write by");
  writable.passthrough = false;
  check(negotiate(&in, sizeof in, writable, &out, &features) == 0 && !features.passthrough &&
            features.direct_io_allow_mmap && out.max_stack_depth == 0,
        "writable, without passthrough");

  // new_encode_dev: major 0x123, minor 0x45678.
  double slots[kAttrSlots] = {9, 100, 8,      -5, 3, 1e9,          7,
                              1, 2,   020644, 1,  5, 4294967294.0, 0x45612378};
  fuse_attr attr;
  fill_from_slots(slots, &attr);
  check(static_cast<int64_t>(attr.atime) == -5 && attr.atimensec == 3 && attr.gid == 4294967294u,
        "attributes from slots");
  abi::StatxOut statx;
  fill_statx(attr, &statx);
  check(statx.rdev_major == 0x123 && statx.rdev_minor == 0x45678 && statx.atime.sec == -5 &&
            (statx.mask & STATX_BTIME) == 0,
        "attributes for statx");
  struct stat st = {};
  st.st_rdev = makedev(0x123, 0x45678);
  fill_from_stat(st, 7, &attr);
  check(attr.rdev == 0x45612378 && attr.ino == 7, "attributes from stat");

  in.flags2 = 1u << 5;  // passthrough, but no shared mappings of direct files
  check(negotiate(&in, sizeof in, {}, &out, &features) == 0 && !features.passthrough, "the pair");
  in.minor = 30;
  check(negotiate(&in, sizeof in, {}, &out, &features) == -EPROTO, "an old kernel");
  in.major = 8, in.minor = 0;
  check(negotiate(&in, sizeof in, {}, &out, &features) == -EPROTO, "another major");
  printf("units: passed\n");
}

}  // namespace firstlight::test
