// The FUSE kernel ABI: linux/fuse.h, and what Debian 12's copy (protocol 7.38) lacks of 7.45. The
// numbers are the kernel's public interface; names of our own (k...) keep newer headers usable.
#pragma once

#include <linux/fuse.h>
#include <sys/ioctl.h>

#include <cstdint>

namespace firstlight::abi {

// Flags of INIT: the low 32 bits travel in `flags`, the rest in `flags2` (with FUSE_INIT_EXT).
inline constexpr uint64_t kDirectIoAllowMmap = 1ull << 36;
inline constexpr uint64_t kPassthrough = 1ull << 37;
inline constexpr uint64_t kOverIoUring = 1ull << 41;

// Flags of OPEN's reply.
inline constexpr uint32_t kOpenPassthrough = 1u << 7;

// Operations.
inline constexpr uint32_t kOpStatx = 52;
inline constexpr uint32_t kOpCopyFileRange64 = 53;

/** First minor that may be answered with the 64-byte INIT reply. */
inline constexpr uint32_t kMinorExtendedInit = 23;
/** Minor this file describes. */
inline constexpr uint32_t kMinor = 45;

/** Reply to INIT since 7.40: `max_stack_depth` took the first of the unused words. */
struct InitOut {
  uint32_t major;
  uint32_t minor;
  uint32_t max_readahead;
  uint32_t flags;
  uint16_t max_background;
  uint16_t congestion_threshold;
  uint32_t max_write;
  uint32_t time_gran;
  uint16_t max_pages;
  uint16_t map_alignment;
  uint32_t flags2;
  uint32_t max_stack_depth;
  uint16_t request_timeout;
  uint16_t unused[11];
};
static_assert(sizeof(InitOut) == 64);

/** Reply to OPEN since 7.40: the last word names the backing file. */
struct OpenOut {
  uint64_t fh;
  uint32_t open_flags;
  int32_t backing_id;
};
static_assert(sizeof(OpenOut) == sizeof(fuse_open_out));

/** Argument of STATX since 7.39. */
struct StatxIn {
  uint32_t getattr_flags;
  uint32_t reserved;
  uint64_t fh;
  uint32_t flags;
  uint32_t mask;
};

struct StatxTime {
  int64_t sec;
  uint32_t nsec;
  int32_t reserved;
};

/** Reply to STATX: `mask` says which fields hold something (STATX_*). */
struct StatxOut {
  uint64_t attr_valid;
  uint32_t attr_valid_nsec;
  uint32_t flags;
  uint64_t spare[2];
  uint32_t mask;
  uint32_t blksize;
  uint64_t attributes;
  uint32_t nlink;
  uint32_t uid;
  uint32_t gid;
  uint16_t mode;
  uint16_t spare0;
  uint64_t ino;
  uint64_t size;
  uint64_t blocks;
  uint64_t attributes_mask;
  StatxTime atime;
  StatxTime btime;
  StatxTime ctime;
  StatxTime mtime;
  uint32_t rdev_major;
  uint32_t rdev_minor;
  uint32_t dev_major;
  uint32_t dev_minor;
  uint64_t spare2[14];
};
static_assert(sizeof(StatxOut) == 288);

/** Reply to COPY_FILE_RANGE_64. */
struct CopyFileRangeOut {
  uint64_t bytes;
};

/** Argument of kBackingOpen. */
struct BackingMap {
  int32_t fd;
  uint32_t flags;
  uint64_t padding;
};

inline constexpr unsigned long kDevClone = _IOR(229, 0, uint32_t);
inline constexpr unsigned long kBackingOpen = _IOW(229, 1, BackingMap);
inline constexpr unsigned long kBackingClose = _IOW(229, 2, uint32_t);

/** Least buffer for reading requests, in bytes (FUSE_MIN_READ_BUFFER). */
inline constexpr uint32_t kMinReadBuffer = 8192;

}  // namespace firstlight::abi
