// Pure functions of the native core.
#include <errno.h>
#include <stdio.h>
#include <unistd.h>

#include "../negotiate.h"
#include "../procfs.h"
#include "harness.h"

namespace firstlight::test {

namespace {

void check(bool holds, const char* what) {
  if (!holds) die(what);
}

}  // namespace

void units() {
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
  in.flags2 = 1u << 5;  // passthrough, but no shared mappings of direct files
  check(negotiate(&in, sizeof in, {}, &out, &features) == 0 && !features.passthrough, "the pair");
  in.minor = 30;
  check(negotiate(&in, sizeof in, {}, &out, &features) == -EPROTO, "an old kernel");
  in.major = 8, in.minor = 0;
  check(negotiate(&in, sizeof in, {}, &out, &features) == -EPROTO, "another major");
  printf("units: passed\n");
}

}  // namespace firstlight::test
