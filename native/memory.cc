// How the C library's allocator behaves in a process that passes hundreds of megabytes of frames
// through its heap and then only waits. When to trim is decided in src/daemon.
#include <malloc.h>

#include "napi_util.h"

namespace firstlight {
namespace {

// Walks the free lists of every arena: some milliseconds, so it runs on the thread pool.
struct Trim final : napi::Job {
  void run() override { malloc_trim(0); }
};

napi_value trim_memory(napi_env env, napi_callback_info info) {
  (void)info;
  return napi::run_job(env, "trimMemory", std::make_unique<Trim>());
}

}  // namespace

void init_memory(napi_env env, napi_value exports) {
  // glibc raises its mmap threshold with every large block that is freed, up to 32 MiB; frames of a
  // megabyte then fragment the heap, and each thread's arena keeps its own pieces. A fixed
  // threshold gives them back as they are freed.
  mallopt(M_MMAP_THRESHOLD, 256 << 10);
  mallopt(M_ARENA_MAX, 2);
  napi::export_function(env, exports, "trimMemory", trim_memory);
}

}  // namespace firstlight
