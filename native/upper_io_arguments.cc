// Arguments and errors of the upper directory's calls (upper_io.h).
#include <errno.h>
#include <string.h>

#include <cmath>

#include "upper_io.h"

namespace firstlight::upper {

double Arguments::number() {
  auto value = napi::get_number(env_, take());
  if (value && std::isfinite(*value)) return *value;
  good_ = false;
  return 0;
}

std::pair<const uint8_t*, size_t> Arguments::bytes() {
  auto value = napi::get_bytes(env_, take());
  if (value) return {value->first, value->second};
  good_ = false;
  return {nullptr, 0};
}

bool Arguments::flag() {
  auto value = napi::get_boolean(env_, take());
  if (!value) good_ = false;
  return value.value_or(false);
}

double* Arguments::doubles(size_t least) {
  napi_value value = take();
  bool is = false;
  napi_typedarray_type type;
  size_t length = 0;
  void* data = nullptr;
  if (value != nullptr && napi_is_typedarray(env_, value, &is) == napi_ok && is &&
      napi_get_typedarray_info(env_, value, &type, &length, &data, nullptr, nullptr) == napi_ok &&
      type == napi_float64_array && length >= least) {
    return static_cast<double*>(data);
  }
  good_ = false;
  return nullptr;
}

uint32_t Arguments::property(const char* name) {
  napi_value object = next_ < kArguments ? call_.arguments[next_] : nullptr;
  auto value = napi::get_number(env_, napi::get_property(env_, object, name));
  if (value && *value >= 0 && *value <= UINT32_MAX) return static_cast<uint32_t>(*value);
  good_ = false;
  return 0;
}

Name Arguments::string(bool path) {
  Name name;
  name.text[0] = '\0';
  napi_value value = take();
  size_t bytes = 0;
  if (napi::type_of(env_, value) != napi_string ||
      napi_get_value_string_latin1(env_, value, name.text, sizeof name.text, &bytes) != napi_ok) {
    good_ = false;
    return name;
  }
  // One that does not fit was cut, and is too long for the kernel in any case; a zero or a slash
  // would name another file than the one that is meant.
  if (bytes + 1 >= sizeof name.text || strlen(name.text) != bytes ||
      (!path && strchr(name.text, '/') != nullptr)) {
    good_ = false;
  }
  return name;
}

napi_value make_error(napi_env env, int error, const char* what) {
  napi_value object =
      napi::make_error(env, napi::errno_name(error), std::string(what) + ": " + strerror(error));
  napi::set_property(env, object, "errno", napi::make_number(env, error));
  return object;
}

napi_value throw_error(napi_env env, int error, const char* what) {
  napi_throw(env, make_error(env, error, what));
  return nullptr;
}

napi_value throw_arguments(napi_env env, const char* what) {
  napi_value object = napi::make_error(env, "EINVAL", std::string("upper.") + what);
  napi::set_property(env, object, "errno", napi::make_number(env, EINVAL));
  napi_throw(env, object);
  return nullptr;
}

napi_value done(napi_env env, int result, const char* what) {
  return result < 0 ? throw_error(env, errno, what) : napi::undefined(env);
}

napi_value buffer_of(napi_env env, const void* data, size_t bytes) {
  napi_value buffer = nullptr;
  napi_create_buffer_copy(env, bytes, data, nullptr, &buffer);
  return buffer;
}

std::string proc_path(int dirfd, const Name& name) {
  std::string path = "/proc/self/fd/" + std::to_string(dirfd);
  if (name.empty()) return path;
  path += '/';
  return path += name.text;
}

}  // namespace firstlight::upper
