// The conversions. Negative seconds stay negative in the kernel's time64.
#include "attributes.h"

#include <sys/sysmacros.h>

namespace firstlight {

namespace {

// As new_encode_dev of the kernel.
uint32_t encode_device(dev_t device) {
  uint32_t major_part = major(device);
  uint32_t minor_part = minor(device);
  return (minor_part & 0xff) | (major_part << 8) | ((minor_part & ~0xffu) << 12);
}

uint64_t seconds(double value) { return static_cast<uint64_t>(static_cast<int64_t>(value)); }

}  // namespace

void fill_from_stat(const struct stat& st, uint64_t ino, fuse_attr* attr) {
  *attr = {};
  attr->ino = ino;
  attr->size = static_cast<uint64_t>(st.st_size);
  attr->blocks = static_cast<uint64_t>(st.st_blocks);
  attr->atime = static_cast<uint64_t>(st.st_atim.tv_sec);
  attr->mtime = static_cast<uint64_t>(st.st_mtim.tv_sec);
  attr->ctime = static_cast<uint64_t>(st.st_ctim.tv_sec);
  attr->atimensec = static_cast<uint32_t>(st.st_atim.tv_nsec);
  attr->mtimensec = static_cast<uint32_t>(st.st_mtim.tv_nsec);
  attr->ctimensec = static_cast<uint32_t>(st.st_ctim.tv_nsec);
  attr->mode = st.st_mode;
  attr->nlink = static_cast<uint32_t>(st.st_nlink);
  attr->uid = st.st_uid;
  attr->gid = st.st_gid;
  attr->rdev = encode_device(st.st_rdev);
  attr->blksize = static_cast<uint32_t>(st.st_blksize);
}

void fill_from_slots(const double* slots, fuse_attr* attr) {
  *attr = {};
  attr->ino = static_cast<uint64_t>(slots[0]);
  attr->size = static_cast<uint64_t>(slots[1]);
  attr->blocks = static_cast<uint64_t>(slots[2]);
  attr->atime = seconds(slots[3]);
  attr->atimensec = static_cast<uint32_t>(slots[4]);
  attr->mtime = seconds(slots[5]);
  attr->mtimensec = static_cast<uint32_t>(slots[6]);
  attr->ctime = seconds(slots[7]);
  attr->ctimensec = static_cast<uint32_t>(slots[8]);
  attr->mode = static_cast<uint32_t>(slots[9]);
  attr->nlink = static_cast<uint32_t>(slots[10]);
  attr->uid = static_cast<uint32_t>(slots[11]);
  attr->gid = static_cast<uint32_t>(slots[12]);
  attr->rdev = static_cast<uint32_t>(slots[13]);
  attr->blksize = static_cast<uint32_t>(slots[14]);
}

void fill_statx(const fuse_attr& attr, abi::StatxOut* out) {
  *out = {};
  out->mask = STATX_BASIC_STATS;
  out->blksize = attr.blksize;
  out->nlink = attr.nlink;
  out->uid = attr.uid;
  out->gid = attr.gid;
  out->mode = static_cast<uint16_t>(attr.mode);
  out->ino = attr.ino;
  out->size = attr.size;
  out->blocks = attr.blocks;
  out->atime = {static_cast<int64_t>(attr.atime), attr.atimensec, 0};
  out->mtime = {static_cast<int64_t>(attr.mtime), attr.mtimensec, 0};
  out->ctime = {static_cast<int64_t>(attr.ctime), attr.ctimensec, 0};
  out->rdev_major = attr.rdev >> 8 & 0xfff;
  out->rdev_minor = (attr.rdev & 0xff) | (attr.rdev >> 12 & 0xfff00);
}

}  // namespace firstlight
