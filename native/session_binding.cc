// Events, and the ends that nobody asked for.
#include "session_binding.h"

#include <sys/mount.h>

#include <algorithm>
#include <cstdlib>
#include <initializer_list>
#include <mutex>
#include <vector>

#include "napi_util.h"

namespace firstlight {

namespace {

/**
 * Mount points to detach when the process ends by exit(3), as process.exit() does: environments are
 * not cleaned up then, and a mount whose process is gone answers every path with ENOTCONN.
 */
class ExitList {
 public:
  static void add(const std::string& mount_point) {
    std::lock_guard lock(mutex());
    list().push_back(mount_point);
    static const bool registered = std::atexit(detach_all) == 0;
    (void)registered;  // without it, nothing worse than a dead mount
  }
  static void remove(const std::string& mount_point) {
    std::lock_guard lock(mutex());
    auto found = std::find(list().begin(), list().end(), mount_point);
    if (found != list().end()) list().erase(found);
  }

 private:
  static void detach_all() {
    std::lock_guard lock(mutex());
    for (const std::string& mount_point : list()) umount2(mount_point.c_str(), MNT_DETACH);
  }
  // Never destroyed: exit handlers and threads may come after destructors.
  static std::mutex& mutex() {
    static auto* made = new std::mutex();
    return *made;
  }
  static std::vector<std::string>& list() {
    static auto* made = new std::vector<std::string>();
    return *made;
  }
};

// Calls one of the callbacks. What it throws ends the process, as an uncaught exception does.
void call_back(napi_env env, napi_ref callback, std::initializer_list<napi_value> arguments) {
  napi_value function = nullptr;
  napi_value result = nullptr;
  napi_get_reference_value(env, callback, &function);
  if (napi_call_function(env, napi::undefined(env), function, arguments.size(), arguments.begin(),
                         &result) == napi_pending_exception) {
    napi_value error = nullptr;
    napi_get_and_clear_last_exception(env, &error);
    napi_fatal_exception(env, error);
  }
}

}  // namespace

SessionBinding::~SessionBinding() {
  if (tree_object != nullptr) napi_delete_reference(env, tree_object);
  for (napi_ref callback : callbacks) {
    if (callback != nullptr) napi_delete_reference(env, callback);
  }
}

void SessionBinding::wanted(uint32_t content, uint32_t first, uint32_t last) {
  post(new Event{Event::kWanted, content, first, last, 0, {}});
}

void SessionBinding::timed_out(uint32_t content, double waited_ms) {
  post(new Event{Event::kTimeout, content, 0, 0, waited_ms, {}});
}

void SessionBinding::closed(const std::string& error) {
  post(new Event{Event::kClosed, 0, 0, 0, 0, error});
}

void SessionBinding::post(Event* event) {
  // Fails only while the environment goes down; nobody is left to hear it.
  if (napi_call_threadsafe_function(channel_, event, napi_tsfn_nonblocking) != napi_ok) {
    delete event;
  }
}

bool SessionBinding::open_channel() {
  napi_value name = napi::make_string(env, "firstlight session");
  if (napi_create_threadsafe_function(env, nullptr, nullptr, name, 0, 1, nullptr, channel_gone,
                                      this, deliver, &channel_) != napi_ok) {
    return false;
  }
  // After the channel, so that at the environment's end this runs before the channel goes.
  napi_add_env_cleanup_hook(env, forgotten, this);
  return true;
}

// The last event has been delivered: the object may be collected.
void SessionBinding::channel_gone(napi_env env, void*, void* context) {
  auto* binding = static_cast<SessionBinding*>(context);
  if (binding->self != nullptr) napi_delete_reference(env, std::exchange(binding->self, nullptr));
}

void SessionBinding::close_channel() {
  if (channel_ == nullptr) return;
  napi_remove_env_cleanup_hook(env, forgotten, this);
  napi_release_threadsafe_function(channel_, napi_tsfn_release);
  channel_ = nullptr;
}

void SessionBinding::began(std::shared_ptr<Session> started) {
  session = std::move(started);
  state = kMounted;
  ExitList::add(mount.mount_point);
  // Unmounted before the promise could resolve: its event came first.
  if (closed_early_ != nullptr) hear_closed(std::move(closed_early_));
}

void SessionBinding::let_go() {
  if (session != nullptr) {
    session->join();
    last_ = session->counters().read();
    session.reset();
    ExitList::remove(mount.mount_point);
  }
  if (state == kStarting || state == kMounted) tree->sessions--;
  state = kClosed;
  close_channel();
}

void SessionBinding::hear_if_closed() {
  if (state != kMounted || session == nullptr) return;
  if (!session->wait_closed(std::chrono::milliseconds(0))) return;
  hear_closed(std::make_unique<Event>(Event{Event::kClosed, 0, 0, 0, 0, session->error()}));
}

// `env` is null where the environment is going down.
void SessionBinding::deliver(napi_env env, napi_value, void* context, void* data) {
  auto* binding = static_cast<SessionBinding*>(context);
  std::unique_ptr<Event> event(static_cast<Event*>(data));
  if (env == nullptr) return;
  switch (event->kind) {
    case Event::kWanted:
      return call_back(env, binding->callbacks[0],
                       {napi::make_number(env, event->content),
                        napi::make_number(env, event->first), napi::make_number(env, event->last)});
    case Event::kTimeout:
      return call_back(
          env, binding->callbacks[1],
          {napi::make_number(env, event->content), napi::make_number(env, event->waited_ms)});
    case Event::kClosed:
      if (binding->state == kStarting) {
        binding->closed_early_ = std::move(event);
      } else if (binding->state == kMounted) {
        binding->hear_closed(std::move(event));
      }
  }
}

void SessionBinding::hear_closed(std::unique_ptr<Event> event) {
  let_go();
  call_back(env, callbacks[2],
            {event->error.empty() ? napi::undefined(env) : napi::make_string(env, event->error)});
}

// Environment cleanup: the process or its worker thread ends with the mount still there. Lazily, so
// that it cannot fail; who still uses the mount gets errors from now on.
void SessionBinding::forgotten(void* data) {
  auto* binding = static_cast<SessionBinding*>(data);
  if (binding->session == nullptr) return;
  if (!binding->session->wait_closed(std::chrono::milliseconds(0))) {
    umount2(binding->mount.mount_point.c_str(), MNT_DETACH);
    binding->session->abort();
  }
  ExitList::remove(binding->mount.mount_point);
  binding->session->join();
  binding->session.reset();
}

}  // namespace firstlight
