// Directories of the writable layer that the tree has lent: names in them are looked for here. New
// ones, and those that go, stand in upper_changes.cc.
#pragma once

#include <cstdint>
#include <memory>
#include <string_view>

#include "node_table.h"
#include "unique_fd.h"

namespace firstlight {

struct Context;

/** A directory that the tree has lent. */
struct LentDirectory {
  /** Of the directory in the layer; O_PATH. */
  UniqueFd fd;
  /** Row of the template's directory that is merged into it; kNone: there is none. */
  uint32_t row = 0;
  /** New files take their permissions from who makes them, not from the directory's ACL. */
  bool changes = false;
};

/** By node id. */
using LentDirectories = NodeTable<LentDirectory>;

/** The directory that a request is about, where it is lent and a name in it is none that the
 * template has, covered or not; else nullptr. */
std::shared_ptr<const LentDirectory> find_lent(const Context& c, std::string_view name);

/** LOOKUP of a name that is not there; all others go to the tree. */
int op_lookup_upper(const Context&);

}  // namespace firstlight
