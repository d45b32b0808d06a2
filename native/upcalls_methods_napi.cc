// The methods of the class Upcalls: arguments read and checked, then handed to the channel, its
// session or upcall_reply.h.
#include <errno.h>
#include <node_api.h>

#include <cmath>
#include <string>
#include <utility>

#include "napi_util.h"
#include "session.h"
#include "upcall_reply.h"
#include "upcalls_napi.h"

namespace firstlight {

namespace {

/** One method call: the object, and arguments read in their order. */
class Method {
 public:
  Method(napi_env env, napi_callback_info info) : env_(env), call_(env, info) {
    binding_ = unwrap_upcalls(env, call_.self);
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

/** A method with one number and no answer. */
template <class Use>
napi_value tell(napi_env env, napi_callback_info info, Use use) {
  Method m(env, info);
  if (!m) return nullptr;
  uint64_t number = m.whole();
  if (m.bad()) return nullptr;
  if (m.channel() != nullptr) use(*m.channel(), number);
  return m.nothing();
}

/** A reply that is the name of its call alone. */
napi_value reply_alone(napi_env env, napi_callback_info info,
                       bool (*reply)(UpcallChannel&, uint64_t)) {
  Method m(env, info);
  if (!m) return nullptr;
  uint64_t call = m.whole();
  if (m.bad()) return nullptr;
  return m.answer(m.channel() != nullptr && reply(*m.channel(), call));
}

napi_value thaw(napi_env env, napi_callback_info info) {
  return tell(env, info, [](UpcallChannel& channel, uint64_t node) { channel.thaw(node); });
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
  return tell(env, info, reply_from_template);
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
  return tell(env, info, [](UpcallChannel& channel, uint64_t call) { channel.again(call); });
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
  return reply_alone(env, info, [](UpcallChannel& channel, uint64_t call) {
    return reply_result(channel, call, 0);
  });
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
  return reply_alone(env, info, reply_no_entry);
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
  file.ino = m.whole();
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
  return reply_alone(env, info, reply_listing);
}

napi_value adopt(napi_env env, napi_callback_info info) {
  Method m(env, info);
  if (!m) return nullptr;
  uint64_t node = m.whole();
  UniqueFd fd(m.integer());
  uint64_t ino = m.whole();
  auto links = static_cast<uint32_t>(m.whole());
  bool writable = m.integer() != 0;
  if (m.bad()) return nullptr;
  if (auto session = m.session()) session->adopt(node, std::move(fd), ino, links, writable);
  return m.nothing();
}

napi_value hold_root(napi_env env, napi_callback_info info) {
  Method m(env, info);
  if (!m) return nullptr;
  UniqueFd fd(m.integer());
  if (m.bad()) return nullptr;
  if (m.channel() != nullptr) m.channel()->hold_root(std::move(fd));
  return m.nothing();
}

// `row` below 0: none is merged into it.
napi_value lend(napi_env env, napi_callback_info info) {
  Method m(env, info);
  if (!m) return nullptr;
  uint64_t node = m.whole();
  auto directory = std::make_shared<LentDirectory>();
  directory->fd.reset(m.integer());
  int row = m.integer();
  directory->changes = m.integer() != 0;
  if (m.bad()) return nullptr;
  auto session = m.session();
  if (session == nullptr) return m.nothing();
  directory->row = row < 0 ? kNone : static_cast<uint32_t>(row);
  if (row >= 0 && directory->row >= session->toc().rows()) {
    return napi::throw_argument(env, "there is no such row");
  }
  session->lent().put(node, std::move(directory));
  return m.nothing();
}

napi_value lease_nodes(napi_env env, napi_callback_info info) {
  Method m(env, info);
  if (!m) return nullptr;
  uint64_t first = m.whole();
  auto count = static_cast<uint32_t>(m.whole());
  if (m.bad()) return nullptr;
  if (m.channel() != nullptr) m.channel()->lease_nodes(first, count);
  return m.nothing();
}

napi_value recall(napi_env env, napi_callback_info info) {
  return tell(env, info, [](UpcallChannel& channel, uint64_t node) {
    if (auto session = channel.session()) session->lent().drop(node);
  });
}

napi_value disown(napi_env env, napi_callback_info info) {
  return tell(env, info, [](UpcallChannel& channel, uint64_t node) {
    if (auto session = channel.session()) session->disown(node);
  });
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

napi_value invalidate_attributes(napi_env env, napi_callback_info info) {
  Method m(env, info);
  if (!m) return nullptr;
  uint64_t node = m.whole();
  if (m.bad()) return nullptr;
  if (auto session = m.session()) session->notifier().invalidate_attributes(node);
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
    settle_upcalls(b, mark);
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

napi_value wakes(napi_env env, napi_callback_info info) {
  Method m(env, info);
  if (!m) return nullptr;
  double number = m.channel() == nullptr ? 0 : static_cast<double>(m.channel()->wakes());
  return napi::make_number(env, number);
}

napi_value close_(napi_env env, napi_callback_info info) {
  Method m(env, info);
  if (!m) return nullptr;
  close_upcalls(m.binding());
  return m.nothing();
}

}  // namespace

std::vector<napi_property_descriptor> upcalls_methods() {
  auto method = [](const char* name, napi_callback callback) {
    return napi_property_descriptor{name,    nullptr, callback,     nullptr,
                                    nullptr, nullptr, napi_default, nullptr};
  };
  return {
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
      method("lend", lend),
      method("recall", recall),
      method("leaseNodes", lease_nodes),
      method("holdRoot", hold_root),
      method("invalidate", invalidate),
      method("invalidateAttributes", invalidate_attributes),
      method("invalidated", invalidated),
      method("count", count),
      method("wakes", wakes),
      method("close", close_),
  };
}

}  // namespace firstlight
