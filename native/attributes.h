// Attributes of files in the shapes that the kernel takes, from those in which they come.
#pragma once

#include <sys/stat.h>

#include <cstddef>
#include <cstdint>

#include "fuse_abi.h"

namespace firstlight {

/** Slots of ATTR in src/native/upcalls.ts. */
inline constexpr size_t kAttrSlots = 17;
inline constexpr size_t kAttrBirthSec = 15;
inline constexpr size_t kAttrBirthNsec = 16;

void fill_from_stat(const struct stat& st, uint64_t ino, fuse_attr* attr);
/** From slots of ATTR. */
void fill_from_slots(const double* slots, fuse_attr* attr);
/** Without a birth time, and with attr_valid 0. */
void fill_statx(const fuse_attr& attr, abi::StatxOut* out);

}  // namespace firstlight
