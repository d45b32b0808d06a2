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
  // A file that is still arriving is opened with FOPEN_DIRECT_IO so that passthrough can follow;
  // without shared mappings on such a file, programs would see ENODEV, so the two go together.
  constexpr uint64_t kPair = abi::kPassthrough | abi::kDirectIoAllowMmap;
  if (wanted.passthrough && (offered & kPair) == kPair) asked |= kPair;
  uint64_t used = asked & offered;
  out->max_readahead = in->max_readahead;
  out->flags = static_cast<uint32_t>(used);
  out->flags2 = static_cast<uint32_t>(used >> 32);
  out->max_background = kMaxBackground;
  out->congestion_threshold = kCongestion;
  out->max_write = 4096;  // nothing is ever written; this bounds the request buffer
  out->time_gran = 1;
  out->max_pages = kMaxReply / 4096;
  features->passthrough = (used & abi::kPassthrough) != 0;
  features->direct_io_allow_mmap = (used & abi::kDirectIoAllowMmap) != 0;
  // One layer above a plain filesystem; overlayfs can still be put on top (two in all).
  out->max_stack_depth = features->passthrough ? 1 : 0;
  return 0;
}

}  // namespace firstlight
