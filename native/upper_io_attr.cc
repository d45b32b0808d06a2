// The half of `upper` (src/native/upper.ts) that reads and changes attributes: stat, owner, mode,
// times, length, extended attributes, statfs. Everything here runs on the thread that calls.
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <vector>

#include "unique_fd.h"
#include "upper_io.h"
#include "write_lease.h"

namespace firstlight::upper {
namespace {

// Since Linux 6.6; Debian 12's headers do not have it.
constexpr long kFchmodat2 = 452;
constexpr size_t kXattrMax = 64 << 10;

// Slots of ATTR in src/native/upcalls.ts, and of `statfs`.
constexpr size_t kAttrSlots = 17;
constexpr size_t kStatfsSlots = 8;

// Device numbers as new_encode_dev packs them.
uint32_t pack_device(uint32_t major, uint32_t minor) {
  return (minor & 0xff) | (major << 8) | ((minor & ~0xffu) << 12);
}

void fill_attributes(const struct statx& from, double* into) {
  const double slots[kAttrSlots] = {
      static_cast<double>(from.stx_ino),
      static_cast<double>(from.stx_size),
      static_cast<double>(from.stx_blocks),
      static_cast<double>(from.stx_atime.tv_sec),
      static_cast<double>(from.stx_atime.tv_nsec),
      static_cast<double>(from.stx_mtime.tv_sec),
      static_cast<double>(from.stx_mtime.tv_nsec),
      static_cast<double>(from.stx_ctime.tv_sec),
      static_cast<double>(from.stx_ctime.tv_nsec),
      static_cast<double>(from.stx_mode),
      static_cast<double>(from.stx_nlink),
      static_cast<double>(from.stx_uid),
      static_cast<double>(from.stx_gid),
      static_cast<double>(pack_device(from.stx_rdev_major, from.stx_rdev_minor)),
      static_cast<double>(from.stx_blksize),
      static_cast<double>((from.stx_mask & STATX_BTIME) != 0 ? from.stx_btime.tv_sec : 0),
      static_cast<double>((from.stx_mask & STATX_BTIME) != 0 ? from.stx_btime.tv_nsec : 0),
  };
  memcpy(into, slots, sizeof slots);
}

napi_value stat_call(napi_env env, napi_callback_info info) {
  Arguments call(env, info);
  int dirfd = call.fd();
  Name name = call.name();
  double* into = call.doubles(kAttrSlots);
  if (!call.good()) return throw_arguments(env, "stat(dirfd, name, into)");
  struct statx attributes;
  int flags = AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH;
  if (statx(dirfd, name.text, flags, STATX_BASIC_STATS | STATX_BTIME, &attributes) != 0)
    return throw_error(env, errno, "stat");
  fill_attributes(attributes, into);
  return napi::undefined(env);
}

// fchmodat2(2), and what does the same on a kernel before 6.6.
int change_mode(int dirfd, const Name& name, mode_t mode) {
  int flags = AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH;
  int result = static_cast<int>(syscall(kFchmodat2, dirfd, name.text, mode, flags));
  if (result == 0 || errno != ENOSYS) return result;
  if (name.empty()) return chmod(proc_path(dirfd, name).c_str(), mode);
  UniqueFd file(openat(dirfd, name.text, O_PATH | O_NOFOLLOW | O_CLOEXEC));
  if (!file) return -1;
  return chmod(proc_path(file.get(), Name{}).c_str(), mode);
}

napi_value chmod_call(napi_env env, napi_callback_info info) {
  Arguments call(env, info);
  int dirfd = call.fd();
  Name name = call.name();
  mode_t mode = call.word();
  if (!call.good()) return throw_arguments(env, "chmod(dirfd, name, mode)");
  return done(env, change_mode(dirfd, name, mode), "chmod");
}

napi_value chown_call(napi_env env, napi_callback_info info) {
  Arguments call(env, info);
  int dirfd = call.fd();
  Name name = call.name();
  uid_t uid = call.word();
  gid_t gid = call.word();
  if (!call.good()) return throw_arguments(env, "chown(dirfd, name, uid, gid)");
  int flags = AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH;
  return done(env, fchownat(dirfd, name.text, uid, gid, flags), "chown");
}

napi_value utimes_call(napi_env env, napi_callback_info info) {
  Arguments call(env, info);
  int dirfd = call.fd();
  Name name = call.name();
  timespec times[2];
  for (timespec& time : times) {
    time.tv_sec = static_cast<time_t>(call.number());
    time.tv_nsec = static_cast<long>(call.number());
  }
  if (!call.good())
    return throw_arguments(env, "utimes(dirfd, name, atimeSec, atimeNsec, mtimeSec, mtimeNsec)");
  int flags = AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH;
  return done(env, utimensat(dirfd, name.text, times, flags), "utimes");
}

napi_value truncate_call(napi_env env, napi_callback_info info) {
  Arguments call(env, info);
  int fd = call.fd();
  double bytes = call.number();
  if (!call.good()) return throw_arguments(env, "truncate(fd, bytes)");
  return done(env, ftruncate(fd, static_cast<off_t>(bytes)), "truncate");
}

napi_value held_for_writing(napi_env env, napi_callback_info info) {
  Arguments call(env, info);
  int dirfd = call.fd();
  Name name = call.name();
  if (!call.good()) return throw_arguments(env, "isHeldForWriting(dirfd, name)");
  int flags = O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC;
  UniqueFd file(name.empty() ? open(proc_path(dirfd, name).c_str(), flags & ~O_NOFOLLOW)
                             : openat(dirfd, name.text, flags));
  if (!file) return throw_error(env, errno, "isHeldForWriting");
  return napi::make_boolean(env, is_held_for_writing(file.get()));
}

// Xattr calls know paths only (getxattrat(2) is newer than most kernels). The last component is not
// followed where it is a name, and is the descriptor itself where there is none.
napi_value get_xattr(napi_env env, napi_callback_info info) {
  Arguments call(env, info);
  int dirfd = call.fd();
  Name name = call.name();
  Name attribute = call.name_or_path(-1);
  if (!call.good()) return throw_arguments(env, "getxattr(dirfd, name, attribute)");
  std::string path = proc_path(dirfd, name);
  static thread_local std::vector<char> value(kXattrMax);
  ssize_t bytes = name.empty()
                      ? getxattr(path.c_str(), attribute.text, value.data(), value.size())
                      : lgetxattr(path.c_str(), attribute.text, value.data(), value.size());
  if (bytes < 0 && errno == ENODATA) return napi::undefined(env);
  if (bytes < 0) return throw_error(env, errno, "getxattr");
  return buffer_of(env, value.data(), static_cast<size_t>(bytes));
}

napi_value list_xattrs(napi_env env, napi_callback_info info) {
  Arguments call(env, info);
  int dirfd = call.fd();
  Name name = call.name();
  if (!call.good()) return throw_arguments(env, "listxattr(dirfd, name)");
  std::string path = proc_path(dirfd, name);
  static thread_local std::vector<char> list(kXattrMax);
  ssize_t bytes = name.empty() ? listxattr(path.c_str(), list.data(), list.size())
                               : llistxattr(path.c_str(), list.data(), list.size());
  if (bytes < 0) return throw_error(env, errno, "listxattr");
  napi_value names = nullptr;
  napi_create_array(env, &names);
  uint32_t count = 0;
  for (const char* at = list.data(); at < list.data() + bytes; at += strlen(at) + 1) {
    napi_value text = nullptr;
    napi_create_string_latin1(env, at, NAPI_AUTO_LENGTH, &text);
    napi_set_element(env, names, count++, text);
  }
  return names;
}

napi_value set_xattr(napi_env env, napi_callback_info info) {
  Arguments call(env, info);
  int dirfd = call.fd();
  Name name = call.name();
  Name attribute = call.name_or_path(-1);
  auto [data, length] = call.bytes();
  int flags = static_cast<int>(call.number());
  if (!call.good()) return throw_arguments(env, "setxattr(dirfd, name, attribute, value, flags)");
  std::string path = proc_path(dirfd, name);
  int result = name.empty() ? setxattr(path.c_str(), attribute.text, data, length, flags)
                            : lsetxattr(path.c_str(), attribute.text, data, length, flags);
  return done(env, result, "setxattr");
}

napi_value remove_xattr(napi_env env, napi_callback_info info) {
  Arguments call(env, info);
  int dirfd = call.fd();
  Name name = call.name();
  Name attribute = call.name_or_path(-1);
  if (!call.good()) return throw_arguments(env, "removexattr(dirfd, name, attribute)");
  std::string path = proc_path(dirfd, name);
  int result = name.empty() ? removexattr(path.c_str(), attribute.text)
                            : lremovexattr(path.c_str(), attribute.text);
  return done(env, result, "removexattr");
}

napi_value statfs_call(napi_env env, napi_callback_info info) {
  Arguments call(env, info);
  int dirfd = call.fd();
  double* into = call.doubles(kStatfsSlots);
  if (!call.good()) return throw_arguments(env, "statfs(dirfd, into)");
  struct statfs from;
  if (fstatfs(dirfd, &from) != 0) return throw_error(env, errno, "statfs");
  const double slots[kStatfsSlots] = {
      static_cast<double>(from.f_bsize),  static_cast<double>(from.f_frsize),
      static_cast<double>(from.f_blocks), static_cast<double>(from.f_bfree),
      static_cast<double>(from.f_bavail), static_cast<double>(from.f_files),
      static_cast<double>(from.f_ffree),  static_cast<double>(from.f_namelen),
  };
  memcpy(into, slots, sizeof slots);
  return napi::undefined(env);
}

constexpr Entry kCalls[] = {
    {"stat", stat_call},
    {"chmod", chmod_call},
    {"chown", chown_call},
    {"utimes", utimes_call},
    {"truncate", truncate_call},
    {"getxattr", get_xattr},
    {"listxattr", list_xattrs},
    {"setxattr", set_xattr},
    {"removexattr", remove_xattr},
    {"statfs", statfs_call},
    {"isHeldForWriting", held_for_writing},
};

}  // namespace

void export_attributes(napi_env env, napi_value upper) { export_calls(env, upper, kCalls); }

}  // namespace firstlight::upper
