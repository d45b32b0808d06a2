// Opens of the template's files; how each is opened stands in open_template.cc.
#pragma once

#include "target.h"

namespace firstlight {

/** Opens the file, or hands the request to the tree where the node has diverged; kAnswered or a
 * negative errno. */
int open_or_divert(Session& session, const Target& t);
/** The same once what a parked OPEN waited for is there. */
int open_complete_or_divert(Session& session, const Target& t);

}  // namespace firstlight
