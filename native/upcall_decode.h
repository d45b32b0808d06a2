// From the kernel's structs to the numbers and names of an upcall.
#pragma once

#include "ops.h"
#include "upcalls.h"

namespace firstlight {

/** The fields that every upcall has. */
std::shared_ptr<Upcall> make_upcall(const Request& request);

/** Sends the request to the tree: kAnswered, or a negative errno where it is malformed or nobody is
 * there. */
int send_upcall(const Context& c, Decoder decode);

// One decoder for each operation: fills in what is its own; 0 or a negative errno. The table of
// operations has checked that the operation's struct is there.
int decode_lookup(const Context&, Upcall*);
int decode_getattr(const Context&, Upcall*);
int decode_statx(const Context&, Upcall*);
int decode_setattr(const Context&, Upcall*);
int decode_plain(const Context&, Upcall*);
int decode_symlink(const Context&, Upcall*);
int decode_mknod(const Context&, Upcall*);
int decode_mkdir(const Context&, Upcall*);
int decode_remove(const Context&, Upcall*);
int decode_rename(const Context&, Upcall*);
int decode_rename2(const Context&, Upcall*);
int decode_link(const Context&, Upcall*);
int decode_open(const Context&, Upcall*);
int decode_create(const Context&, Upcall*);
int decode_tmpfile(const Context&, Upcall*);
int decode_readdir(const Context&, Upcall*);
int decode_readdirplus(const Context&, Upcall*);
int decode_setxattr(const Context&, Upcall*);
int decode_getxattr(const Context&, Upcall*);
int decode_listxattr(const Context&, Upcall*);
int decode_removexattr(const Context&, Upcall*);
int decode_fsyncdir(const Context&, Upcall*);

/** Passes on how many lookups of nodes of the tree's own are forgotten. No reply. */
int forget_own(const Context&);
int forget_own_batch(const Context&);

}  // namespace firstlight
