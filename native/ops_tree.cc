// LOOKUP, GETATTR, READLINK, listings and STATFS: all from the TOC. What has diverged and needs no
// tree stands in ops_diverged.cc.
//
// nodeid and st_ino are the row of the inode + 1 (the root is FUSE_ROOT_ID), the generation is 0:
// they mean the same in every session of the image.
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#include <algorithm>

#include "attributes.h"
#include "ops.h"
#include "upcall_decode.h"

namespace firstlight {

namespace {

constexpr uint32_t kBlock = 4096;

// Cookies say where a listing goes on: 1 after ".", 2 after "..", row + 2 after a child.
constexpr uint64_t kAfterDot = 1;
constexpr uint64_t kAfterDotDot = 2;

uint32_t inode_of(const Toc& toc, uint32_t row) { return toc.row(row).inode; }

void fill_entry(const Toc& toc, uint32_t row, fuse_entry_out* entry) {
  *entry = {};
  entry->nodeid = uint64_t{inode_of(toc, row)} + 1;
  entry->entry_valid = kForever;
  entry->attr_valid = kForever;
  fill_attributes(toc, row, &entry->attr);
}

// Builds a listing in `buffer`, of at most `limit` bytes.
class Listing {
 public:
  Listing(const Context& c, size_t limit, bool plus)
      : toc_(c.toc()),
        divergence_(c.session.divergence()),
        buffer_(c.scratch),
        limit_(limit),
        plus_(plus) {}

  /** False where it does not fit any more. `dot`: "." or "..", which the kernel does not cache. */
  bool add(std::string_view name, uint32_t row, uint64_t cookie, bool dot) {
    size_t head = (plus_ ? sizeof(fuse_entry_out) : 0) + offsetof(fuse_dirent, name);
    size_t size = (head + name.size() + 7) & ~size_t{7};
    if (size > limit_ - used_) return false;
    uint8_t* at = buffer_ + used_;
    memset(at, 0, size);
    if (plus_) {
      auto* entry = reinterpret_cast<fuse_entry_out*>(at);
      fill_entry(toc_, row, entry);
      // What has diverged is not for the template to say: the kernel looks it up when it is wanted.
      if (dot || divergence_.thawed(entry->nodeid)) entry->nodeid = 0;
      at += sizeof(fuse_entry_out);
    }
    auto* dirent = reinterpret_cast<fuse_dirent*>(at);
    dirent->ino = uint64_t{inode_of(toc_, row)} + 1;
    dirent->off = cookie;
    dirent->namelen = static_cast<uint32_t>(name.size());
    dirent->type = (toc_.row(row).mode & S_IFMT) >> 12;
    memcpy(at + offsetof(fuse_dirent, name), name.data(), name.size());
    used_ += size;
    return true;
  }
  size_t used() const { return used_; }

 private:
  const Toc& toc_;
  const Divergence& divergence_;
  uint8_t* buffer_;
  size_t limit_;
  size_t used_ = 0;
  bool plus_;
};

int list(const Context& c, bool plus) {
  const TocRow* directory = c.inode();
  if (directory == nullptr) return -ESTALE;
  if ((directory->mode & S_IFMT) != S_IFDIR) return -ENOTDIR;
  const auto& in = c.request.as<fuse_read_in>();
  Listing listing(c, std::min<size_t>(in.size, kMaxReply), plus);
  uint64_t offset = in.offset;
  bool room = true;
  if (offset < kAfterDot) room = listing.add(".", c.row(), kAfterDot, true);
  if (room && offset < kAfterDotDot) {
    room = listing.add("..", directory->parent, kAfterDotDot, true);
  }
  uint64_t end = uint64_t{directory->a} + directory->b;
  uint64_t row = offset <= kAfterDotDot ? directory->a : offset - kAfterDotDot + 1;
  if (row < directory->a) return -EINVAL;  // a cookie of another directory
  for (; room && row < end; row++) {
    uint32_t child = static_cast<uint32_t>(row);
    room = listing.add(c.toc().name(c.toc().row(child)), child, row + kAfterDotDot, false);
  }
  // The kernel takes an empty reply for the end of the directory.
  if (!room && listing.used() == 0) return -EINVAL;
  return c.send(c.scratch, listing.used());
}

}  // namespace

void fill_attributes(const Toc& toc, uint32_t row, fuse_attr* attr) {
  const TocRow& r = toc.row(row);
  *attr = {};
  attr->ino = uint64_t{r.inode} + 1;
  attr->size = r.size;
  // Symlinks are kept in the inode, as ext4 keeps short ones; files as if every block were there.
  uint32_t type = r.mode & S_IFMT;
  if (type == S_IFREG || type == S_IFDIR)
    attr->blocks = (r.size + kBlock - 1) / kBlock * (kBlock / 512);
  // One time is known, that of the last change; negative seconds stay negative in the kernel's
  // time64.
  attr->atime = attr->mtime = attr->ctime = static_cast<uint64_t>(r.mtime_sec);
  attr->atimensec = attr->mtimensec = attr->ctimensec = r.mtime_nsec;
  attr->mode = r.mode;
  attr->nlink = r.nlink;
  attr->uid = r.uid;
  attr->gid = r.gid;
  if (type == S_IFCHR || type == S_IFBLK) attr->rdev = r.a;
  attr->blksize = kBlock;
}

int op_lookup(const Context& c) {
  c.session.count().lookups.fetch_add(1, std::memory_order_relaxed);
  const TocRow* directory = c.inode();
  if (directory == nullptr) return -ESTALE;
  if ((directory->mode & S_IFMT) != S_IFDIR) return -ENOTDIR;
  auto name = c.request.name();
  if (!name || name->empty()) return -EINVAL;
  // Newer kernels leave the check to us (they take names of up to PATH_MAX).
  if (name->size() > 255) return -ENAMETOOLONG;
  auto child = c.toc().find(*directory, *name);
  fuse_entry_out entry;
  if (child) {
    fill_entry(c.toc(), *child, &entry);
    if (c.session.divergence().thawed(entry.nodeid)) return kDiverted;
  } else {
    // A negative entry: the kernel answers for the name from now on.
    entry = {};
    entry.entry_valid = kForever;
  }
  return c.send(&entry, sizeof entry);
}

int op_getattr(const Context& c) {
  if (c.inode() == nullptr) return -ESTALE;
  fuse_attr_out out = {};
  out.attr_valid = kForever;
  fill_attributes(c.toc(), c.row(), &out.attr);
  return c.send(&out, sizeof out);
}

// What GETATTR says, and no birth time: an image has none. ENOSYS, after which the kernel never
// asks again, would leave those of new files out too.
int op_statx(const Context& c) {
  if (!c.session.features().writable) return -ENOSYS;
  if (c.inode() == nullptr) return -ESTALE;
  fuse_attr attr;
  fill_attributes(c.toc(), c.row(), &attr);
  abi::StatxOut out;
  fill_statx(attr, &out);
  out.attr_valid = kForever;
  return c.send(&out, sizeof out);
}

int op_readlink(const Context& c) {
  const TocRow* link = c.inode();
  if (link == nullptr) return -ESTALE;
  if ((link->mode & S_IFMT) != S_IFLNK) return -EINVAL;
  std::string_view target = c.toc().target(*link);
  return c.send(target.data(), target.size());
}

int op_readdir(const Context& c) { return list(c, false); }
int op_readdirplus(const Context& c) { return list(c, true); }

int op_statfs(const Context& c) {
  fuse_statfs_out out = {};
  out.st.bsize = kBlock;
  out.st.frsize = kBlock;
  out.st.blocks = (c.toc().total_bytes() + kBlock - 1) / kBlock;
  out.st.files = c.toc().inodes();
  out.st.namelen = 255;
  return c.send(&out, sizeof out);
}

}  // namespace firstlight
