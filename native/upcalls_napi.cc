// The class Upcalls of src/native/upcalls.ts: the tree's end of a channel.
//
// Everything here runs on the JavaScript thread that made the object, except the channel's wake-up,
// which any native thread calls. Requests wait in the channel; a wake-up says only that there are
// some. The object stays, and keeps its thread alive, until `close` or the thread's end.
#include "upcalls_napi.h"

#include <errno.h>
#include <node_api.h>
#include <string.h>

#include <map>
#include <memory>
#include <string>
#include <utility>

#include "napi_util.h"
#include "upcall_reply.h"

namespace firstlight {

namespace {

constexpr napi_type_tag kTag = {0x6669727374757063, 0x6c69676874757063};
// Requests handed over before other work of the thread's loop has its turn.
constexpr int kBatch = 64;

napi_value latin1(napi_env env, const std::string& text) {
  napi_value value = nullptr;
  napi_create_string_latin1(env, text.data(), text.size(), &value);
  return value;
}

void call_handler(UpcallsBinding* b, const std::shared_ptr<Upcall>& upcall) {
  napi_env env = b->env;
  if (upcall->fd) upcall->numbers[Upcall::kArg] = upcall->fd.release();
  memcpy(b->slots, upcall->numbers, sizeof upcall->numbers);
  napi_value handler = nullptr;
  napi_value arguments[5] = {napi::make_number(env, static_cast<double>(upcall->call)), nullptr,
                             latin1(env, upcall->name), latin1(env, upcall->name2),
                             napi::undefined(env)};
  napi_get_reference_value(env, b->handler, &handler);
  napi_get_reference_value(env, b->numbers, &arguments[1]);
  if (upcall->has_value) {
    void* copy = nullptr;
    napi_create_buffer_copy(env, upcall->value.size(), upcall->value.data(), &copy, &arguments[4]);
  }
  napi_value result = nullptr;
  std::shared_ptr<UpcallChannel> channel = b->channel;
  napi_status status =
      napi_call_function(env, napi::undefined(env), handler, 5, arguments, &result);
  if (status == napi_pending_exception) {
    // A fault of the tree's: the program gets an error, the thread what an uncaught exception is.
    if (upcall->call != 0) reply_result(*channel, upcall->call, EIO);
    napi_value error = nullptr;
    napi_get_and_clear_last_exception(env, &error);
    napi_fatal_exception(env, error);
  }
  if (upcall->call != 0) channel->hold(upcall);
}

// What it asks for is what removed files hold, too.
bool tells_of_space(const Upcall& upcall) {
  return upcall.opcode == FUSE_STATFS || upcall.opcode == FUSE_SYNCFS;
}

// A request, after all that lanes have done before it.
void call_for_request(UpcallsBinding* b, const std::shared_ptr<Upcall>& upcall) {
  std::shared_ptr<UpcallChannel> channel = b->channel;
  // What there is by now, while lanes may go on: to enter it asks nothing of the layer. Inside,
  // only what has come meanwhile is left.
  for (size_t left = channel->news(); left > 0; left--) {
    if (auto news = channel->take_news()) call_handler(b, news);
  }
  TreeInside inside(channel->gate());
  while (auto news = channel->take_news()) call_handler(b, news);
  // Not before: they may be of files that it has just heard of.
  if (tells_of_space(*upcall)) {
    while (auto forgets = channel->take_forgets()) call_handler(b, forgets);
  }
  // The handler has closed it, should it have died over the news.
  if (b->channel != nullptr) call_handler(b, upcall);
}

void deliver(napi_env env, napi_value, void* context, void*) {
  auto* b = static_cast<UpcallsBinding*>(context);
  if (env == nullptr) return;
  for (int i = 0; i < kBatch; i++) {
    if (b->channel == nullptr) return;
    std::shared_ptr<Upcall> next = b->channel->take_next();
    if (next == nullptr) return;
    napi_handle_scope scope;
    napi_open_handle_scope(env, &scope);
    if (next->numbers[0] == 0) {
      settle_upcalls(b, static_cast<uint64_t>(next->numbers[1]));
    } else if (next->call == 0) {
      call_handler(b, next);
    } else {
      call_for_request(b, next);
    }
    napi_close_handle_scope(env, scope);
  }
  // The channel wakes nobody as long as it was not seen empty.
  if (b->wake != nullptr) napi_call_threadsafe_function(b->wake, nullptr, napi_tsfn_nonblocking);
}

// The thread ends without a `close`: nobody answers any more.
void environment_ends(void* data) {
  auto* b = static_cast<UpcallsBinding*>(data);
  if (b->channel == nullptr) return;
  std::exchange(b->channel, nullptr)->detach();
}

void wake_gone(napi_env env, void*, void* context) {
  auto* b = static_cast<UpcallsBinding*>(context);
  // The handler knows the object: what is held here would keep both, and the tree behind them, for
  // ever.
  for (napi_ref* reference : {&b->self, &b->handler, &b->numbers}) {
    if (*reference != nullptr) napi_delete_reference(env, std::exchange(*reference, nullptr));
  }
}

bool make_numbers(napi_env env, UpcallsBinding* b) {
  napi_value buffer = nullptr;
  napi_value array = nullptr;
  void* data = nullptr;
  if (napi_create_arraybuffer(env, Upcall::kSlots * sizeof(double), &data, &buffer) != napi_ok ||
      napi_create_typedarray(env, napi_float64_array, Upcall::kSlots, buffer, 0, &array) !=
          napi_ok) {
    return false;
  }
  b->slots = static_cast<double*>(data);
  return napi_create_reference(env, array, 1, &b->numbers) == napi_ok;
}

void destroy(napi_env env, void* data, void*) {
  auto* b = static_cast<UpcallsBinding*>(data);
  for (napi_ref reference : {b->handler, b->numbers}) {
    if (reference != nullptr) napi_delete_reference(env, reference);
  }
  delete b;
}

napi_value construct(napi_env env, napi_callback_info info) {
  napi::Call<2> call(env, info);
  auto number = napi::get_number(env, call.arguments[0]);
  auto channel = number ? UpcallChannel::find(*number) : nullptr;
  if (channel == nullptr) {
    return napi::throw_argument(env, "the channel must be that of a writable session");
  }
  if (napi::type_of(env, call.arguments[1]) != napi_function) {
    return napi::throw_argument(env, "the handler must be a function");
  }
  auto made = std::make_unique<UpcallsBinding>();
  made->env = env;
  if (!make_numbers(env, made.get())) return napi::throw_error(env, "ENOMEM", "no memory");
  napi_create_reference(env, call.arguments[1], 1, &made->handler);
  UpcallsBinding* b = made.get();
  if (napi_wrap(env, call.self, b, destroy, nullptr, nullptr) != napi_ok ||
      napi_type_tag_object(env, call.self, &kTag) != napi_ok) {
    return napi::throw_argument(env, "Upcalls must be called with new");
  }
  made.release();  // the JavaScript object owns it
  if (napi_create_threadsafe_function(env, nullptr, nullptr,
                                      napi::make_string(env, "firstlight upcalls"), 0, 1, nullptr,
                                      wake_gone, b, deliver, &b->wake) != napi_ok) {
    return napi::throw_error(env, "EAGAIN", "no threadsafe function");
  }
  // The channel calls it under its lock, and not after `detach`.
  bool attached = channel->attach(
      [wake = b->wake] { napi_call_threadsafe_function(wake, nullptr, napi_tsfn_nonblocking); });
  if (!attached) {
    napi_release_threadsafe_function(std::exchange(b->wake, nullptr), napi_tsfn_release);
    return napi::throw_error(env, "EBUSY", "the channel has an Upcalls already");
  }
  b->channel = std::move(channel);
  napi_create_reference(env, call.self, 1, &b->self);
  napi_add_env_cleanup_hook(env, environment_ends, b);
  return call.self;
}

}  // namespace

void settle_upcalls(UpcallsBinding* b, uint64_t mark) {
  auto found = b->invalidations.find(mark);
  if (found == b->invalidations.end()) return;
  napi_resolve_deferred(b->env, found->second, napi::undefined(b->env));
  b->invalidations.erase(found);
}

void close_upcalls(UpcallsBinding* b) {
  if (b->channel == nullptr) return;
  auto channel = std::exchange(b->channel, nullptr);
  channel->detach();
  while (!b->invalidations.empty()) settle_upcalls(b, b->invalidations.begin()->first);
  napi_remove_env_cleanup_hook(b->env, environment_ends, b);
  napi_release_threadsafe_function(std::exchange(b->wake, nullptr), napi_tsfn_release);
}

UpcallsBinding* unwrap_upcalls(napi_env env, napi_value self) {
  bool is = false;
  void* data = nullptr;
  if (napi::type_of(env, self) != napi_object ||
      napi_check_object_type_tag(env, self, &kTag, &is) != napi_ok || !is ||
      napi_unwrap(env, self, &data) != napi_ok) {
    napi::throw_argument(env, "not an Upcalls");
    return nullptr;
  }
  return static_cast<UpcallsBinding*>(data);
}

void init_upcalls(napi_env env, napi_value exports) {
  const std::vector<napi_property_descriptor> methods = upcalls_methods();
  napi_value made = nullptr;
  if (napi_define_class(env, "Upcalls", NAPI_AUTO_LENGTH, construct, nullptr, methods.size(),
                        methods.data(), &made) == napi_ok) {
    napi::set_property(env, exports, "Upcalls", made);
  }
}

}  // namespace firstlight
