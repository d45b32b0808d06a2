// The table, and the operations whose answer is the same for every tree.
#include "ops.h"

#include <errno.h>

#include <array>

namespace firstlight {

namespace {

int no_reply(const Context&) { return kAnswered; }
int read_only(const Context&) { return -EROFS; }

// ENOSYS is remembered by the kernel, which then does without and never asks again: it checks
// access itself (default_permissions), takes data for everywhere up to the size (LSEEK), caches
// directories without a handle (OPENDIR), has no birth time (STATX), and nothing to sync.
int never_ask_again(const Context&) { return -ENOSYS; }

// In the order of the ABI. FORGET: nodes are rows, so nothing is held for the kernel.
constexpr Operation kOperations[] = {
    {FUSE_LOOKUP, "LOOKUP", 1, op_lookup},
    {FUSE_FORGET, "FORGET", 0, no_reply},
    {FUSE_GETATTR, "GETATTR", sizeof(fuse_getattr_in), op_getattr},
    {FUSE_SETATTR, "SETATTR", 0, read_only},
    {FUSE_READLINK, "READLINK", 0, op_readlink},
    {FUSE_SYMLINK, "SYMLINK", 0, read_only},
    {FUSE_MKNOD, "MKNOD", 0, read_only},
    {FUSE_MKDIR, "MKDIR", 0, read_only},
    {FUSE_UNLINK, "UNLINK", 0, read_only},
    {FUSE_RMDIR, "RMDIR", 0, read_only},
    {FUSE_RENAME, "RENAME", 0, read_only},
    {FUSE_LINK, "LINK", 0, read_only},
    {FUSE_OPEN, "OPEN", sizeof(fuse_open_in), op_open},
    {FUSE_READ, "READ", sizeof(fuse_read_in), op_read},
    {FUSE_WRITE, "WRITE", 0, read_only},
    {FUSE_STATFS, "STATFS", 0, op_statfs},
    {FUSE_RELEASE, "RELEASE", sizeof(fuse_release_in), op_release},
    {FUSE_FSYNC, "FSYNC", 0, never_ask_again},
    {FUSE_SETXATTR, "SETXATTR", 0, read_only},
    {FUSE_GETXATTR, "GETXATTR", sizeof(fuse_getxattr_in) + 1, op_getxattr},
    {FUSE_LISTXATTR, "LISTXATTR", sizeof(fuse_getxattr_in), op_listxattr},
    {FUSE_REMOVEXATTR, "REMOVEXATTR", 0, read_only},
    {FUSE_FLUSH, "FLUSH", sizeof(fuse_flush_in), op_flush},
    {FUSE_OPENDIR, "OPENDIR", 0, never_ask_again},
    {FUSE_READDIR, "READDIR", sizeof(fuse_read_in), op_readdir},
    {FUSE_FSYNCDIR, "FSYNCDIR", 0, never_ask_again},
    {FUSE_ACCESS, "ACCESS", 0, never_ask_again},
    {FUSE_CREATE, "CREATE", 0, read_only},
    {FUSE_INTERRUPT, "INTERRUPT", sizeof(fuse_interrupt_in), op_interrupt},
    {FUSE_DESTROY, "DESTROY", 0, no_reply},
    {FUSE_POLL, "POLL", 0, never_ask_again},
    {FUSE_BATCH_FORGET, "BATCH_FORGET", 0, no_reply},
    {FUSE_FALLOCATE, "FALLOCATE", 0, read_only},
    {FUSE_READDIRPLUS, "READDIRPLUS", sizeof(fuse_read_in), op_readdirplus},
    {FUSE_RENAME2, "RENAME2", 0, read_only},
    {FUSE_LSEEK, "LSEEK", 0, never_ask_again},
    {FUSE_COPY_FILE_RANGE, "COPY_FILE_RANGE", 0, read_only},
    {51, "TMPFILE", 0, read_only},
    {abi::kOpStatx, "STATX", 0, never_ask_again},
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

}  // namespace firstlight
