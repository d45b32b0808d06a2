// What the parts of the upper directory's binding share: reading a call's arguments, and errors
// with an errno. The calls themselves stand in upper_io.cc, upper_io_attr.cc and upper_io_jobs.cc.
#pragma once

#include <node_api.h>
#include <stdint.h>

#include <cstddef>
#include <string>
#include <utility>

#include "napi_util.h"

namespace firstlight::upper {

/** A byte string of JavaScript (latin1) as the system wants it: one component, or an absolute path.
 */
struct Name {
  static constexpr size_t kMax = 4096;
  char text[kMax];

  bool empty() const { return text[0] == '\0'; }
  /** What *at calls take where '' is to mean the descriptor itself, and opening it anew is right.
   */
  const char* or_dot() const { return empty() ? "." : text; }
};

/** Reads the arguments of one call in their order. Anything of a wrong kind makes `good` false, for
 * good. */
class Arguments {
 public:
  Arguments(napi_env env, napi_callback_info info) : env_(env), call_(env, info) {}

  napi_env env() const { return env_; }
  bool good() const { return good_; }

  double number();
  int fd() { return static_cast<int>(number()); }
  uint32_t word() { return static_cast<uint32_t>(static_cast<int64_t>(number())); }
  bool flag();
  /** One component of a path, or nothing. */
  Name name() { return string(false); }
  /** A component, or an absolute path where `dirfd` is -1. */
  Name name_or_path(int dirfd) { return string(dirfd == -1); }
  std::pair<const uint8_t*, size_t> bytes();
  /** Slots of a Float64Array, at least `least` of them. */
  double* doubles(size_t least);
  /** A property of the next argument, which stays the next one. */
  uint32_t property(const char* name);
  void skip() { next_++; }

 private:
  Name string(bool path);
  napi_value take() { return next_ < kArguments ? call_.arguments[next_++] : nullptr; }

  static constexpr size_t kArguments = 8;
  napi_env env_;
  napi::Call<kArguments> call_;
  size_t next_ = 0;
  bool good_ = true;
};

/** An Error with `code` and the positive `errno`; `what` names the call. */
napi_value make_error(napi_env env, int error, const char* what);
/** Throws that error; nullptr. */
napi_value throw_error(napi_env env, int error, const char* what);
/** Throws what is wrong with a call's arguments; nullptr. */
napi_value throw_arguments(napi_env env, const char* what);

/** What a system call gave: undefined, or its errno thrown. */
napi_value done(napi_env env, int result, const char* what);
napi_value buffer_of(napi_env env, const void* data, size_t bytes);

/** "/proc/self/fd/N" or "/proc/self/fd/N/NAME": how calls that know paths only reach a descriptor.
 */
std::string proc_path(int dirfd, const Name& name);

/** One function of the object. */
struct Entry {
  const char* name;
  napi_callback function;
};

template <size_t N>
void export_calls(napi_env env, napi_value object, const Entry (&entries)[N]) {
  for (const Entry& entry : entries) napi::export_function(env, object, entry.name, entry.function);
}

/** stat, chmod, xattrs and their like. */
void export_attributes(napi_env env, napi_value upper);
/** fsync, fsyncDirectory, syncfs, copyFile: what runs on the thread pool. */
void export_jobs(napi_env env, napi_value upper);

}  // namespace firstlight::upper
