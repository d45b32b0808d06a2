// Opens of files of the writable layer: by the tree, which has opened the file, and of adopted
// nodes.
#pragma once

#include <memory>

#include "ops.h"
#include "unique_fd.h"

namespace firstlight {

/** An OPEN, CREATE or TMPFILE that is to be answered. */
struct UpperOpen {
  uint64_t unique = 0;
  uint32_t lane = 0;
  uint64_t node = 0;
  std::shared_ptr<const UniqueFd> fd;
  /** Reads and writes come to us. */
  bool direct = false;
  /** Inode number that is shown; 0: not told. */
  uint64_t ino = 0;
  double tag = 0;
  /** The adopted file that it is an open of; nullptr where the tree has opened it. */
  std::shared_ptr<const AdoptedFile> adopted;
  /** What stands before the open in the reply; nullptr for OPEN. */
  const fuse_entry_out* entry = nullptr;
};

/**
 * Counts the open and answers the request: 0; or a negative errno where the kernel has not taken
 * it, nothing is open then: -ENOENT, -ENODEV where the reply did not arrive (the caller is gone),
 * others where there was none.
 */
int open_upper(Session& session, const UpperOpen& open);

/** The file of a descriptor, opened anew with this access; errno where it cannot be. */
UniqueFd reopen(int fd, int access);

/** Answers an OPEN without O_TRUNC of an adopted node; kDiverted where the tree is to do it. */
int open_adopted(const Context& c);

/** READ and RELEASE of handles with the bit kFhUpper. */
int read_upper(const Context& c);
int release_upper(const Context& c);

/** The handle that a request names; nullptr where it is none of the writable layer's. */
std::shared_ptr<Handle> find_upper(Session& session, uint64_t fh);

}  // namespace firstlight
