// What session_napi.cc needs of a JavaScript Template.
#pragma once

#include <node_api.h>

#include <memory>

#include "template.h"

namespace firstlight {

/** Behind each JavaScript Template. */
struct TemplateBinding {
  std::shared_ptr<Template> tree;
  /** Sessions that use it; changed on the JavaScript thread only. */
  uint32_t sessions = 0;
};

/** The binding behind `value`, or nullptr where it is no Template. */
TemplateBinding* unwrap_template(napi_env env, napi_value value);

}  // namespace firstlight
