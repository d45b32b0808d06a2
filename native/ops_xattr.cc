// GETXATTR and LISTXATTR from the TOC.
#include <errno.h>
#include <string.h>

#include "ops.h"

namespace firstlight {

namespace {

// The reply of both: the size where the caller asks for it (size 0), else the bytes.
int send_sized(const Context& c, uint32_t asked, const void* data, size_t bytes) {
  if (asked == 0) {
    fuse_getxattr_out out = {};
    out.size = static_cast<uint32_t>(bytes);
    return c.send(&out, sizeof out);
  }
  if (bytes > asked) return -ERANGE;
  return c.send(data, bytes);
}

}  // namespace

int op_getxattr(const Context& c) {
  // ENODATA and never ENOSYS, though the kernel would remember that and no longer ask: programs
  // that compare trees (containerd's commit of a container) take EOPNOTSUPP for a failure.
  const TocRow* row = c.inode();
  if (row == nullptr) return -ESTALE;
  auto name = c.request.name(sizeof(fuse_getxattr_in));
  if (!name || name->empty()) return -EINVAL;
  const char* data = nullptr;
  size_t bytes = 0;
  c.toc().each_xattr(*row, [&](const TocXattr& xattr) {
    if (xattr.name < *name) return true;
    if (xattr.name == *name) {
      data = xattr.value.data();
      bytes = xattr.value.size();
    }
    return false;
  });
  if (data == nullptr) return -ENODATA;
  return send_sized(c, c.request.as<fuse_getxattr_in>().size, data, bytes);
}

int op_listxattr(const Context& c) {
  const TocRow* row = c.inode();
  if (row == nullptr) return -ESTALE;
  size_t used = 0;
  bool fits = true;
  // As other filesystems: the kernel itself hides them from getxattr(2) alone.
  bool all = c.request.header->uid == 0;
  c.toc().each_xattr(*row, [&](const TocXattr& xattr) {
    if (!all && xattr.name.starts_with("trusted.")) return true;
    if (xattr.name.size() + 1 > kMaxReply - used) return fits = false;
    memcpy(c.scratch + used, xattr.name.data(), xattr.name.size());
    used += xattr.name.size();
    c.scratch[used++] = '\0';
    return true;
  });
  if (!fits) return -E2BIG;
  return send_sized(c, c.request.as<fuse_getxattr_in>().size, c.scratch, used);
}

}  // namespace firstlight
