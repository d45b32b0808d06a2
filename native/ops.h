// The operations: a table from opcode to handlers. Each handler returns kAnswered where it has
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
/** The template is not what answers: the node has diverged. */
inline constexpr int kDiverted = 2;

/** Seconds that entries and attributes stay valid: nobody else changes the tree. Ten years. */
inline constexpr uint64_t kForever = 315360000;

// File handles: what RELEASE and READ find again.
inline constexpr uint64_t kFhEmpty = 0;
inline constexpr uint64_t kFhPassthrough = 1;
/** From here on: 2 + name in the handle table. */
inline constexpr uint64_t kFhTable = 2;
/** This bit + name in the handle table: a file of the writable layer. */
inline constexpr uint64_t kFhUpper = uint64_t{1} << 62;

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
  uint64_t node() const { return request.header->nodeid; }
};

using Handler = int (*)(const Context&);
/** Fills in what is the operation's own in an upcall; 0 or a negative errno. */
using Decoder = int (*)(const Context&, Upcall*);

/** Who answers in a writable session. */
enum class Route : uint8_t {
  /** These threads: `writable` where it is set, else `handler`. */
  kNative,
  /** `handler` until the node has diverged; then `writable` where it is set, else the tree. */
  kDiverging,
  /** The tree. */
  kTree,
};

struct Operation {
  uint32_t opcode;
  const char* name;
  /** Bytes that must follow the header. */
  uint32_t least;
  /** Answers in a read-only session. */
  Handler handler;
  Route route = Route::kNative;
  Decoder decode = nullptr;
  Handler writable = nullptr;
};

/** The operation of an opcode, or nullptr. */
const Operation* find_operation(uint32_t opcode);

/** Runs an operation in a writable session. */
int run_writable(const Context& c, const Operation& operation);

/** Attributes of the inode that `row` names. */
void fill_attributes(const Toc& toc, uint32_t row, fuse_attr* attr);

/** The reply to OPEN or READ once its wait is over (`error` 0) or was ended. Housekeeper. */
void complete(Session& session, const Parked& parked, uint8_t* scratch);

/** Answers an OPEN that the tree was asked about from the template. The tree's thread. */
void open_from_template(Session& session, const Upcall& upcall);

// ops_tree.cc
int op_lookup(const Context&);
int op_getattr(const Context&);
int op_statx(const Context&);
int op_readlink(const Context&);
int op_readdir(const Context&);
int op_readdirplus(const Context&);
int op_statfs(const Context&);
// ops_diverged.cc
int op_getattr_diverged(const Context&);
int op_statx_diverged(const Context&);
int op_getxattr_diverged(const Context&);
// ops_xattr.cc
int op_getxattr(const Context&);
int op_listxattr(const Context&);
// ops_file.cc
int op_open(const Context&);
int op_read(const Context&);
int op_release(const Context&);
int op_flush(const Context&);
int op_interrupt(const Context&);
// ops_write.cc
int op_write(const Context&);
int op_fsync(const Context&);
int op_fallocate(const Context&);
int op_lseek(const Context&);
int op_copy_file_range(const Context&);

}  // namespace firstlight
