// Changes of lent directories (upper_names.h) that lanes make in the tree's place.
#pragma once

#include "ops.h"

namespace firstlight {

/** CREATE of a name that is not there; all others go to the tree. */
int op_create_upper(const Context&);
/** UNLINK of a file of the writable layer with this one name; all others go to the tree. */
int op_unlink_upper(const Context&);

}  // namespace firstlight
