// The tree's replies, and what it tells a session about nodes. Called on the tree's thread. A call
// that was ended meanwhile (its caller was killed, the mount is gone) is answered by nobody: the
// functions then return false, and close what they were given.
#pragma once

#include <cstdint>
#include <string_view>

#include "attributes.h"
#include "upcalls.h"

namespace firstlight {

/** An entry as the kernel is to get it; `attributes` are slots of ATTR. */
struct TreeEntry {
  uint64_t node = 0;
  const double* attributes = nullptr;
  double entry_valid_ms = 0;
  double attr_valid_ms = 0;
};

/** How a file is opened: OPEN_AS of src/native/upcalls.ts. */
struct TreeFile {
  UniqueFd fd;
  bool direct = false;
  double tag = 0;
  /** Inode number that is shown; 0: the tree is asked for it. A new file's stands in its entry. */
  uint64_t ino = 0;
};

/** `error` is 0 or a positive errno. */
bool reply_result(UpcallChannel& channel, uint64_t call, int error);
bool reply_data(UpcallChannel& channel, uint64_t call, const void* data, size_t bytes);
bool reply_size(UpcallChannel& channel, uint64_t call, uint32_t bytes);
bool reply_entry(UpcallChannel& channel, uint64_t call, const TreeEntry& entry);
bool reply_no_entry(UpcallChannel& channel, uint64_t call);
bool reply_attr(UpcallChannel& channel, uint64_t call, const double* attributes, double valid_ms);
bool reply_open(UpcallChannel& channel, uint64_t call, TreeFile file);
bool reply_create(UpcallChannel& channel, uint64_t call, const TreeEntry& entry, TreeFile file);
/** bsize, frsize, blocks, bfree, bavail, files, ffree, namelen. */
bool reply_statfs(UpcallChannel& channel, uint64_t call, const double* numbers);
/** False where it does not fit, or the call has ended. */
bool add_dirent(UpcallChannel& channel, uint64_t call, std::string_view name, uint64_t cookie,
                const TreeEntry& entry);
bool reply_listing(UpcallChannel& channel, uint64_t call);
/** The open is answered as for a node that has not diverged. */
void reply_from_template(UpcallChannel& channel, uint64_t call);

}  // namespace firstlight
