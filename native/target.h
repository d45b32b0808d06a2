// What OPEN and READ of the template's files share: the request as far as its answer needs it,
// whether it was parked or not.
#pragma once

#include <errno.h>

#include <memory>
#include <utility>

#include "ops.h"

namespace firstlight {

/** What an answer needs of its request, whether it was parked or not. */
struct Target {
  uint64_t unique;
  uint32_t lane;
  uint32_t row;
  uint32_t content;
  uint32_t tid;
  uint32_t flags;  // of an OPEN
  uint32_t uid = 0;
  uint32_t gid = 0;
  /** The tree has said that the template is right for a node that has diverged. */
  bool by_tree = false;
  // Of a first access, for the trace.
  bool traced = false;
  Clock::time_point at = {};
  Clock::duration wait = {};

  uint64_t node() const { return uint64_t{row} + 1; }
};

inline void trace_open(Session& session, const Target& t, AccessTrace::Kind kind) {
  if (t.traced) session.trace().record(kind, t.row, 0, 0, t.at, t.wait);
}

inline void trace_read(Session& session, const Target& t, uint64_t offset, uint32_t bytes) {
  if (!t.traced) return;
  session.trace().record(AccessTrace::kRead, t.row, offset, bytes, t.at, t.wait);
}

inline std::unique_ptr<Parked> make_parked(uint32_t opcode, const Target& t) {
  auto parked = std::make_unique<Parked>();
  parked->unique = t.unique;
  parked->lane = t.lane;
  parked->opcode = opcode;
  parked->row = t.row;
  parked->content = t.content;
  parked->tid = t.tid;
  parked->uid = t.uid;
  parked->gid = t.gid;
  parked->traced = t.traced;
  parked->flags = t.flags;
  return parked;
}

// What to do with a request that was to be parked; kAnswered where it was.
template <class Now>
int park_or(Session& session, std::unique_ptr<Parked> parked, Now now) {
  switch (session.park(parked)) {
    case ContentTable::Outcome::kParked:
      return kAnswered;
    case ContentTable::Outcome::kReady:
      return now();
    case ContentTable::Outcome::kFailed:
      return -parked->error;
    case ContentTable::Outcome::kClosed:
      return -EIO;
  }
  return -EIO;
}

}  // namespace firstlight
