// What stands behind a JavaScript Upcalls; its methods are in upcalls_methods_napi.cc, its life in
// upcalls_napi.cc. All of it on the JavaScript thread that made the object.
#pragma once

#include <node_api.h>

#include <map>
#include <memory>
#include <vector>

#include "upcalls.h"

namespace firstlight {

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

/** The binding behind `self`; throws and returns nullptr where it is no Upcalls. */
UpcallsBinding* unwrap_upcalls(napi_env env, napi_value self);
/** Resolves the promise of `invalidated` that a mark stands for. */
void settle_upcalls(UpcallsBinding* b, uint64_t mark);
/** Detaches from the channel; the object can be collected then. */
void close_upcalls(UpcallsBinding* b);
/** The methods of the class. */
std::vector<napi_property_descriptor> upcalls_methods();

}  // namespace firstlight
