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
};

/** What the kernel offered and what is in use. */
struct Features {
  uint32_t major = 0;
  uint32_t minor = 0;
  bool passthrough = false;
  bool direct_io_allow_mmap = false;
  uint32_t threads = 0;

  std::string protocol() const { return std::to_string(major) + "." + std::to_string(minor); }
};

/** Largest READ or READDIRPLUS reply, in bytes. */
inline constexpr uint32_t kMaxReply = 256 * 1024;
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
