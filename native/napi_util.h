// Helpers over raw N-API that every binding file shares: reading arguments, throwing errors with an
// errno as `code`, and running a job on the thread pool behind a promise. No binding lives here.
//
// Every function of this file runs on the JavaScript thread, except Job::run.
#pragma once

#include <node_api.h>
#include <string.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace firstlight::napi {

/** Name of an errno, such as "EBUSY"; "EUNKNOWN" where the C library has none. */
inline const char* errno_name(int error) {
  const char* name = strerrorname_np(error);
  return name == nullptr ? "EUNKNOWN" : name;
}

inline napi_value undefined(napi_env env) {
  napi_value value = nullptr;
  napi_get_undefined(env, &value);
  return value;
}

inline napi_value make_string(napi_env env, std::string_view text) {
  napi_value value = nullptr;
  napi_create_string_utf8(env, text.data(), text.size(), &value);
  return value;
}

inline napi_value make_number(napi_env env, double number) {
  napi_value value = nullptr;
  napi_create_double(env, number, &value);
  return value;
}

inline napi_value make_boolean(napi_env env, bool flag) {
  napi_value value = nullptr;
  napi_get_boolean(env, flag, &value);
  return value;
}

/** An Error object with `code`; the message reads "CODE: message". */
inline napi_value make_error(napi_env env, std::string_view code, std::string_view message) {
  std::string text(code);
  text += ": ";
  text += message;
  napi_value error = nullptr;
  napi_create_error(env, make_string(env, code), make_string(env, text), &error);
  return error;
}

/** Throws an Error with `code`. Returns nullptr, for `return throw_error(...)`. */
inline napi_value throw_error(napi_env env, std::string_view code, std::string_view message) {
  napi_throw(env, make_error(env, code, message));
  return nullptr;
}

/** Throws an Error whose code is the name of a positive errno. */
inline napi_value throw_errno(napi_env env, int error, std::string_view message) {
  return throw_error(env, errno_name(error), std::string(message) + ": " + strerror(error));
}

/** Throws a TypeError-like error about a wrong argument. */
inline napi_value throw_argument(napi_env env, std::string_view message) {
  return throw_error(env, "ERR_INVALID_ARG", message);
}

inline napi_valuetype type_of(napi_env env, napi_value value) {
  napi_valuetype type = napi_undefined;
  if (value != nullptr) napi_typeof(env, value, &type);
  return type;
}

/** Arguments and `this` of one call. Missing arguments read as undefined. */
template <size_t N>
struct Call {
  napi_value self = nullptr;
  napi_value arguments[N == 0 ? 1 : N] = {};
  void* data = nullptr;

  Call(napi_env env, napi_callback_info info) {
    size_t count = N;
    napi_get_cb_info(env, info, &count, N == 0 ? nullptr : arguments, &self, &data);
  }
};

inline std::optional<std::string> get_string(napi_env env, napi_value value) {
  if (type_of(env, value) != napi_string) return std::nullopt;
  size_t length = 0;
  if (napi_get_value_string_utf8(env, value, nullptr, 0, &length) != napi_ok) return std::nullopt;
  std::string text(length, '\0');
  if (napi_get_value_string_utf8(env, value, text.data(), length + 1, &length) != napi_ok) {
    return std::nullopt;
  }
  return text;
}

inline std::optional<double> get_number(napi_env env, napi_value value) {
  double number = 0;
  if (type_of(env, value) != napi_number) return std::nullopt;
  if (napi_get_value_double(env, value, &number) != napi_ok) return std::nullopt;
  return number;
}

inline std::optional<bool> get_boolean(napi_env env, napi_value value) {
  bool flag = false;
  if (type_of(env, value) != napi_boolean) return std::nullopt;
  if (napi_get_value_bool(env, value, &flag) != napi_ok) return std::nullopt;
  return flag;
}

/** A property of an object; nullptr where `object` is none. */
inline napi_value get_property(napi_env env, napi_value object, const char* name) {
  napi_value value = nullptr;
  if (type_of(env, object) != napi_object) return nullptr;
  if (napi_get_named_property(env, object, name, &value) != napi_ok) return nullptr;
  return value;
}

/** Bytes of a Uint8Array (a Buffer is one); a view that lives as long as the JavaScript value. */
inline std::optional<std::pair<uint8_t*, size_t>> get_bytes(napi_env env, napi_value value) {
  bool is = false;
  if (value == nullptr || napi_is_typedarray(env, value, &is) != napi_ok || !is) {
    return std::nullopt;
  }
  napi_typedarray_type type;
  size_t length = 0;
  void* data = nullptr;
  if (napi_get_typedarray_info(env, value, &type, &length, &data, nullptr, nullptr) != napi_ok ||
      type != napi_uint8_array) {
    return std::nullopt;
  }
  return std::make_pair(static_cast<uint8_t*>(data), length);
}

/** Numbers of a Uint32Array; a view that lives as long as the JavaScript value. */
inline std::optional<std::pair<uint32_t*, size_t>> get_uint32s(napi_env env, napi_value value) {
  bool is = false;
  if (value == nullptr || napi_is_typedarray(env, value, &is) != napi_ok || !is) {
    return std::nullopt;
  }
  napi_typedarray_type type;
  size_t length = 0;
  void* data = nullptr;
  if (napi_get_typedarray_info(env, value, &type, &length, &data, nullptr, nullptr) != napi_ok ||
      type != napi_uint32_array) {
    return std::nullopt;
  }
  return std::make_pair(static_cast<uint32_t*>(data), length);
}

inline void set_property(napi_env env, napi_value object, const char* name, napi_value value) {
  napi_set_named_property(env, object, name, value);
}

inline void export_function(napi_env env, napi_value exports, const char* name,
                            napi_callback callback) {
  napi_value function = nullptr;
  if (napi_create_function(env, name, NAPI_AUTO_LENGTH, callback, nullptr, &function) == napi_ok) {
    set_property(env, exports, name, function);
  }
}

/** Work for the thread pool. Derive, fill in `run`, hand to `run_job`. */
class Job {
 public:
  virtual ~Job() = default;
  /** On a pool thread; must not touch N-API. Calls `fail` on an error. */
  virtual void run() = 0;
  /** On the JavaScript thread after a run without error: what the promise resolves with. */
  virtual napi_value result(napi_env env) { return undefined(env); }
  /** On the JavaScript thread, after `run`, with or without error, before the promise settles. */
  virtual void settle(napi_env) {}
  /** A value that must stay alive until the job has ended, such as the Uint8Array it reads. */
  napi_ref keep = nullptr;

  bool failed() const { return error_ != 0; }

 protected:
  /** `error` is a positive errno; `what` says which step of what failed, without the errno's text.
   */
  void fail(int error, std::string what) {
    error_ = error;
    what_ = std::move(what);
  }

 private:
  friend napi_value run_job(napi_env, const char*, std::unique_ptr<Job>);
  friend void finish_job(napi_env, napi_status, void*);
  int error_ = 0;
  std::string what_;
  napi_deferred deferred_ = nullptr;
  napi_async_work work_ = nullptr;
};

inline void finish_job(napi_env env, napi_status, void* data) {
  std::unique_ptr<Job> job(static_cast<Job*>(data));
  napi_handle_scope scope;
  napi_open_handle_scope(env, &scope);
  job->settle(env);
  if (job->keep != nullptr) napi_delete_reference(env, job->keep);
  if (job->error_ != 0) {
    napi_value error =
        make_error(env, errno_name(job->error_), job->what_ + ": " + strerror(job->error_));
    set_property(env, error, "errno", make_number(env, job->error_));
    napi_reject_deferred(env, job->deferred_, error);
  } else {
    napi_resolve_deferred(env, job->deferred_, job->result(env));
  }
  napi_delete_async_work(env, job->work_);
  napi_close_handle_scope(env, scope);
}

/** Starts the job on the thread pool; returns its promise. */
inline napi_value run_job(napi_env env, const char* name, std::unique_ptr<Job> job) {
  napi_value promise = nullptr;
  if (napi_create_promise(env, &job->deferred_, &promise) != napi_ok) return nullptr;
  Job* raw = job.get();
  napi_status status = napi_create_async_work(
      env, nullptr, make_string(env, name),
      [](napi_env, void* data) { static_cast<Job*>(data)->run(); }, finish_job, raw, &raw->work_);
  if (status == napi_ok) status = napi_queue_async_work(env, raw->work_);
  if (status != napi_ok) {
    napi_reject_deferred(env, raw->deferred_, make_error(env, "EAGAIN", "no thread pool"));
    if (raw->work_ != nullptr) napi_delete_async_work(env, raw->work_);
    return promise;
  }
  job.release();  // finish_job owns it from here
  return promise;
}

}  // namespace firstlight::napi
