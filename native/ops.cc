// The table, and the operations whose answer is the same for every tree.
#include "ops.h"

#include <errno.h>

#include <array>

#include "upcall_decode.h"
#include "upper_changes.h"

namespace firstlight {

namespace {

int no_reply(const Context&) { return kAnswered; }
int read_only(const Context&) { return -EROFS; }

// ENOSYS is remembered by the kernel, which then does without and never asks again: it checks
// access itself (default_permissions), takes data for everywhere up to the size (LSEEK), caches
// directories without a handle (OPENDIR), and has nothing to sync.
int never_ask_again(const Context&) { return -ENOSYS; }

constexpr Route kTree = Route::kTree;
constexpr Route kDiverging = Route::kDiverging;
constexpr Route kNative = Route::kNative;

// In the order of the ABI. FORGET: nodes of the template are rows, so nothing is held for the
// kernel.
constexpr Operation kOperations[] = {
    {FUSE_LOOKUP, "LOOKUP", 1, op_lookup, kDiverging, decode_lookup, op_lookup_upper},
    {FUSE_FORGET, "FORGET", sizeof(fuse_forget_in), no_reply, kNative, nullptr, forget_own},
    {FUSE_GETATTR, "GETATTR", sizeof(fuse_getattr_in), op_getattr, kDiverging, decode_getattr,
     op_getattr_diverged},
    {FUSE_SETATTR, "SETATTR", sizeof(fuse_setattr_in), read_only, kTree, decode_setattr},
    {FUSE_READLINK, "READLINK", 0, op_readlink, kDiverging, decode_plain},
    {FUSE_SYMLINK, "SYMLINK", 2, read_only, kTree, decode_symlink},
    {FUSE_MKNOD, "MKNOD", sizeof(fuse_mknod_in), read_only, kTree, decode_mknod},
    {FUSE_MKDIR, "MKDIR", sizeof(fuse_mkdir_in), read_only, kTree, decode_mkdir},
    {FUSE_UNLINK, "UNLINK", 1, read_only, kNative, nullptr, op_unlink_upper},
    {FUSE_RMDIR, "RMDIR", 1, read_only, kTree, decode_remove},
    {FUSE_RENAME, "RENAME", sizeof(fuse_rename_in), read_only, kTree, decode_rename},
    {FUSE_LINK, "LINK", sizeof(fuse_link_in), read_only, kTree, decode_link},
    {FUSE_OPEN, "OPEN", sizeof(fuse_open_in), op_open},
    {FUSE_READ, "READ", sizeof(fuse_read_in), op_read},
    {FUSE_WRITE, "WRITE", sizeof(fuse_write_in), read_only, kNative, nullptr, op_write},
    {FUSE_STATFS, "STATFS", 0, op_statfs, kTree, decode_plain},
    {FUSE_RELEASE, "RELEASE", sizeof(fuse_release_in), op_release},
    {FUSE_FSYNC, "FSYNC", sizeof(fuse_fsync_in), never_ask_again, kNative, nullptr, op_fsync},
    {FUSE_SETXATTR, "SETXATTR", FUSE_COMPAT_SETXATTR_IN_SIZE, read_only, kTree, decode_setxattr},
    {FUSE_GETXATTR, "GETXATTR", sizeof(fuse_getxattr_in) + 1, op_getxattr, kDiverging,
     decode_getxattr, op_getxattr_diverged},
    {FUSE_LISTXATTR, "LISTXATTR", sizeof(fuse_getxattr_in), op_listxattr, kDiverging,
     decode_listxattr},
    {FUSE_REMOVEXATTR, "REMOVEXATTR", 1, read_only, kTree, decode_removexattr},
    {FUSE_FLUSH, "FLUSH", sizeof(fuse_flush_in), op_flush},
    {FUSE_OPENDIR, "OPENDIR", 0, never_ask_again},
    {FUSE_READDIR, "READDIR", sizeof(fuse_read_in), op_readdir, kDiverging, decode_readdir},
    {FUSE_FSYNCDIR, "FSYNCDIR", sizeof(fuse_fsync_in), never_ask_again, kTree, decode_fsyncdir},
    {FUSE_ACCESS, "ACCESS", 0, never_ask_again},
    {FUSE_CREATE, "CREATE", sizeof(fuse_create_in), read_only, kNative, nullptr, op_create_upper},
    {FUSE_INTERRUPT, "INTERRUPT", sizeof(fuse_interrupt_in), op_interrupt},
    {FUSE_DESTROY, "DESTROY", 0, no_reply},
    {FUSE_POLL, "POLL", 0, never_ask_again},
    {FUSE_BATCH_FORGET, "BATCH_FORGET", sizeof(fuse_batch_forget_in), no_reply, kNative, nullptr,
     forget_own_batch},
    {FUSE_FALLOCATE, "FALLOCATE", sizeof(fuse_fallocate_in), read_only, kNative, nullptr,
     op_fallocate},
    {FUSE_READDIRPLUS, "READDIRPLUS", sizeof(fuse_read_in), op_readdirplus, kDiverging,
     decode_readdirplus},
    {FUSE_RENAME2, "RENAME2", sizeof(fuse_rename2_in), read_only, kTree, decode_rename2},
    {FUSE_LSEEK, "LSEEK", sizeof(fuse_lseek_in), never_ask_again, kNative, nullptr, op_lseek},
    {FUSE_COPY_FILE_RANGE, "COPY_FILE_RANGE", sizeof(fuse_copy_file_range_in), read_only, kNative,
     nullptr, op_copy_file_range},
    {FUSE_SYNCFS, "SYNCFS", 0, never_ask_again, kTree, decode_plain},
    {FUSE_TMPFILE, "TMPFILE", sizeof(fuse_create_in), read_only, kTree, decode_tmpfile},
    {abi::kOpStatx, "STATX", sizeof(abi::StatxIn), op_statx, kDiverging, decode_statx,
     op_statx_diverged},
    {abi::kOpCopyFileRange64, "COPY_FILE_RANGE_64", sizeof(fuse_copy_file_range_in), read_only,
     kNative, nullptr, op_copy_file_range},
};

constexpr uint32_t kOpcodes = 64;

constexpr std::array<const Operation*, kOpcodes> index_operations() {
  std::array<const Operation*, kOpcodes> index{};
  for (const Operation& operation : kOperations) index[operation.opcode] = &operation;
  return index;
}

constexpr auto kIndex = index_operations();

}  // namespace

const Operation* find_operation(uint32_t opcode) {
  return opcode < kOpcodes ? kIndex[opcode] : nullptr;
}

int run_writable(const Context& c, const Operation& operation) {
  Handler own = operation.writable;
  switch (operation.route) {
    case Route::kNative:
      return own != nullptr ? own(c) : operation.handler(c);
    case Route::kTree:
      return send_upcall(c, operation.decode);
    case Route::kDiverging:
      break;
  }
  int result = kDiverted;
  if (!c.session.divergence().thawed(c.node())) {
    Divergence::Inside inside(c.session.divergence(), c.request.lane);
    // Again: now either this sees the bit, or `thaw` sees that somebody is inside.
    if (!c.session.divergence().thawed(c.node())) result = operation.handler(c);
  }
  if (result != kDiverted) return result;
  return own != nullptr ? own(c) : send_upcall(c, operation.decode);
}

}  // namespace firstlight
