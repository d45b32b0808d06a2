// The handshake: what is asked of the kernel, and what comes of it. Pure, no I/O.
#pragma once

#include <cstdint>
#include <string>

#include "fuse_abi.h"

namespace firstlight {

struct Wanted {
  bool passthrough = true;
  /** Only where the image has ACLs: with it the kernel asks for two xattrs of every inode. */
  bool posix_acl = false;
  /** What a writable tree needs beside: big writes, ACLs, setuid bits that we clear. */
  bool writable = false;
};

/** What the kernel offered and what is in use. */
struct Features {
  uint32_t major = 0;
  uint32_t minor = 0;
  bool passthrough = false;
  bool direct_io_allow_mmap = false;
  bool writable = false;
  bool posix_acl = false;
  /** SETXATTR comes with flags of its own (Linux 5.14). */
  bool setxattr_ext = false;
  uint32_t threads = 0;

  std::string protocol() const { return std::to_string(major) + "." + std::to_string(minor); }
};

/** Room for a READ or READDIRPLUS reply, in bytes. */
inline constexpr uint32_t kMaxReply = 1024 * 1024;
/** Largest READ that a read-only session asks the kernel for. */
inline constexpr uint32_t kMaxReadOnlyReply = 256 * 1024;
/** Largest WRITE. */
inline constexpr uint32_t kMaxWrite = 1024 * 1024;
/** Oldest protocol that is spoken here: Linux 5.4, the first with all that the read-only tree leans
 * on. */
inline constexpr uint32_t kMinorLeast = 31;

/**
 * Answers INIT. `in` has at least the 16 bytes of the oldest fuse_init_in, `bytes` of it are there.
 * Returns 0, or -EPROTO where the kernel's protocol is too old.
 */
int negotiate(const fuse_init_in* in, size_t bytes, const Wanted& wanted, abi::InitOut* out,
              Features* features);

}  // namespace firstlight
