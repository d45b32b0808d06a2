// The operations: a table from opcode to handler. Each handler returns kAnswered where it has
// replied, parked the request, or where the operation has no reply; 0 for an empty reply; or a
// negative errno.
#pragma once

#include <cstdint>

#include "fuse_abi.h"
#include "request.h"
#include "session.h"
#include "toc.h"

namespace firstlight {

inline constexpr int kAnswered = 1;

/** Seconds that entries and attributes stay valid: nobody else changes the tree. Ten years. */
inline constexpr uint64_t kForever = 315360000;

struct Context {
  Session& session;
  const Request& request;
  /** kMaxReply bytes to build a reply in. */
  uint8_t* scratch;

  const Toc& toc() const { return session.toc(); }
  /** Replies with `data`. */
  int send(const void* data, size_t bytes) const {
    session.reply(request.lane, request.header->unique, 0, data, bytes);
    return kAnswered;
  }
  /** The inode's row; nullptr where the kernel names none of ours. */
  const TocRow* inode() const {
    uint64_t node = request.header->nodeid;
    if (node == 0 || node > toc().rows()) return nullptr;
    return &toc().row(static_cast<uint32_t>(node - 1));
  }
  uint32_t row() const { return static_cast<uint32_t>(request.header->nodeid - 1); }
};

using Handler = int (*)(const Context&);

struct Operation {
  uint32_t opcode;
  const char* name;
  /** Bytes that must follow the header. */
  uint32_t least;
  Handler handler;
};

/** The operation of an opcode, or nullptr. */
const Operation* find_operation(uint32_t opcode);

/** Attributes of the inode that `row` names. */
void fill_attributes(const Toc& toc, uint32_t row, fuse_attr* attr);

/** The reply to OPEN or READ once its wait is over (`error` 0) or was ended. Housekeeper. */
void complete(Session& session, const Parked& parked, uint8_t* scratch);

// ops_tree.cc
int op_lookup(const Context&);
int op_getattr(const Context&);
int op_readlink(const Context&);
int op_readdir(const Context&);
int op_readdirplus(const Context&);
int op_statfs(const Context&);
// ops_xattr.cc
int op_getxattr(const Context&);
int op_listxattr(const Context&);
// ops_file.cc
int op_open(const Context&);
int op_read(const Context&);
int op_release(const Context&);
int op_flush(const Context&);
int op_interrupt(const Context&);

}  // namespace firstlight
