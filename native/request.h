// One request as it came from the kernel, with bounds-checked access to what follows the header.
#pragma once

#include <linux/fuse.h>
#include <string.h>

#include <cstdint>
#include <optional>
#include <string_view>

namespace firstlight {

struct Request {
  const fuse_in_header* header = nullptr;
  const uint8_t* body = nullptr;
  size_t body_bytes = 0;
  uint32_t lane = 0;

  /** The operation's struct at the start of the body. The operation table has checked that it is
   * there. */
  template <class T>
  const T& as() const {
    return *reinterpret_cast<const T*>(body);
  }

  /** NUL-terminated name after `skip` bytes; nullopt where it is not terminated. */
  std::optional<std::string_view> name(size_t skip = 0) const {
    if (skip >= body_bytes) return std::nullopt;
    const char* start = reinterpret_cast<const char*>(body) + skip;
    const void* end = memchr(start, '\0', body_bytes - skip);
    if (end == nullptr) return std::nullopt;
    return std::string_view(start, static_cast<const char*>(end) - start);
  }
};

}  // namespace firstlight
