// What each flag is asked for stands at the flag.
#include "negotiate.h"

#include <errno.h>

#include <cstddef>

namespace firstlight {

namespace {

constexpr uint64_t kAlways =
    FUSE_ASYNC_READ |          // several READs of one file under way
    FUSE_PARALLEL_DIROPS |     // lookups and listings of one directory beside each other
    FUSE_DO_READDIRPLUS |      // without READDIRPLUS_AUTO: every listing brings the attributes
    FUSE_CACHE_SYMLINKS |      // targets never change
    FUSE_NO_OPENDIR_SUPPORT |  // with ENOSYS to OPENDIR: no round trip, cached listings
    FUSE_MAX_PAGES |           // replies above 128 KiB
    FUSE_INIT_EXT;             // flags above 31 bits

// Without WRITEBACK_CACHE (it excludes passthrough), and without POSIX_LOCKS and FLOCK_LOCKS: with
// one kernel, its own locks are right.
constexpr uint64_t kWritable =
    FUSE_HANDLE_KILLPRIV_V2 |  // setuid bits are cleared here; no GETXATTR before each write
    FUSE_POSIX_ACL |           // and the kernel checks them
    FUSE_DONT_MASK |           // a default ACL takes the umask's place
    FUSE_ATOMIC_O_TRUNC |      // truncating a file of the image needs no content of it
    FUSE_BIG_WRITES |          // above 4 KiB, for kernels that ask
    FUSE_ASYNC_DIO |           // several WRITEs of one O_DIRECT write under way
    FUSE_SETXATTR_EXT;         // says where setting an ACL clears the setgid bit

// Room for readahead beside RELEASEs; the kernel's own defaults are 12 and 9.
constexpr uint16_t kMaxBackground = 256;
constexpr uint16_t kCongestion = 192;

}  // namespace

int negotiate(const fuse_init_in* in, size_t bytes, const Wanted& wanted, abi::InitOut* out,
              Features* features) {
  *out = {};
  *features = {};
  out->major = FUSE_KERNEL_VERSION;
  out->minor = abi::kMinor;
  features->major = in->major;
  features->minor = in->minor;
  if (in->major != FUSE_KERNEL_VERSION || in->minor < kMinorLeast) return -EPROTO;
  uint64_t offered = in->flags;
  if ((offered & FUSE_INIT_EXT) != 0 &&
      bytes >= offsetof(fuse_init_in, flags2) + sizeof(uint32_t)) {
    offered |= static_cast<uint64_t>(in->flags2) << 32;
  }
  uint64_t asked = kAlways;
  if (wanted.posix_acl) asked |= FUSE_POSIX_ACL;
  if (wanted.writable) asked |= kWritable;
  // A file that is still arriving is opened with FOPEN_DIRECT_IO so that passthrough can follow;
  // without shared mappings on such a file, programs would see ENODEV, so the two go together.
  constexpr uint64_t kPair = abi::kPassthrough | abi::kDirectIoAllowMmap;
  if (wanted.passthrough && (offered & kPair) == kPair) asked |= kPair;
  // Written files are opened with FOPEN_DIRECT_IO where there is no passthrough.
  if (wanted.writable) asked |= abi::kDirectIoAllowMmap;
  uint64_t used = asked & offered;
  out->max_readahead = in->max_readahead;
  out->flags = static_cast<uint32_t>(used);
  out->flags2 = static_cast<uint32_t>(used >> 32);
  out->max_background = kMaxBackground;
  out->congestion_threshold = kCongestion;
  // Where nothing is ever written, this only bounds the request buffer.
  out->max_write = wanted.writable ? kMaxWrite : 4096;
  out->time_gran = 1;
  out->max_pages = (wanted.writable ? kMaxWrite : kMaxReadOnlyReply) / 4096;
  features->passthrough = (used & abi::kPassthrough) != 0;
  features->direct_io_allow_mmap = (used & abi::kDirectIoAllowMmap) != 0;
  features->writable = wanted.writable;
  features->posix_acl = (used & FUSE_POSIX_ACL) != 0;
  features->setxattr_ext = (used & FUSE_SETXATTR_EXT) != 0;
  // One layer above a plain filesystem; overlayfs can still be put on top (two in all).
  out->max_stack_depth = features->passthrough ? 1 : 0;
  return 0;
}

}  // namespace firstlight
