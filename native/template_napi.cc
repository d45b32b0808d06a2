// The class Template of src/native/index.ts. Everything here runs on the JavaScript thread.
#include "template_napi.h"

#include <errno.h>

#include <span>
#include <string>

#include "napi_util.h"

namespace firstlight {

namespace {

using napi::Call;

// Told apart from other wrapped objects by this tag.
constexpr napi_type_tag kTag = {0x6669727374746d70, 0x6c696768746c6174};

TemplateBinding* open_binding(napi_env env, napi_value self) {
  TemplateBinding* binding = unwrap_template(env, self);
  if (binding == nullptr) {
    napi::throw_argument(env, "not a Template");
    return nullptr;
  }
  if (binding->tree == nullptr) {
    napi::throw_error(env, "EBADF", "the template is closed");
    return nullptr;
  }
  return binding;
}

bool get_path(napi_env env, napi_value options, const char* name, std::string* path) {
  auto text = napi::get_string(env, napi::get_property(env, options, name));
  if (!text) {
    napi::throw_argument(env, std::string("options.") + name + " must be a string");
    return false;
  }
  *path = *text;
  return true;
}

// On an error throws and returns false.
bool get_options(napi_env env, napi_value from, TemplateOptions* options) {
  return get_path(env, from, "tocPath", &options->toc_path) &&
         get_path(env, from, "digestsPath", &options->digests_path) &&
         get_path(env, from, "contentDir", &options->content_dir) &&
         get_path(env, from, "incomingDir", &options->incoming_dir) &&
         get_path(env, from, "partialPrefix", &options->partial_prefix);
}

napi_value construct(napi_env env, napi_callback_info info) {
  Call<1> call(env, info);
  TemplateOptions options;
  if (!get_options(env, call.arguments[0], &options)) return nullptr;
  auto binding = std::make_unique<TemplateBinding>();
  int error = 0;
  std::string what;
  binding->tree = Template::open(options, &error, &what);
  if (binding->tree == nullptr) return napi::throw_errno(env, error, what);
  const Toc& toc = binding->tree->toc();
  napi::set_property(env, call.self, "rows", napi::make_number(env, toc.rows()));
  napi::set_property(env, call.self, "contents", napi::make_number(env, toc.contents()));
  napi::set_property(env, call.self, "parts", napi::make_number(env, toc.parts()));
  auto destroy = [](napi_env, void* data, void*) { delete static_cast<TemplateBinding*>(data); };
  if (napi_wrap(env, call.self, binding.get(), destroy, nullptr, nullptr) != napi_ok ||
      napi_type_tag_object(env, call.self, &kTag) != napi_ok) {
    return napi::throw_argument(env, "Template must be called with new");
  }
  binding.release();  // the JavaScript object owns it
  return call.self;
}

// Contents or parts of a call, each below `limit`.
bool get_indexes(napi_env env, napi_value value, uint32_t limit, std::span<const uint32_t>* list) {
  auto numbers = napi::get_uint32s(env, value);
  if (!numbers) {
    napi::throw_argument(env, "expected a Uint32Array");
    return false;
  }
  *list = {numbers->first, numbers->second};
  for (uint32_t number : *list) {
    if (number < limit) continue;
    napi::throw_error(env, "ERR_OUT_OF_RANGE",
                      "index " + std::to_string(number) + " of " + std::to_string(limit));
    return false;
  }
  return true;
}

napi_value mark_ready(napi_env env, napi_callback_info info) {
  Call<1> call(env, info);
  TemplateBinding* binding = open_binding(env, call.self);
  std::span<const uint32_t> list;
  if (binding == nullptr) return nullptr;
  if (!get_indexes(env, call.arguments[0], binding->tree->toc().contents(), &list)) return nullptr;
  binding->tree->table().mark_ready(list);
  return nullptr;
}

napi_value mark_parts(napi_env env, napi_callback_info info) {
  Call<1> call(env, info);
  TemplateBinding* binding = open_binding(env, call.self);
  std::span<const uint32_t> list;
  if (binding == nullptr) return nullptr;
  if (!get_indexes(env, call.arguments[0], binding->tree->toc().parts(), &list)) return nullptr;
  binding->tree->table().mark_parts(list);
  return nullptr;
}

napi_value mark_failed(napi_env env, napi_callback_info info) {
  Call<2> call(env, info);
  TemplateBinding* binding = open_binding(env, call.self);
  std::span<const uint32_t> list;
  if (binding == nullptr) return nullptr;
  if (!get_indexes(env, call.arguments[0], binding->tree->toc().contents(), &list)) return nullptr;
  auto error = napi::get_number(env, call.arguments[1]);
  // The kernel takes errnos below 512; others are its own.
  if (!error || *error < 1 || *error >= 512) {
    return napi::throw_argument(env, "errno must be a positive errno");
  }
  binding->tree->table().mark_failed(list, static_cast<int>(*error));
  return nullptr;
}

napi_value clear_failed(napi_env env, napi_callback_info info) {
  Call<1> call(env, info);
  TemplateBinding* binding = open_binding(env, call.self);
  std::span<const uint32_t> list;
  if (binding == nullptr) return nullptr;
  if (!get_indexes(env, call.arguments[0], binding->tree->toc().contents(), &list)) return nullptr;
  binding->tree->table().clear_failed(list);
  return nullptr;
}

napi_value forget(napi_env env, napi_callback_info info) {
  Call<1> call(env, info);
  TemplateBinding* binding = open_binding(env, call.self);
  std::span<const uint32_t> list;
  if (binding == nullptr) return nullptr;
  if (!get_indexes(env, call.arguments[0], binding->tree->toc().contents(), &list)) return nullptr;
  binding->tree->table().forget(list);
  return nullptr;
}

napi_value reopen(napi_env env, napi_callback_info info) {
  Call<1> call(env, info);
  TemplateBinding* binding = open_binding(env, call.self);
  TemplateOptions options;
  if (binding == nullptr || !get_options(env, call.arguments[0], &options)) return nullptr;
  std::string what;
  int error = binding->tree->reopen(options, &what);
  if (error != 0 && error != ESTALE) return napi::throw_errno(env, error, what);
  napi_value same = nullptr;
  napi_get_boolean(env, error == 0, &same);
  return same;
}

napi_value state(napi_env env, napi_callback_info info) {
  Call<1> call(env, info);
  TemplateBinding* binding = open_binding(env, call.self);
  if (binding == nullptr) return nullptr;
  auto content = napi::get_number(env, call.arguments[0]);
  if (!content || *content < 0 || *content >= binding->tree->toc().contents()) {
    return napi::throw_error(env, "ERR_OUT_OF_RANGE", "no such content");
  }
  auto value = binding->tree->table().state(static_cast<uint32_t>(*content));
  return napi::make_number(env, static_cast<uint8_t>(value));
}

napi_value waiting(napi_env env, napi_callback_info info) {
  Call<0> call(env, info);
  TemplateBinding* binding = open_binding(env, call.self);
  if (binding == nullptr) return nullptr;
  return napi::make_number(env, binding->tree->table().waiting());
}

napi_value close_template(napi_env env, napi_callback_info info) {
  Call<0> call(env, info);
  TemplateBinding* binding = unwrap_template(env, call.self);
  if (binding == nullptr) return napi::throw_argument(env, "not a Template");
  if (binding->sessions > 0) return napi::throw_error(env, "EBUSY", "a session uses the template");
  binding->tree.reset();
  return nullptr;
}

}  // namespace

TemplateBinding* unwrap_template(napi_env env, napi_value value) {
  bool is = false;
  void* data = nullptr;
  if (napi::type_of(env, value) != napi_object ||
      napi_check_object_type_tag(env, value, &kTag, &is) != napi_ok || !is ||
      napi_unwrap(env, value, &data) != napi_ok) {
    return nullptr;
  }
  return static_cast<TemplateBinding*>(data);
}

void init_template(napi_env env, napi_value exports) {
  auto method = [](const char* name, napi_callback callback) {
    return napi_property_descriptor{name,    nullptr, callback,     nullptr,
                                    nullptr, nullptr, napi_default, nullptr};
  };
  const napi_property_descriptor methods[] = {
      method("markReady", mark_ready),   method("markParts", mark_parts),
      method("markFailed", mark_failed), method("clearFailed", clear_failed),
      method("forget", forget),          method("state", state),
      method("waiting", waiting),        method("reopen", reopen),
      method("close", close_template),
  };
  napi_value made = nullptr;
  if (napi_define_class(env, "Template", NAPI_AUTO_LENGTH, construct, nullptr, std::size(methods),
                        methods, &made) == napi_ok) {
    napi::set_property(env, exports, "Template", made);
  }
}

}  // namespace firstlight
