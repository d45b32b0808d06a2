// The store's disk calls as promises: batches of small files, syncfs, batches of renames, mount and
// umount. Each runs as one job on libuv's thread pool, so a batch costs one trip between threads.
// No policy lives here: what to write, when to sync and what an errno means is decided in
// src/store.
//
// Job::run is entered on a pool thread; everything else runs on the JavaScript thread.
#include <errno.h>
#include <fcntl.h>
#include <sys/mount.h>
#include <unistd.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "napi_util.h"
#include "unique_fd.h"

namespace firstlight {
namespace {

using napi::Call;
using napi::get_number;
using napi::get_string;
using napi::Job;
using napi::run_job;
using napi::throw_argument;

// Opens a directory for the *at calls; -1 with errno where it cannot be.
UniqueFd open_directory(const std::string& path) {
  return UniqueFd(open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
}

int write_whole(int fd, const uint8_t* data, size_t bytes) {
  while (bytes > 0) {
    ssize_t written = write(fd, data, bytes);
    if (written < 0) {
      if (errno == EINTR) continue;
      return errno;
    }
    data += written;
    bytes -= static_cast<size_t>(written);
  }
  return 0;
}

struct BatchFile {
  std::string name;
  size_t offset;
  size_t length;
};

class WriteFiles : public Job {
 public:
  std::string directory;
  const uint8_t* data = nullptr;
  std::vector<BatchFile> files;

  void run() override {
    UniqueFd dir = open_directory(directory);
    if (!dir) return fail(errno, "open " + directory);
    for (const BatchFile& file : files) {
      int error = write_one(dir.get(), file);
      if (error != 0) return fail(error, "write " + directory + "/" + file.name);
    }
  }

 private:
  int write_one(int dir, const BatchFile& file) {
    const char* name = file.name.c_str();
    UniqueFd fd(openat(dir, name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0444));
    if (!fd) return errno == EEXIST ? 0 : errno;
    int error = write_whole(fd.get(), data + file.offset, file.length);
    // Some filesystems report a delayed write that failed (quota, network) only on close.
    if (close(fd.release()) != 0 && error == 0 && errno != EINTR) error = errno;
    if (error != 0) unlinkat(dir, name, 0);
    return error;
  }
};

class SyncFs : public Job {
 public:
  std::string path;

  void run() override {
    UniqueFd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC));
    if (!fd) return fail(errno, "open " + path);
    if (syncfs(fd.get()) != 0) fail(errno, "syncfs " + path);
  }
};

class RenameFiles : public Job {
 public:
  std::string directory;
  std::vector<std::pair<std::string, std::string>> pairs;

  void run() override {
    UniqueFd dir = open_directory(directory);
    if (!dir) return fail(errno, "open " + directory);
    for (const auto& [from, to] : pairs) {
      if (renameat(dir.get(), from.c_str(), dir.get(), to.c_str()) == 0) continue;
      int error = errno;
      bool there = faccessat(dir.get(), to.c_str(), F_OK, AT_SYMLINK_NOFOLLOW) == 0;
      if (error == ENOENT && there) continue;
      return fail(error, "rename " + directory + "/" + from + " to " + to);
    }
  }
};

class Mount : public Job {
 public:
  std::string source;
  std::string target;
  std::string type;
  std::string data;
  unsigned long flags = 0;

  void run() override {
    if (mount(source.c_str(), target.c_str(), type.c_str(), flags, data.c_str()) != 0)
      fail(errno, "mount " + type + " at " + target);
  }
};

class Unmount : public Job {
 public:
  std::string target;
  int flags = 0;

  void run() override {
    if (umount2(target.c_str(), flags) != 0) fail(errno, "umount " + target);
  }
};

// One entry of writeFiles; false where it is malformed or lies outside the data.
bool read_file(napi_env env, napi_value entry, size_t bytes, BatchFile* file) {
  auto name = get_string(env, napi::get_property(env, entry, "name"));
  auto offset = get_number(env, napi::get_property(env, entry, "offset"));
  auto length = get_number(env, napi::get_property(env, entry, "length"));
  if (!name || !offset || !length || name->empty() || name->find('/') != std::string::npos)
    return false;
  // Asked this way round so that NaN fails too; both are exact below 2^53.
  if (!(*offset >= 0 && *length >= 0 && *offset + *length <= static_cast<double>(bytes)))
    return false;
  *file = {std::move(*name), static_cast<size_t>(*offset), static_cast<size_t>(*length)};
  return true;
}

// writeFiles(directory, data, [{ name, offset, length }])
napi_value write_files(napi_env env, napi_callback_info info) {
  Call<3> call(env, info);
  auto directory = get_string(env, call.arguments[0]);
  auto data = napi::get_bytes(env, call.arguments[1]);
  uint32_t count = 0;
  if (!directory || !data || napi_get_array_length(env, call.arguments[2], &count) != napi_ok)
    return throw_argument(env, "writeFiles(directory, data, files)");
  auto job = std::make_unique<WriteFiles>();
  job->directory = std::move(*directory);
  job->data = data->first;
  job->files.resize(count);
  for (uint32_t i = 0; i < count; i++) {
    napi_handle_scope scope;
    napi_open_handle_scope(env, &scope);
    napi_value entry = nullptr;
    napi_get_element(env, call.arguments[2], i, &entry);
    bool good = read_file(env, entry, data->second, &job->files[i]);
    napi_close_handle_scope(env, scope);
    if (!good) return throw_argument(env, "a file needs a plain name, and a range inside the data");
  }
  if (napi_create_reference(env, call.arguments[1], 1, &job->keep) != napi_ok)
    return throw_argument(env, "the data of writeFiles cannot be kept");
  return run_job(env, "writeFiles", std::move(job));
}

// syncfs(path)
napi_value sync_fs(napi_env env, napi_callback_info info) {
  Call<1> call(env, info);
  auto path = get_string(env, call.arguments[0]);
  if (!path) return throw_argument(env, "syncfs(path)");
  auto job = std::make_unique<SyncFs>();
  job->path = std::move(*path);
  return run_job(env, "syncfs", std::move(job));
}

// renameFiles(directory, [[from, to]])
napi_value rename_files(napi_env env, napi_callback_info info) {
  Call<2> call(env, info);
  auto directory = get_string(env, call.arguments[0]);
  uint32_t count = 0;
  if (!directory || napi_get_array_length(env, call.arguments[1], &count) != napi_ok)
    return throw_argument(env, "renameFiles(directory, pairs)");
  auto job = std::make_unique<RenameFiles>();
  job->directory = std::move(*directory);
  job->pairs.reserve(count);
  for (uint32_t i = 0; i < count; i++) {
    napi_handle_scope scope;
    napi_open_handle_scope(env, &scope);
    napi_value pair = nullptr;
    napi_value from = nullptr;
    napi_value to = nullptr;
    napi_get_element(env, call.arguments[1], i, &pair);
    bool good = napi_get_element(env, pair, 0, &from) == napi_ok &&
                napi_get_element(env, pair, 1, &to) == napi_ok;
    auto from_text = good ? get_string(env, from) : std::nullopt;
    auto to_text = good ? get_string(env, to) : std::nullopt;
    napi_close_handle_scope(env, scope);
    if (!from_text || !to_text) return throw_argument(env, "a rename is a pair of strings");
    job->pairs.emplace_back(std::move(*from_text), std::move(*to_text));
  }
  return run_job(env, "renameFiles", std::move(job));
}

// mount(source, target, type, flags, data)
napi_value mount_call(napi_env env, napi_callback_info info) {
  Call<5> call(env, info);
  auto source = get_string(env, call.arguments[0]);
  auto target = get_string(env, call.arguments[1]);
  auto type = get_string(env, call.arguments[2]);
  auto flags = get_number(env, call.arguments[3]);
  auto data = get_string(env, call.arguments[4]);
  if (!source || !target || !type || !flags || !data)
    return throw_argument(env, "mount(source, target, type, flags, data)");
  auto job = std::make_unique<Mount>();
  job->source = std::move(*source);
  job->target = std::move(*target);
  job->type = std::move(*type);
  job->data = std::move(*data);
  job->flags = static_cast<unsigned long>(*flags);
  return run_job(env, "mount", std::move(job));
}

// umount(target, flags)
napi_value umount_call(napi_env env, napi_callback_info info) {
  Call<2> call(env, info);
  auto target = get_string(env, call.arguments[0]);
  auto flags = get_number(env, call.arguments[1]);
  if (!target || !flags) return throw_argument(env, "umount(target, flags)");
  auto job = std::make_unique<Unmount>();
  job->target = std::move(*target);
  job->flags = static_cast<int>(*flags);
  return run_job(env, "umount", std::move(job));
}

}  // namespace

void init_store_io(napi_env env, napi_value exports) {
  napi::export_function(env, exports, "writeFiles", write_files);
  napi::export_function(env, exports, "syncfs", sync_fs);
  napi::export_function(env, exports, "renameFiles", rename_files);
  napi::export_function(env, exports, "mount", mount_call);
  napi::export_function(env, exports, "umount", umount_call);
}

}  // namespace firstlight
