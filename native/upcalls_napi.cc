// The class Upcalls of src/native/upcalls.ts: the tree's end of a channel.
//
// Everything here runs on the JavaScript thread that made the object, except the channel's wake-up,
// which any native thread calls. Requests wait in the channel; a wake-up says only that there are
// some. The object stays, and keeps its thread alive, until `close` or the thread's end.
#include <errno.h>
#include <node_api.h>
#include <string.h>

#include <cmath>
#include <map>
#include <memory>
#include <string>
#include <utility>

#include "napi_util.h"
#include "session.h"
#include "upcall_reply.h"
#include "upcalls.h"

namespace firstlight {

namespace {

constexpr napi_type_tag kTag = {0x6669727374757063, 0x6c69676874757063};
// Requests handed over before other work of the thread's loop has its turn.
constexpr int kBatch = 64;

struct UpcallsBinding {
  napi_env env = nullptr;
  std::shared_ptr<UpcallChannel> channel;  // nullptr once it is closed
  napi_threadsafe_function wake = nullptr;
  napi_ref handler = nullptr;
  napi_ref self = nullptr;
  napi_ref numbers = nullptr;  // the Float64Array that the handler gets
  double* slots = nullptr;
  std::map<uint64_t, napi_deferred> invalidations;
  uint64_t next_mark = 1;
};

napi_value latin1(napi_env env, const std::string& text) {
  napi_value value = nullptr;
  napi_create_string_latin1(env, text.data(), text.size(), &value);
  return value;
}

void settle(UpcallsBinding* b, uint64_t mark) {
  auto found = b->invalidations.find(mark);
  if (found == b->invalidations.end()) return;
  napi_resolve_deferred(b->env, found->second, napi::undefined(b->env));
  b->invalidations.erase(found);
}

void call_handler(UpcallsBinding* b, const std::shared_ptr<Upcall>& upcall) {
  napi_env env = b->env;
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
      settle(b, static_cast<uint64_t>(next->numbers[1]));
    } else {
      call_handler(b, next);
    }
    napi_close_handle_scope(env, scope);
  }
  // The channel wakes nobody as long as it was not seen empty.
  if (b->wake != nullptr) napi_call_threadsafe_function(b->wake, nullptr, napi_tsfn_nonblocking);
}

void environment_ends(void* data);

void close_binding(UpcallsBinding* b) {
  if (b->channel == nullptr) return;
  auto channel = std::exchange(b->channel, nullptr);
  channel->detach();
  while (!b->invalidations.empty()) settle(b, b->invalidations.begin()->first);
  napi_remove_env_cleanup_hook(b->env, environment_ends, b);
  napi_release_threadsafe_function(std::exchange(b->wake, nullptr), napi_tsfn_release);
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

UpcallsBinding* unwrap(napi_env env, napi_value self) {
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

/** One method call: the object, and arguments read in their order. */
class Method {
 public:
  Method(napi_env env, napi_callback_info info) : env_(env), call_(env, info) {
    binding_ = unwrap(env, call_.self);
  }
  /** False where it is no Upcalls: an exception is pending then. */
  explicit operator bool() const { return binding_ != nullptr; }
  UpcallsBinding* binding() const { return binding_; }
  /** nullptr once it is closed. */
  UpcallChannel* channel() const { return binding_->channel.get(); }
  std::shared_ptr<Session> session() const {
    return channel() == nullptr ? nullptr : channel()->session();
  }

  double number() {
    auto value = napi::get_number(env_, call_.arguments[next_++]);
    if (!value || std::isnan(*value)) return wrong("a number"), 0;
    return *value;
  }
  uint64_t whole() {
    double value = number();
    if (value < 0 || value > 9007199254740992.0) return wrong("a whole number"), 0;
    return static_cast<uint64_t>(value);
  }
  int integer() {
    double value = number();
    if (!(value >= -2147483648.0 && value <= 2147483647.0)) return wrong("an integer"), 0;
    return static_cast<int>(value);
  }
  std::string name() {
    napi_value value = call_.arguments[next_++];
    size_t length = 0;
    if (napi_get_value_string_latin1(env_, value, nullptr, 0, &length) != napi_ok) {
      return wrong("a string"), std::string();
    }
    std::string text(length, '\0');
    napi_get_value_string_latin1(env_, value, text.data(), length + 1, &length);
    return text;
  }
  const double* slots(size_t least) {
    bool is = false;
    napi_value value = call_.arguments[next_++];
    napi_typedarray_type type = napi_int8_array;
    size_t length = 0;
    void* data = nullptr;
    if (napi::type_of(env_, value) == napi_object &&
        napi_is_typedarray(env_, value, &is) == napi_ok && is) {
      napi_get_typedarray_info(env_, value, &type, &length, &data, nullptr, nullptr);
    }
    static const double kNothing[kAttrSlots] = {};
    if (type != napi_float64_array || length < least) return wrong("a Float64Array"), kNothing;
    return static_cast<const double*>(data);
  }
  std::pair<const uint8_t*, size_t> bytes() {
    auto value = napi::get_bytes(env_, call_.arguments[next_++]);
    if (!value) return wrong("a Uint8Array"), std::pair<const uint8_t*, size_t>(nullptr, 0);
    return *value;
  }
  /** Throws and returns true where an argument was wrong. */
  bool bad() {
    if (wrong_.empty()) return false;
    napi::throw_argument(env_, wrong_);
    return true;
  }
  napi_value answer(bool flag) const { return napi::make_boolean(env_, flag); }
  napi_value nothing() const { return napi::undefined(env_); }

 private:
  void wrong(const char* wanted) {
    if (wrong_.empty()) wrong_ = "argument " + std::to_string(next_) + " must be " + wanted;
  }
  napi_env env_;
  napi::Call<8> call_;
  UpcallsBinding* binding_;
  size_t next_ = 0;
  std::string wrong_;
};

napi_value thaw(napi_env env, napi_callback_info info) {
  Method m(env, info);
  if (!m) return nullptr;
  uint64_t node = m.whole();
  if (m.bad()) return nullptr;
  if (m.channel() != nullptr) m.channel()->thaw(node);
  return m.nothing();
}

napi_value open_handles(napi_env env, napi_callback_info info) {
  Method m(env, info);
  if (!m) return nullptr;
  uint64_t node = m.whole();
  if (m.bad()) return nullptr;
  auto session = m.session();
  return napi::make_number(env, session == nullptr ? 0 : session->handles().opens(node));
}

napi_value open_template(napi_env env, napi_callback_info info) {
  Method m(env, info);
  if (!m) return nullptr;
  uint64_t call = m.whole();
  if (m.bad()) return nullptr;
  if (m.channel() != nullptr) reply_from_template(*m.channel(), call);
  return m.nothing();
}

napi_value wait_for_content(napi_env env, napi_callback_info info) {
  Method m(env, info);
  if (!m) return nullptr;
  uint64_t call = m.whole();
  uint64_t content = m.whole();
  if (m.bad()) return nullptr;
  auto session = m.session();
  if (session == nullptr) return m.nothing();
  if (content >= session->toc().contents()) {
    return napi::throw_argument(env, "there is no such content");
  }
  m.channel()->wait_for_content(call, static_cast<uint32_t>(content));
  return m.nothing();
}

napi_value again(napi_env env, napi_callback_info info) {
  Method m(env, info);
  if (!m) return nullptr;
  uint64_t call = m.whole();
  if (m.bad()) return nullptr;
  if (m.channel() != nullptr) m.channel()->again(call);
  return m.nothing();
}

napi_value reply_error_(napi_env env, napi_callback_info info) {
  Method m(env, info);
  if (!m) return nullptr;
  uint64_t call = m.whole();
  int error = m.integer();
  if (m.bad()) return nullptr;
  // The kernel drops a reply with any other number, and its caller waits for ever.
  if (error <= 0 || error >= 512) error = EIO;
  return m.answer(m.channel() != nullptr && reply_result(*m.channel(), call, error));
}

napi_value reply_ok(napi_env env, napi_callback_info info) {
  Method m(env, info);
  if (!m) return nullptr;
  uint64_t call = m.whole();
  if (m.bad()) return nullptr;
  return m.answer(m.channel() != nullptr && reply_result(*m.channel(), call, 0));
}

napi_value reply_entry_(napi_env env, napi_callback_info info) {
  Method m(env, info);
  if (!m) return nullptr;
  uint64_t call = m.whole();
  TreeEntry entry;
  entry.node = m.whole();
  entry.attributes = m.slots(kAttrSlots);
  entry.entry_valid_ms = m.number();
  entry.attr_valid_ms = m.number();
  if (m.bad()) return nullptr;
  return m.answer(m.channel() != nullptr && reply_entry(*m.channel(), call, entry));
}

napi_value reply_no_entry_(napi_env env, napi_callback_info info) {
  Method m(env, info);
  if (!m) return nullptr;
  uint64_t call = m.whole();
  if (m.bad()) return nullptr;
  return m.answer(m.channel() != nullptr && reply_no_entry(*m.channel(), call));
}

napi_value reply_attr_(napi_env env, napi_callback_info info) {
  Method m(env, info);
  if (!m) return nullptr;
  uint64_t call = m.whole();
  const double* attributes = m.slots(kAttrSlots);
  double valid_ms = m.number();
  if (m.bad()) return nullptr;
  return m.answer(m.channel() != nullptr && reply_attr(*m.channel(), call, attributes, valid_ms));
}

// fd, as, tag.
TreeFile take_file(Method& m) {
  TreeFile file;
  file.fd.reset(m.integer());
  file.direct = m.integer() != 0;
  file.tag = m.number();
  return file;
}

napi_value reply_open_(napi_env env, napi_callback_info info) {
  Method m(env, info);
  if (!m) return nullptr;
  uint64_t call = m.whole();
  TreeFile file = take_file(m);
  if (m.bad()) return nullptr;
  return m.answer(m.channel() != nullptr && reply_open(*m.channel(), call, std::move(file)));
}

napi_value reply_create_(napi_env env, napi_callback_info info) {
  Method m(env, info);
  if (!m) return nullptr;
  uint64_t call = m.whole();
  TreeEntry entry;
  entry.node = m.whole();
  entry.attributes = m.slots(kAttrSlots);
  entry.attr_valid_ms = m.number();
  entry.entry_valid_ms = HUGE_VAL;
  TreeFile file = take_file(m);
  if (m.bad()) return nullptr;
  return m.answer(m.channel() != nullptr &&
                  reply_create(*m.channel(), call, entry, std::move(file)));
}

napi_value reply_data_(napi_env env, napi_callback_info info) {
  Method m(env, info);
  if (!m) return nullptr;
  uint64_t call = m.whole();
  auto [data, bytes] = m.bytes();
  if (m.bad()) return nullptr;
  return m.answer(m.channel() != nullptr && reply_data(*m.channel(), call, data, bytes));
}

napi_value reply_size_(napi_env env, napi_callback_info info) {
  Method m(env, info);
  if (!m) return nullptr;
  uint64_t call = m.whole();
  uint64_t bytes = m.whole();
  if (m.bad()) return nullptr;
  return m.answer(m.channel() != nullptr &&
                  reply_size(*m.channel(), call, static_cast<uint32_t>(bytes)));
}

napi_value reply_statfs_(napi_env env, napi_callback_info info) {
  constexpr size_t kNumbers = 8;
  Method m(env, info);
  if (!m) return nullptr;
  uint64_t call = m.whole();
  const double* numbers = m.slots(kNumbers);
  if (m.bad()) return nullptr;
  return m.answer(m.channel() != nullptr && reply_statfs(*m.channel(), call, numbers));
}

napi_value add_dirent_(napi_env env, napi_callback_info info) {
  Method m(env, info);
  if (!m) return nullptr;
  uint64_t call = m.whole();
  std::string name = m.name();
  uint64_t cookie = m.whole();
  TreeEntry entry;
  entry.node = m.whole();
  entry.attributes = m.slots(kAttrSlots);
  entry.attr_valid_ms = m.number();
  entry.entry_valid_ms = HUGE_VAL;
  if (m.bad()) return nullptr;
  return m.answer(m.channel() != nullptr && add_dirent(*m.channel(), call, name, cookie, entry));
}

napi_value reply_listing_(napi_env env, napi_callback_info info) {
  Method m(env, info);
  if (!m) return nullptr;
  uint64_t call = m.whole();
  if (m.bad()) return nullptr;
  return m.answer(m.channel() != nullptr && reply_listing(*m.channel(), call));
}

napi_value adopt(napi_env env, napi_callback_info info) {
  Method m(env, info);
  if (!m) return nullptr;
  uint64_t node = m.whole();
  UniqueFd fd(m.integer());
  uint64_t ino = m.whole();
  if (m.bad()) return nullptr;
  if (auto session = m.session()) session->adopt(node, std::move(fd), ino);
  return m.nothing();
}

napi_value disown(napi_env env, napi_callback_info info) {
  Method m(env, info);
  if (!m) return nullptr;
  uint64_t node = m.whole();
  if (m.bad()) return nullptr;
  if (auto session = m.session()) session->disown(node);
  return m.nothing();
}

napi_value invalidate(napi_env env, napi_callback_info info) {
  Method m(env, info);
  if (!m) return nullptr;
  uint64_t node = m.whole();
  std::string name = m.name();
  if (m.bad()) return nullptr;
  if (auto session = m.session()) session->notifier().invalidate(node, std::move(name));
  return m.nothing();
}

napi_value invalidated(napi_env env, napi_callback_info info) {
  Method m(env, info);
  if (!m) return nullptr;
  napi_deferred deferred = nullptr;
  napi_value promise = nullptr;
  napi_create_promise(env, &deferred, &promise);
  UpcallsBinding* b = m.binding();
  uint64_t mark = b->next_mark++;
  b->invalidations[mark] = deferred;
  auto session = m.session();
  if (session == nullptr) {
    settle(b, mark);
  } else {
    session->notifier().mark(mark);
  }
  return promise;
}

napi_value count(napi_env env, napi_callback_info info) {
  Method m(env, info);
  if (!m) return nullptr;
  double number = m.channel() == nullptr ? 0 : static_cast<double>(m.channel()->count());
  return napi::make_number(env, number);
}

napi_value close_(napi_env env, napi_callback_info info) {
  Method m(env, info);
  if (!m) return nullptr;
  close_binding(m.binding());
  return m.nothing();
}

}  // namespace

void init_upcalls(napi_env env, napi_value exports) {
  auto method = [](const char* name, napi_callback callback) {
    return napi_property_descriptor{name,    nullptr, callback,     nullptr,
                                    nullptr, nullptr, napi_default, nullptr};
  };
  const napi_property_descriptor methods[] = {
      method("thaw", thaw),
      method("openHandles", open_handles),
      method("openTemplate", open_template),
      method("waitForContent", wait_for_content),
      method("again", again),
      method("replyError", reply_error_),
      method("replyOk", reply_ok),
      method("replyEntry", reply_entry_),
      method("replyNoEntry", reply_no_entry_),
      method("replyAttr", reply_attr_),
      method("replyOpen", reply_open_),
      method("replyCreate", reply_create_),
      method("replyData", reply_data_),
      method("replySize", reply_size_),
      method("replyStatfs", reply_statfs_),
      method("addDirent", add_dirent_),
      method("replyListing", reply_listing_),
      method("adopt", adopt),
      method("disown", disown),
      method("invalidate", invalidate),
      method("invalidated", invalidated),
      method("count", count),
      method("close", close_),
  };
  napi_value made = nullptr;
  if (napi_define_class(env, "Upcalls", NAPI_AUTO_LENGTH, construct, nullptr, std::size(methods),
                        methods, &made) == napi_ok) {
    napi::set_property(env, exports, "Upcalls", made);
  }
}

}  // namespace firstlight
