// The object `upper` of src/native/upper.ts: system calls on directory descriptors for the writable
// tree. Everything here runs on the thread that calls, and may wait for the disk. No policy.
//
// Files are made for whoever asked (as_owner.h), also in work/, which belongs to root.
#include "upper_io.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <vector>

#include "as_owner.h"
#include "unique_fd.h"

namespace firstlight {
namespace upper {
namespace {

constexpr size_t kListMax = 64 << 10;

napi_value descriptor(napi_env env, int fd, const char* what) {
  return fd < 0 ? throw_error(env, errno, what) : napi::make_number(env, fd);
}

/** Of `{ uid, gid }`, the next argument. */
AsOwner owner_of(Arguments& call) {
  uid_t uid = call.property("uid");
  gid_t gid = call.property("gid");
  call.skip();
  return AsOwner(uid, gid);
}

napi_value prepare_thread(napi_env env, napi_callback_info) {
  if (int error = prepare_to_make_files(); error != 0)
    return throw_error(env, error, "prepareThread");
  rlimit files;
  if (getrlimit(RLIMIT_NOFILE, &files) == 0 && files.rlim_cur < files.rlim_max) {
    files.rlim_cur = files.rlim_max;
    // Without it there is room for fewer descriptors, and EMFILE says so when it is used up.
    setrlimit(RLIMIT_NOFILE, &files);
  }
  return napi::undefined(env);
}

napi_value open_directory(napi_env env, napi_callback_info info) {
  Arguments call(env, info);
  int dirfd = call.fd();
  Name name = call.name_or_path(dirfd);
  if (!call.good()) return throw_arguments(env, "openDirectory(dirfd, name)");
  int flags = O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC;
  return descriptor(env, openat(dirfd, name.or_dot(), flags), "open");
}

napi_value open_file(napi_env env, napi_callback_info info) {
  Arguments call(env, info);
  int dirfd = call.fd();
  Name name = call.name();
  int flags = static_cast<int>(call.number()) | O_CLOEXEC;
  if (!call.good()) return throw_arguments(env, "openFile(dirfd, name, flags)");
  int fd = name.empty() ? open(proc_path(dirfd, name).c_str(), flags & ~O_NOFOLLOW)
                        : openat(dirfd, name.text, flags | O_NOFOLLOW);
  return descriptor(env, fd, "open");
}

napi_value create_file(napi_env env, napi_callback_info info) {
  Arguments call(env, info);
  int dirfd = call.fd();
  Name name = call.name();
  int flags = static_cast<int>(call.number());
  mode_t mode = call.word();
  AsOwner owner = owner_of(call);
  if (!call.good()) return throw_arguments(env, "createFile(dirfd, name, flags, mode, owner)");
  if (!owner.enter()) return throw_error(env, errno, "setfsuid");
  flags = (flags & ~O_TRUNC) | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC;
  return descriptor(env, openat(dirfd, name.text, flags, mode), "create");
}

napi_value create_unnamed(napi_env env, napi_callback_info info) {
  Arguments call(env, info);
  int dirfd = call.fd();
  int flags = static_cast<int>(call.number());
  mode_t mode = call.word();
  AsOwner owner = owner_of(call);
  if (!call.good()) return throw_arguments(env, "createUnnamed(dirfd, flags, mode, owner)");
  if (!owner.enter()) return throw_error(env, errno, "setfsuid");
  return descriptor(env, openat(dirfd, ".", flags | O_TMPFILE | O_CLOEXEC, mode), "create");
}

napi_value close_fd(napi_env env, napi_callback_info info) {
  Arguments call(env, info);
  int fd = call.fd();
  if (!call.good() || fd < 0) return throw_arguments(env, "close(fd)");
  // After EINTR it is closed, too.
  return done(env, close(fd) != 0 && errno != EINTR ? -1 : 0, "close");
}

napi_value mkdir_call(napi_env env, napi_callback_info info) {
  Arguments call(env, info);
  int dirfd = call.fd();
  Name name = call.name();
  mode_t mode = call.word();
  AsOwner owner = owner_of(call);
  if (!call.good()) return throw_arguments(env, "mkdir(dirfd, name, mode, owner)");
  if (!owner.enter()) return throw_error(env, errno, "setfsuid");
  return done(env, mkdirat(dirfd, name.text, mode), "mkdir");
}

// Device numbers as new_encode_dev packs them.
dev_t unpack_device(uint32_t packed) {
  return makedev((packed & 0xfff00) >> 8, (packed & 0xff) | ((packed >> 12) & 0xfff00));
}

napi_value mknod_call(napi_env env, napi_callback_info info) {
  Arguments call(env, info);
  int dirfd = call.fd();
  Name name = call.name();
  mode_t mode = call.word();
  dev_t device = unpack_device(call.word());
  AsOwner owner = owner_of(call);
  if (!call.good()) return throw_arguments(env, "mknod(dirfd, name, mode, rdev, owner)");
  if (!owner.enter()) return throw_error(env, errno, "setfsuid");
  return done(env, mknodat(dirfd, name.text, mode, device), "mknod");
}

napi_value symlink_call(napi_env env, napi_callback_info info) {
  Arguments call(env, info);
  auto [data, length] = call.bytes();
  int dirfd = call.fd();
  Name name = call.name();
  AsOwner owner = owner_of(call);
  if (!call.good() || memchr(data, 0, length) != nullptr)
    return throw_arguments(env, "symlink(target, dirfd, name, owner)");
  std::string target(reinterpret_cast<const char*>(data), length);
  if (!owner.enter()) return throw_error(env, errno, "setfsuid");
  return done(env, symlinkat(target.c_str(), dirfd, name.text), "symlink");
}

napi_value readlink_call(napi_env env, napi_callback_info info) {
  Arguments call(env, info);
  int dirfd = call.fd();
  Name name = call.name();
  if (!call.good()) return throw_arguments(env, "readlink(dirfd, name)");
  char target[4096];
  ssize_t bytes = readlinkat(dirfd, name.text, target, sizeof target);
  if (bytes < 0) return throw_error(env, errno, "readlink");
  return buffer_of(env, target, static_cast<size_t>(bytes));
}

template <int kFlags>
napi_value remove_call(napi_env env, napi_callback_info info) {
  constexpr const char* kWhat = kFlags == 0 ? "unlink" : "rmdir";
  Arguments call(env, info);
  int dirfd = call.fd();
  Name name = call.name();
  if (!call.good()) return throw_arguments(env, "unlink(dirfd, name)");
  return done(env, unlinkat(dirfd, name.text, kFlags), kWhat);
}

napi_value link_call(napi_env env, napi_callback_info info) {
  Arguments call(env, info);
  int from_fd = call.fd();
  Name from = call.name();
  int to_fd = call.fd();
  Name to = call.name();
  if (!call.good()) return throw_arguments(env, "link(fromDirfd, fromName, toDirfd, toName)");
  // By /proc, since AT_EMPTY_PATH wants CAP_DAC_READ_SEARCH.
  int result = from.empty() ? linkat(AT_FDCWD, proc_path(from_fd, from).c_str(), to_fd, to.text,
                                     AT_SYMLINK_FOLLOW)
                            : linkat(from_fd, from.text, to_fd, to.text, 0);
  return done(env, result, "link");
}

napi_value rename_call(napi_env env, napi_callback_info info) {
  Arguments call(env, info);
  int from_fd = call.fd();
  Name from = call.name();
  int to_fd = call.fd();
  Name to = call.name();
  unsigned flags = call.word();
  if (!call.good())
    return throw_arguments(env, "rename(fromDirfd, fromName, toDirfd, toName, flags)");
  return done(env, renameat2(from_fd, from.text, to_fd, to.text, flags), "rename");
}

napi_value make_listed(napi_env env, const char* name, uint8_t type) {
  napi_value entry = nullptr;
  napi_value text = nullptr;
  napi_create_object(env, &entry);
  napi_create_string_latin1(env, name, NAPI_AUTO_LENGTH, &text);
  napi::set_property(env, entry, "name", text);
  napi::set_property(env, entry, "type", napi::make_number(env, type));
  return entry;
}

// What getdents64(2) fills in; glibc's readdir would want a DIR of its own.
struct Dirent {
  uint64_t ino;
  int64_t offset;
  uint16_t bytes;
  uint8_t type;
  char name[];
};

napi_value list_directory(napi_env env, napi_callback_info info) {
  Arguments call(env, info);
  int dirfd = call.fd();
  Name name = call.name();
  if (!call.good()) return throw_arguments(env, "list(dirfd, name)");
  UniqueFd directory(openat(dirfd, name.or_dot(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
  if (!directory) return throw_error(env, errno, "open");
  napi_value entries = nullptr;
  napi_create_array(env, &entries);
  uint32_t count = 0;
  std::vector<uint64_t> room(kListMax / sizeof(uint64_t));
  for (;;) {
    long bytes = syscall(SYS_getdents64, directory.get(), room.data(), kListMax);
    if (bytes < 0) return throw_error(env, errno, "getdents");
    if (bytes == 0) return entries;
    const char* at = reinterpret_cast<const char*>(room.data());
    for (const char* end = at + bytes; at < end;) {
      const Dirent* entry = reinterpret_cast<const Dirent*>(at);
      at += entry->bytes;
      if (strcmp(entry->name, ".") == 0 || strcmp(entry->name, "..") == 0) continue;
      napi_handle_scope scope;
      napi_open_handle_scope(env, &scope);
      napi_set_element(env, entries, count++, make_listed(env, entry->name, entry->type));
      napi_close_handle_scope(env, scope);
    }
  }
}

constexpr Entry kCalls[] = {
    {"prepareThread", prepare_thread},
    {"openDirectory", open_directory},
    {"openFile", open_file},
    {"createFile", create_file},
    {"createUnnamed", create_unnamed},
    {"close", close_fd},
    {"mkdir", mkdir_call},
    {"mknod", mknod_call},
    {"symlink", symlink_call},
    {"readlink", readlink_call},
    {"unlink", remove_call<0>},
    {"rmdir", remove_call<AT_REMOVEDIR>},
    {"link", link_call},
    {"rename", rename_call},
    {"list", list_directory},
};

}  // namespace
}  // namespace upper

void init_upper_io(napi_env env, napi_value exports) {
  napi_value object = nullptr;
  napi_create_object(env, &object);
  upper::export_calls(env, object, upper::kCalls);
  upper::export_attributes(env, object);
  upper::export_jobs(env, object);
  napi::set_property(env, exports, "upper", object);
}

}  // namespace firstlight
