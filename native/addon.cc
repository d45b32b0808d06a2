// Entry point of the addon: hands the exports to each binding file.
#include <node_api.h>

namespace firstlight {
void init_template(napi_env env, napi_value exports);
void init_session(napi_env env, napi_value exports);
void init_upcalls(napi_env env, napi_value exports);
// trimMemory (memory.cc). Weak, as the next one.
__attribute__((weak)) void init_memory(napi_env env, napi_value exports);
// writeFiles, syncfs, renameFiles, mount, umount (store_io.cc). Weak: the test harness links
// without it.
__attribute__((weak)) void init_store_io(napi_env env, napi_value exports);
// The object `upper` (upper_io.cc).
__attribute__((weak)) void init_upper_io(napi_env env, napi_value exports);
}  // namespace firstlight

static napi_value init(napi_env env, napi_value exports) {
  firstlight::init_template(env, exports);
  firstlight::init_session(env, exports);
  firstlight::init_upcalls(env, exports);
  if (firstlight::init_memory != nullptr) firstlight::init_memory(env, exports);
  if (firstlight::init_store_io != nullptr) firstlight::init_store_io(env, exports);
  if (firstlight::init_upper_io != nullptr) firstlight::init_upper_io(env, exports);
  return exports;
}

NAPI_MODULE(NODE_GYP_MODULE_NAME, init)
