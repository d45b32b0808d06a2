// One decoder for each operation; which number stands in which slot is said in
// src/native/upcalls.ts.
#include "upcall_decode.h"

#include <errno.h>
#include <limits.h>
#include <string.h>

#include <algorithm>

namespace firstlight {

namespace {

constexpr size_t kArg = Upcall::kArg;
constexpr size_t kUmask = 5;
constexpr size_t kNameMax = 255;

// A name of one component after `skip` bytes of the body.
int take_name(const Context& c, size_t skip, std::string* into) {
  auto name = c.request.name(skip);
  if (!name || name->empty()) return -EINVAL;
  // Newer kernels leave the check to us.
  if (name->size() > kNameMax) return -ENAMETOOLONG;
  into->assign(*name);
  return 0;
}

int take_two_names(const Context& c, size_t skip, Upcall* to) {
  if (int wrong = take_name(c, skip, &to->name); wrong != 0) return wrong;
  return take_name(c, skip + to->name.size() + 1, &to->name2);
}

int decode_created(const Context& c, Upcall* to) {
  const auto& in = c.request.as<fuse_create_in>();
  to->flags = in.flags;
  to->numbers[kUmask] = in.umask;
  return 0;
}

}  // namespace

std::shared_ptr<Upcall> make_upcall(const Request& request) {
  auto made = std::make_shared<Upcall>();
  const fuse_in_header& header = *request.header;
  made->opcode = header.opcode;
  made->unique = header.unique;
  made->node = header.nodeid;
  made->lane = request.lane;
  made->tid = header.pid;
  double* numbers = made->numbers;
  numbers[0] = header.opcode;
  numbers[1] = static_cast<double>(header.nodeid);
  numbers[2] = header.uid;
  numbers[3] = header.gid;
  numbers[4] = header.pid;
  return made;
}

int send_upcall(const Context& c, Decoder decode) {
  auto upcall = make_upcall(c.request);
  if (int wrong = decode(c, upcall.get()); wrong != 0) return wrong;
  return c.session.upcall(std::move(upcall));
}

int decode_plain(const Context&, Upcall*) { return 0; }

int decode_lookup(const Context& c, Upcall* to) { return take_name(c, 0, &to->name); }
int decode_remove(const Context& c, Upcall* to) { return take_name(c, 0, &to->name); }
int decode_getattr(const Context&, Upcall*) { return 0; }

int decode_statx(const Context&, Upcall* to) {
  to->numbers[0] = FUSE_GETATTR;
  return 0;
}

int decode_setattr(const Context& c, Upcall* to) {
  const auto& in = c.request.as<fuse_setattr_in>();
  double* arg = to->numbers + kArg;
  arg[0] = in.valid;
  arg[1] = in.mode;
  arg[2] = in.uid;
  arg[3] = in.gid;
  arg[4] = static_cast<double>(in.size);
  arg[5] = static_cast<double>(static_cast<int64_t>(in.atime));
  arg[6] = in.atimensec;
  arg[7] = static_cast<double>(static_cast<int64_t>(in.mtime));
  arg[8] = in.mtimensec;
  arg[9] = static_cast<double>(static_cast<int64_t>(in.ctime));
  arg[10] = in.ctimensec;
  arg[11] = (in.valid & FATTR_FH) != 0 ? static_cast<double>(in.fh & ~kFhUpper) : -1;
  return 0;
}

int decode_symlink(const Context& c, Upcall* to) {
  if (int wrong = take_name(c, 0, &to->name); wrong != 0) return wrong;
  auto target = c.request.name(to->name.size() + 1);
  if (!target || target->empty()) return -EINVAL;
  if (target->size() >= PATH_MAX) return -ENAMETOOLONG;
  to->value.assign(target->begin(), target->end());
  to->has_value = true;
  return 0;
}

int decode_mknod(const Context& c, Upcall* to) {
  const auto& in = c.request.as<fuse_mknod_in>();
  to->numbers[kUmask] = in.umask;
  to->numbers[kArg] = in.mode;
  to->numbers[kArg + 1] = in.rdev;
  return take_name(c, sizeof in, &to->name);
}

int decode_mkdir(const Context& c, Upcall* to) {
  const auto& in = c.request.as<fuse_mkdir_in>();
  to->numbers[kUmask] = in.umask;
  to->numbers[kArg] = in.mode;
  return take_name(c, sizeof in, &to->name);
}

int decode_rename(const Context& c, Upcall* to) {
  to->numbers[kArg] = static_cast<double>(c.request.as<fuse_rename_in>().newdir);
  return take_two_names(c, sizeof(fuse_rename_in), to);
}

int decode_rename2(const Context& c, Upcall* to) {
  const auto& in = c.request.as<fuse_rename2_in>();
  to->numbers[0] = FUSE_RENAME;
  to->numbers[kArg] = static_cast<double>(in.newdir);
  to->numbers[kArg + 1] = in.flags;
  return take_two_names(c, sizeof in, to);
}

int decode_link(const Context& c, Upcall* to) {
  to->numbers[kArg] = static_cast<double>(c.request.as<fuse_link_in>().oldnodeid);
  return take_name(c, sizeof(fuse_link_in), &to->name);
}

int decode_open(const Context& c, Upcall* to) {
  const auto& in = c.request.as<fuse_open_in>();
  to->flags = in.flags;
  to->numbers[kArg] = in.flags;
  to->numbers[kArg + 1] = (in.open_flags & FUSE_OPEN_KILL_SUIDGID) != 0 ? 1 : 0;
  return 0;
}

int decode_create(const Context& c, Upcall* to) {
  const auto& in = c.request.as<fuse_create_in>();
  to->numbers[kArg] = in.flags;
  to->numbers[kArg + 1] = in.mode;
  to->numbers[kArg + 2] = (in.open_flags & FUSE_OPEN_KILL_SUIDGID) != 0 ? 1 : 0;
  decode_created(c, to);
  return take_name(c, sizeof in, &to->name);
}

// The name that comes with it means nothing.
int decode_tmpfile(const Context& c, Upcall* to) {
  const auto& in = c.request.as<fuse_create_in>();
  to->numbers[kArg] = in.mode;
  to->numbers[kArg + 1] = in.flags;
  return decode_created(c, to);
}

namespace {
int decode_list(const Context& c, bool plus, Upcall* to) {
  const auto& in = c.request.as<fuse_read_in>();
  to->room = std::min(in.size, kMaxReply);
  to->numbers[0] = FUSE_READDIRPLUS;
  to->numbers[kArg] = static_cast<double>(in.offset);
  to->numbers[kArg + 1] = to->room;
  to->numbers[kArg + 2] = plus ? 1 : 0;
  return 0;
}
}  // namespace

int decode_readdir(const Context& c, Upcall* to) { return decode_list(c, false, to); }
int decode_readdirplus(const Context& c, Upcall* to) { return decode_list(c, true, to); }

int decode_setxattr(const Context& c, Upcall* to) {
  const auto& in = c.request.as<fuse_setxattr_in>();
  bool extended = c.session.features().setxattr_ext;
  size_t head = extended ? sizeof in : FUSE_COMPAT_SETXATTR_IN_SIZE;
  if (c.request.body_bytes < head) return -EINVAL;
  if (int wrong = take_name(c, head, &to->name); wrong != 0) return wrong;
  size_t at = head + to->name.size() + 1;
  if (in.size > c.request.body_bytes - at) return -EINVAL;
  to->value.assign(c.request.body + at, c.request.body + at + in.size);
  to->has_value = true;
  to->numbers[kArg] = in.flags;
  bool kill = extended && (in.setxattr_flags & FUSE_SETXATTR_ACL_KILL_SGID) != 0;
  to->numbers[kArg + 1] = kill ? 1 : 0;
  return 0;
}

int decode_getxattr(const Context& c, Upcall* to) {
  to->room = c.request.as<fuse_getxattr_in>().size;
  to->numbers[kArg] = to->room;
  return take_name(c, sizeof(fuse_getxattr_in), &to->name);
}

int decode_listxattr(const Context& c, Upcall* to) {
  to->room = c.request.as<fuse_getxattr_in>().size;
  to->numbers[kArg] = to->room;
  return 0;
}

int decode_removexattr(const Context& c, Upcall* to) { return take_name(c, 0, &to->name); }

int decode_fsyncdir(const Context& c, Upcall* to) {
  bool data_only = (c.request.as<fuse_fsync_in>().fsync_flags & FUSE_FSYNC_FDATASYNC) != 0;
  to->numbers[kArg] = data_only ? 1 : 0;
  return 0;
}

namespace {
void forget(const Context& c, uint64_t node, uint64_t lookups) {
  // Rows of the template are held for nobody, as long as they are that.
  if (c.session.divergence().thawed(node)) c.session.forget(node, lookups);
}
}  // namespace

int forget_own(const Context& c) {
  forget(c, c.request.header->nodeid, c.request.as<fuse_forget_in>().nlookup);
  return kAnswered;
}

int forget_own_batch(const Context& c) {
  size_t count = c.request.as<fuse_batch_forget_in>().count;
  size_t room = (c.request.body_bytes - sizeof(fuse_batch_forget_in)) / sizeof(fuse_forget_one);
  const uint8_t* at = c.request.body + sizeof(fuse_batch_forget_in);
  for (size_t i = 0; i < std::min(count, room); i++, at += sizeof(fuse_forget_one)) {
    fuse_forget_one one;
    memcpy(&one, at, sizeof one);
    forget(c, one.nodeid, one.nlookup);
  }
  return kAnswered;
}

}  // namespace firstlight
