// The class Session of src/native/index.ts, and `probe`. Ownership stands in session_binding.h.
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mount.h>

#include <algorithm>
#include <memory>
#include <string>
#include <thread>

#include "napi_util.h"
#include "session_binding.h"

namespace firstlight {

namespace {

using napi::Call;

constexpr napi_type_tag kTag = {0x6669727374736573, 0x6c69676874736573};
// Lanes when nothing is said. More of them only compete for the same requests.
constexpr uint32_t kLanesMax = 4;
// An ordinary unmount waits so long for the session's end; a copy of the mount in another mount
// namespace can keep it alive beyond.
constexpr std::chrono::milliseconds kCloseBound{2000};
// So long an unmount is tried again while opens are watched.
constexpr std::chrono::milliseconds kWatchBound{200};
constexpr std::chrono::milliseconds kNextTry{2};
constexpr std::chrono::milliseconds kNoTime{0};

// Reads the options; on an error throws and returns false.
bool read_options(napi_env env, napi_value options, SessionBinding* b) {
  auto text = [&](const char* name) {
    return napi::get_string(env, napi::get_property(env, options, name));
  };
  auto number = [&](const char* name) {
    return napi::get_number(env, napi::get_property(env, options, name));
  };
  auto flag = [&](const char* name) {
    return napi::get_boolean(env, napi::get_property(env, options, name));
  };
  auto mount_point = text("mountPoint");
  auto source = text("source");
  auto threads = number("threads");
  auto timeout = number("waitTimeoutMs");
  auto passthrough = flag("passthrough");
  auto allow_other = flag("allowOther");
  napi_value given = napi::get_property(env, options, "writable");
  auto writable = napi::type_of(env, given) == napi_undefined ? std::optional<bool>(false)
                                                              : napi::get_boolean(env, given);
  const char* wrong = nullptr;
  if (!mount_point || mount_point->empty() || (*mount_point)[0] != '/')
    wrong = "mountPoint must be an absolute path";
  if (!source) wrong = "source must be a string";
  if (!threads || !(*threads >= 0 && *threads <= 64)) wrong = "threads must be 0 to 64";
  if (!timeout || !(*timeout >= 0 && *timeout <= 4294967295.0))
    wrong = "waitTimeoutMs must be 0 or more";
  if (!passthrough) wrong = "passthrough must be a boolean";
  if (!allow_other) wrong = "allowOther must be a boolean";
  if (!writable) wrong = "writable must be a boolean";
  const char* names[] = {"onWanted", "onTimeout", "onClosed"};
  for (size_t i = 0; i < std::size(names); i++) {
    napi_value callback = napi::get_property(env, options, names[i]);
    if (napi::type_of(env, callback) != napi_function) {
      wrong = "onWanted, onTimeout and onClosed must be functions";
    } else {
      napi_create_reference(env, callback, 1, &b->callbacks[i]);
    }
  }
  if (wrong != nullptr) {
    napi::throw_argument(env, std::string("options.") + wrong);
    return false;
  }
  b->mount.mount_point = *mount_point;
  b->mount.source = *source;
  b->mount.allow_other = *allow_other;
  b->mount.wanted.passthrough = *passthrough;
  b->mount.wanted.writable = *writable;
  b->mount.lanes = static_cast<uint32_t>(*threads);
  if (b->mount.lanes == 0) {
    b->mount.lanes = std::clamp(std::thread::hardware_concurrency(), 1u, kLanesMax);
  }
  b->wait_timeout_ms = static_cast<uint32_t>(*timeout);
  return true;
}

napi_value construct(napi_env env, napi_callback_info info) {
  Call<2> call(env, info);
  auto binding = std::make_unique<SessionBinding>();
  binding->env = env;
  binding->tree = unwrap_template(env, call.arguments[0]);
  if (binding->tree == nullptr || binding->tree->tree == nullptr) {
    return napi::throw_argument(env, "the first argument must be an open Template");
  }
  if (!read_options(env, call.arguments[1], binding.get())) return nullptr;
  binding->mount.wanted.posix_acl = binding->tree->tree->toc().has_acls();
  napi_create_reference(env, call.arguments[0], 1, &binding->tree_object);
  auto destroy = [](napi_env, void* data, void*) { delete static_cast<SessionBinding*>(data); };
  if (napi_wrap(env, call.self, binding.get(), destroy, nullptr, nullptr) != napi_ok ||
      napi_type_tag_object(env, call.self, &kTag) != napi_ok) {
    return napi::throw_argument(env, "Session must be called with new");
  }
  double channel = 0;
  if (binding->mount.wanted.writable) {
    binding->channel = UpcallChannel::make();
    channel = binding->channel->number();
  }
  napi::set_property(env, call.self, "channel", napi::make_number(env, channel));
  binding.release();  // the JavaScript object owns it
  return call.self;
}

/** Mounts on the thread pool and starts the threads there: the kernel's first requests do not wait
 * for JavaScript. */
class StartJob : public napi::Job {
 public:
  explicit StartJob(SessionBinding* binding)
      : binding_(binding), tree_(binding->tree->tree), opens_(binding->opens) {}

  void run() override {
    int error = 0;
    std::string what;
    auto transport = DevTransport::mount(binding_->mount, &features_, &error, &what);
    if (transport == nullptr) return fail(error, what);
    session_ = std::make_shared<Session>(
        tree_, std::move(transport), features_, binding_->wait_timeout_ms, binding_,
        BackingTable::kIdleMax, binding_->trace, binding_->channel);
    session_->set_open_mode(opens_);
    session_->run();
  }

  void settle(napi_env) override {
    if (failed()) {
      binding_->let_go();
      return;
    }
    features_ = session_->features();
    // It may have been told anew meanwhile.
    session_->set_open_mode(binding_->opens);
    binding_->began(std::move(session_));
  }

  napi_value result(napi_env env) override {
    const Features& used = features_;
    napi_value object = nullptr;
    napi_create_object(env, &object);
    napi::set_property(env, object, "protocol", napi::make_string(env, used.protocol()));
    napi::set_property(env, object, "transport", napi::make_string(env, "dev-fuse"));
    napi::set_property(env, object, "passthrough", napi::make_boolean(env, used.passthrough));
    napi::set_property(env, object, "directIoAllowMmap",
                       napi::make_boolean(env, used.direct_io_allow_mmap));
    napi::set_property(env, object, "threads", napi::make_number(env, used.threads));
    return object;
  }

 private:
  SessionBinding* binding_;
  std::shared_ptr<Template> tree_;
  std::shared_ptr<Session> session_;
  Features features_;
  OpenMode opens_;
};

napi_value start(napi_env env, napi_callback_info info) {
  Call<0> call(env, info);
  SessionBinding* binding = unwrap_session(env, call.self);
  if (binding == nullptr) return nullptr;
  if (binding->state != SessionBinding::kNew) {
    return napi::throw_error(env, "EALREADY", "the session was started before");
  }
  if (binding->tree->tree == nullptr) {
    return napi::throw_error(env, "EBADF", "the template is closed");
  }
  if (!binding->open_channel()) return napi::throw_error(env, "EAGAIN", "no threadsafe function");
  binding->state = SessionBinding::kStarting;
  binding->tree->sessions++;
  napi_create_reference(env, call.self, 1, &binding->self);
  return napi::run_job(env, "firstlight start", std::make_unique<StartJob>(binding));
}

class UnmountJob : public napi::Job {
 public:
  UnmountJob(SessionBinding* binding, bool detach)
      : binding_(binding),
        session_(binding->session),
        path_(binding->mount.mount_point),
        detach_(detach) {}

  void run() override {
    if (session_->wait_closed(std::chrono::milliseconds(0))) return;
    if (int error = unmounted(); error != 0) {
      // Unmounted by somebody else at the same moment.
      if (error == EINVAL && session_->wait_closed(kCloseBound)) return;
      return fail(error, "umount " + path_);
    }
    if (detach_) session_->refuse_waits();
    session_->wait_closed(detach_ ? std::chrono::milliseconds(50) : kCloseBound);
  }

  // onClosed is heard before the promise resolves.
  void settle(napi_env) override {
    session_.reset();
    binding_->hear_if_closed();
  }

 private:
  // 0 or a positive errno. An open that is just being recorded holds the mount for a moment.
  int unmounted() {
    auto until = Clock::now() + (session_->watches_opens() ? kWatchBound : kNoTime);
    while (umount2(path_.c_str(), detach_ ? MNT_DETACH : 0) != 0) {
      if (errno != EBUSY || Clock::now() >= until) return errno;
      std::this_thread::sleep_for(kNextTry);
    }
    return 0;
  }

  SessionBinding* binding_;
  std::shared_ptr<Session> session_;
  std::string path_;
  bool detach_;
};

class AbortJob : public napi::Job {
 public:
  explicit AbortJob(SessionBinding* binding)
      : binding_(binding), session_(binding->session), path_(binding->mount.mount_point) {}

  void run() override {
    if (session_->wait_closed(std::chrono::milliseconds(0))) return;
    // Fails where it was detached before; the session is ended all the same.
    umount2(path_.c_str(), MNT_DETACH);
    session_->abort();
  }

  void settle(napi_env) override {
    session_.reset();
    binding_->hear_if_closed();
  }

 private:
  SessionBinding* binding_;
  std::shared_ptr<Session> session_;
  std::string path_;
};

napi_value resolved(napi_env env) {
  napi_deferred deferred = nullptr;
  napi_value promise = nullptr;
  napi_create_promise(env, &deferred, &promise);
  napi_resolve_deferred(env, deferred, napi::undefined(env));
  return promise;
}

napi_value unmount(napi_env env, napi_callback_info info) {
  Call<1> call(env, info);
  SessionBinding* binding = unwrap_session(env, call.self);
  if (binding == nullptr) return nullptr;
  if (binding->state == SessionBinding::kClosed) return resolved(env);
  if (binding->session == nullptr) return napi::throw_error(env, "EINVAL", "not mounted");
  bool detach = napi::get_boolean(env, call.arguments[0]).value_or(false);
  auto job = std::make_unique<UnmountJob>(binding, detach);
  napi_create_reference(env, call.self, 1, &job->keep);
  return napi::run_job(env, "firstlight unmount", std::move(job));
}

napi_value abort_session(napi_env env, napi_callback_info info) {
  Call<0> call(env, info);
  SessionBinding* binding = unwrap_session(env, call.self);
  if (binding == nullptr) return nullptr;
  if (binding->session == nullptr) return resolved(env);
  auto job = std::make_unique<AbortJob>(binding);
  napi_create_reference(env, call.self, 1, &job->keep);
  return napi::run_job(env, "firstlight abort", std::move(job));
}

napi_value stats(napi_env env, napi_callback_info info) {
  Call<0> call(env, info);
  SessionBinding* binding = unwrap_session(env, call.self);
  if (binding == nullptr) return nullptr;
  napi_value object = nullptr;
  napi_create_object(env, &object);
  SessionStats now = binding->stats();
  auto put = [&](const char* name, double value) {
    napi::set_property(env, object, name, napi::make_number(env, value));
  };
  put("lookups", static_cast<double>(now.lookups));
  put("opens", static_cast<double>(now.opens));
  put("passthroughOpens", static_cast<double>(now.passthrough_opens));
  put("reads", static_cast<double>(now.reads));
  put("bytesRead", static_cast<double>(now.bytes_read));
  put("waits", static_cast<double>(now.waits));
  put("waitedMs", static_cast<double>(now.waited_us) / 1000);
  put("interrupted", static_cast<double>(now.interrupted));
  put("timeouts", static_cast<double>(now.timeouts));
  put("firstReadAt", static_cast<double>(now.first_read_ms));
  napi::set_property(env, object, "opensUnseen", napi::make_boolean(env, now.opens_unseen));
  return object;
}

napi_value set_tracing(napi_env env, napi_callback_info info) {
  Call<1> call(env, info);
  SessionBinding* binding = unwrap_session(env, call.self);
  if (binding == nullptr) return nullptr;
  auto on = napi::get_boolean(env, call.arguments[0]);
  if (!on) return napi::throw_argument(env, "setTracing takes a boolean");
  if (!*on) {
    binding->trace->stop();
  } else if (binding->tree->tree == nullptr) {
    return napi::throw_error(env, "EBADF", "the template is closed");
  } else {
    binding->trace->start(binding->tree->tree->toc());
  }
  return napi::undefined(env);
}

napi_value set_opens(napi_env env, napi_callback_info info) {
  Call<1> call(env, info);
  SessionBinding* binding = unwrap_session(env, call.self);
  if (binding == nullptr) return nullptr;
  double number = napi::get_number(env, call.arguments[0]).value_or(-1);
  if (number != 0 && number != 1 && number != 2) {
    return napi::throw_argument(env, "setOpens takes 0, 1 or 2");
  }
  if (binding->mount.wanted.writable) {
    return napi::throw_argument(env, "a writable session sees all opens");
  }
  binding->opens = static_cast<OpenMode>(number);
  bool seen = binding->session == nullptr || binding->session->set_open_mode(binding->opens);
  return napi::make_boolean(env, seen);
}

napi_value take_trace(napi_env env, napi_callback_info info) {
  Call<0> call(env, info);
  SessionBinding* binding = unwrap_session(env, call.self);
  if (binding == nullptr) return nullptr;
  AccessTrace::Taken taken = binding->trace->take();
  size_t bytes = taken.records.size() * sizeof(AccessRecord);
  void* data = nullptr;
  napi_value records = nullptr;
  if (napi_create_arraybuffer(env, bytes, &data, &records) != napi_ok) {
    return napi::throw_error(env, "ENOMEM", "no memory for the records of a trace");
  }
  if (bytes != 0) memcpy(data, taken.records.data(), bytes);
  napi_value object = nullptr;
  napi_create_object(env, &object);
  napi::set_property(env, object, "records", records);
  napi::set_property(env, object, "lost", napi::make_number(env, static_cast<double>(taken.lost)));
  return object;
}

napi_value probe(napi_env env, napi_callback_info) {
  UniqueFd device(open("/dev/fuse", O_RDWR | O_CLOEXEC));
  int error = errno;
  napi_value object = nullptr;
  napi_create_object(env, &object);
  napi::set_property(env, object, "devFuse", napi::make_boolean(env, static_cast<bool>(device)));
  napi::set_property(
      env, object, "error",
      device ? napi::undefined(env)
             : napi::make_string(env, std::string("open /dev/fuse: ") + strerror(error)));
  return object;
}

}  // namespace

SessionBinding* unwrap_session(napi_env env, napi_value self) {
  bool is = false;
  void* data = nullptr;
  if (napi::type_of(env, self) != napi_object ||
      napi_check_object_type_tag(env, self, &kTag, &is) != napi_ok || !is ||
      napi_unwrap(env, self, &data) != napi_ok) {
    napi::throw_argument(env, "not a Session");
    return nullptr;
  }
  return static_cast<SessionBinding*>(data);
}

void init_session(napi_env env, napi_value exports) {
  auto method = [](const char* name, napi_callback callback) {
    return napi_property_descriptor{name,    nullptr, callback,     nullptr,
                                    nullptr, nullptr, napi_default, nullptr};
  };
  const napi_property_descriptor methods[] = {
      method("start", start),
      method("unmount", unmount),
      method("abort", abort_session),
      method("stats", stats),
      method("setTracing", set_tracing),
      method("takeTrace", take_trace),
      method("setOpens", set_opens),
      method("watchOpens", watch_opens),
      method("unwatchOpens", unwatch_opens),
      method("forgetReads", forget_reads),
  };
  napi_value made = nullptr;
  if (napi_define_class(env, "Session", NAPI_AUTO_LENGTH, construct, nullptr, std::size(methods),
                        methods, &made) == napi_ok) {
    napi::set_property(env, exports, "Session", made);
  }
  napi::export_function(env, exports, "probe", probe);
}

}  // namespace firstlight
