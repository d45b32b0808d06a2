// Names of directories that the tree has lent: what it would say about them, without it. Whatever
// is not plainly so is an upcall.
//
// The view of a directory is what the layer has in it, and the names of the template's directory
// that is merged into it and that nothing in the layer covers. So where neither has a name, there
// is none, whatever the tree is just doing: it need not be asked.
#include "upper_names.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>

#include "ops.h"
#include "upcall_decode.h"

namespace firstlight {

namespace {

constexpr size_t kNameMax = 255;

}  // namespace

std::shared_ptr<const LentDirectory> find_lent(const Context& c, std::string_view name) {
  // The kernel sends no others; what is no name must not lead out of the directory.
  bool is_name = !name.empty() && name.size() <= kNameMax && name != "." && name != ".." &&
                 name.find('/') == std::string_view::npos;
  if (!is_name) return nullptr;
  auto directory = c.session.lent().find(c.node());
  if (directory == nullptr || directory->row == kNone) return directory;
  bool in_template = c.toc().find(c.toc().row(directory->row), name).has_value();
  return in_template ? nullptr : directory;
}

// Why "no such name" cannot be stale when the kernel gets it: it asks with the directory's lock
// held (i_rwsem, shared), and whatever makes a name in the directory holds that exclusively:
// CREATE, LINK and their like, and RENAME into it. The tree alone makes names without it, when it
// promotes a file: under names that the template has, which are not answered here. What the kernel
// asks without the lock (fuse_dentry_revalidate), it keeps no such answer to. Before the directory
// goes, or another takes its place in the layer (RMDIR, RENAME over it: its own lock is held
// exclusively), the tree recalls it.
//
// The directory's blocks are in memory as a rule: the tree has looked for names in it lately.
int op_lookup_upper(const Context& c) {
  auto name = c.request.name();
  auto directory = name ? find_lent(c, *name) : nullptr;
  if (directory == nullptr) return send_upcall(c, decode_lookup);
  struct stat st;
  // With its NUL: it stands so in the request.
  if (fstatat(directory->fd.get(), name->data(), &st, AT_SYMLINK_NOFOLLOW) == 0 ||
      errno != ENOENT) {
    return send_upcall(c, decode_lookup);
  }
  c.session.count().lookups.fetch_add(1, std::memory_order_relaxed);
  fuse_entry_out none = {};
  none.entry_valid = kForever;
  return c.send(&none, sizeof none);
}

}  // namespace firstlight
