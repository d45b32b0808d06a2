// A tree whose root stands one directory below the root that FUSE makes.
//
// The kernel makes the root's inode before it has heard, by INIT, that there are ACLs, and marks it
// as one whose ACL is never cached (ACL_DONT_CACHE: fs/fuse/inode.c, fuse_init_inode). Then each
// path from / that is walked by somebody other than its owner asks for that ACL, and leaves the
// walk without locks. Any other directory is made later and has its ACL cached. So the root that
// users see is such a directory: /rootfs of the FUSE filesystem, a node of its own, of which the
// mount is a clone (open_tree(2)). The FUSE root itself is mounted nowhere; who may open by file
// handle (CAP_DAC_READ_SEARCH) finds the same tree there.
//
// Only who moves requests knows of it: on the wire that directory is node kRootBelow, for everybody
// else it is FUSE_ROOT_ID.
#pragma once

#include <sys/types.h>
#include <sys/uio.h>

#include <cstddef>
#include <cstdint>

#include "unique_fd.h"

namespace firstlight {

/** The node on the wire. Rows of a template and nodes of the writable tree are below 2^53. */
inline constexpr uint64_t kRootBelow = uint64_t{1} << 62;

/**
 * Makes the clone of a detached mount, answering on `device` what the kernel asks for it (nothing
 * else can be asked: nobody sees the mount). An empty descriptor where this kernel does
 * not clone detached mounts (before Linux 6.15: EINVAL): the mount is as it was then, but that the
 * node may still be named once, when the kernel forgets it. Where the device fails it is closed,
 * and with it the connection.
 */
UniqueFd clone_root_below(int mount, UniqueFd* device);

/** A request that came in: kRootBelow becomes FUSE_ROOT_ID wherever it stands. In place. */
void take_root_up(uint8_t* request, size_t bytes);

/** Room for a notification's first words. */
using NotifyHead = uint64_t[4];
/**
 * A notification that goes out (`pieces` as for Transport::notify): FUSE_ROOT_ID becomes
 * kRootBelow. Where that changes anything, the second piece is copied to `room` and `pieces` says
 * so.
 */
void put_root_down(iovec* pieces, int count, NotifyHead& room);

}  // namespace firstlight
