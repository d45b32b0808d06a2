// GETATTR, STATX and GETXATTR of nodes in the writable layer that need no tree: of what it has
// adopted, and of files that are open, by the descriptor that is here already. Everything else goes
// to the tree.
#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/xattr.h>

#include <algorithm>

#include "attributes.h"
#include "ops.h"
#include "upcall_decode.h"

namespace firstlight {

namespace {

/** Attributes of a node, and how long the kernel may keep them. */
struct Known {
  fuse_attr attr;
  uint64_t valid_s;
  int fd;
};

bool know(int fd, uint64_t ino, uint64_t valid_s, Known* known) {
  struct stat st;
  if (fstat(fd, &st) != 0) return false;
  fill_from_stat(st, ino, &known->attr);
  known->valid_s = valid_s;
  known->fd = fd;
  return true;
}

/** Calls `send(known)`; false where the tree has to be asked. */
template <class Send>
bool answer(const Context& c, Send send) {
  Known known;
  bool fits = false;
  bool adopted = c.session.adopted().with(c.node(), [&](const AdoptedFile& file) {
    uint64_t before = c.session.still();
    fits = know(file.fd->get(), file.ino, kForever, &known);
    if (!fits) return;
    // What is written through a mapping changes times and blocks, and tells the kernel nothing. An
    // open for writing that comes after this look makes the kernel drop what it gets from it
    // (upper_open.cc).
    if (file.links == 0 && file.is_written()) known.valid_s = 0;
    if (file.links != 0) {
      known.attr.nlink = file.links;
      // The kernel hears of a name that comes or goes by its own request alone, and that may be
      // answered before this is: then what was seen here must not be kept.
      if (before == 0 || c.session.still() != before) known.valid_s = 0;
    }
    send(known);
  });
  if (adopted) return fits;
  uint64_t ino = 0;
  auto fd = c.session.handles().upper_of(c.node(), &ino);
  // What is written through a mapping changes times and blocks, and tells the kernel nothing.
  if (fd == nullptr || ino == 0 || !know(fd->get(), ino, 0, &known)) return false;
  send(known);
  return true;
}

/** Names that mean the same in the writable layer: those of overlayfs and of ours do not. */
bool same_in_upper(std::string_view name) {
  return name.starts_with("security.") || name.starts_with("user.") ||
         name.starts_with("system.posix_acl_");
}

/**
 * A descriptor of the node that is good for more than a look at its attributes. The root's is held
 * for kernels on which the root that users see is FUSE's own (root_below.h): those ask for its ACL
 * again and again.
 */
std::shared_ptr<const UniqueFd> descriptor_of(const Context& c) {
  if (c.node() == FUSE_ROOT_ID) return c.session.adopted().root();
  if (auto file = c.session.adopted().find(c.node())) return file->fd;
  uint64_t ino = 0;
  return c.session.handles().upper_of(c.node(), &ino);
}

}  // namespace

int op_getattr_diverged(const Context& c) {
  bool answered = answer(c, [&](const Known& known) {
    fuse_attr_out out = {};
    out.attr_valid = known.valid_s;
    out.attr = known.attr;
    c.send(&out, sizeof out);
  });
  return answered ? kAnswered : send_upcall(c, decode_getattr);
}

int op_statx_diverged(const Context& c) {
  bool answered = answer(c, [&](const Known& known) {
    abi::StatxOut out;
    fill_statx(known.attr, &out);
    out.attr_valid = known.valid_s;
    struct statx born;
    // A file of the image has none: that of its copy is not its own.
    bool own = known.attr.ino >= kFirstOwnNode;
    if (own && statx(known.fd, "", AT_EMPTY_PATH, STATX_BTIME, &born) == 0 &&
        (born.stx_mask & STATX_BTIME) != 0) {
      out.mask |= STATX_BTIME;
      out.btime = {born.stx_btime.tv_sec, born.stx_btime.tv_nsec, 0};
    }
    c.send(&out, sizeof out);
  });
  return answered ? kAnswered : send_upcall(c, decode_statx);
}

int op_getxattr_diverged(const Context& c) {
  auto name = c.request.name(sizeof(fuse_getxattr_in));
  // With its NUL: it stands so in the request.
  auto fd = name && same_in_upper(*name) ? descriptor_of(c) : nullptr;
  if (fd == nullptr) return send_upcall(c, decode_getxattr);
  size_t asked = c.request.as<fuse_getxattr_in>().size;
  // Of a file that is held open: its inode is in memory, and with it most attributes are.
  ssize_t bytes = fgetxattr(fd->get(), name->data(), c.scratch, std::min<size_t>(asked, kMaxReply));
  if (bytes < 0 && (errno == ENODATA || errno == ERANGE)) return -errno;
  // Whatever else it is, the tree has the words for it.
  if (bytes < 0) return send_upcall(c, decode_getxattr);
  if (asked != 0) return c.send(c.scratch, static_cast<size_t>(bytes));
  fuse_getxattr_out out = {static_cast<uint32_t>(bytes), 0};
  return c.send(&out, sizeof out);
}

}  // namespace firstlight
