// Methods of the class Session of src/native/index.ts that hear of what the kernel does alone. They
// may wait for requests of the session, and so run on the thread pool.
#include <functional>
#include <memory>
#include <string>
#include <utility>

#include "napi_util.h"
#include "session_binding.h"

namespace firstlight {

namespace {

/** `work` returns 0, or a positive errno with the step that failed. */
using Work = std::function<int(Session&, std::string*)>;

class WatchJob : public napi::Job {
 public:
  WatchJob(std::shared_ptr<Session> session, Work work)
      : session_(std::move(session)), work_(std::move(work)) {}

  void run() override {
    std::string what;
    int error = work_(*session_, &what);
    if (error != 0) fail(error, what);
  }

  void settle(napi_env) override { session_.reset(); }

 private:
  std::shared_ptr<Session> session_;
  Work work_;
};

// `self` is kept alive, and the session with it. Of one that has ended there is nothing to hear.
napi_value run_on_pool(napi_env env, napi_value self, bool needs_session, Work work) {
  SessionBinding* binding = unwrap_session(env, self);
  if (binding == nullptr) return nullptr;
  if (binding->session == nullptr) {
    if (needs_session) return napi::throw_error(env, "EINVAL", "not mounted");
    napi_deferred deferred = nullptr;
    napi_value promise = nullptr;
    napi_create_promise(env, &deferred, &promise);
    napi_resolve_deferred(env, deferred, napi::undefined(env));
    return promise;
  }
  auto job = std::make_unique<WatchJob>(binding->session, std::move(work));
  napi_create_reference(env, self, 1, &job->keep);
  return napi::run_job(env, "firstlight watch", std::move(job));
}

}  // namespace

napi_value watch_opens(napi_env env, napi_callback_info info) {
  napi::Call<0> call(env, info);
  SessionBinding* binding = unwrap_session(env, call.self);
  if (binding == nullptr) return nullptr;
  return run_on_pool(env, call.self, true,
                     [path = binding->mount.mount_point](Session& session, std::string* what) {
                       return session.watch_opens(path, what);
                     });
}

napi_value unwatch_opens(napi_env env, napi_callback_info info) {
  napi::Call<0> call(env, info);
  return run_on_pool(env, call.self, false, [](Session& session, std::string*) {
    session.unwatch_opens();
    return 0;
  });
}

napi_value forget_reads(napi_env env, napi_callback_info info) {
  napi::Call<0> call(env, info);
  return run_on_pool(env, call.self, false, [](Session& session, std::string*) {
    session.forget_reads();
    return 0;
  });
}

}  // namespace firstlight
