// Files are made with the fsuid and fsgid of whoever asked, while the thread keeps its capabilities
// (SECBIT_NO_SETUID_FIXUP): the kernel has checked the permissions on the mount already, with the
// caller's supplementary groups, which no thread of ours has.
#pragma once

#include <errno.h>
#include <sys/fsuid.h>
#include <sys/types.h>

namespace firstlight {

/**
 * Makes the calling thread one that makes files as they are asked for: a umask of its own, which is
 * 0, and capabilities that stay when it makes files for others. Who may not have the latter makes
 * files for one owner only, its own, and `AsOwner` says so for any other.
 * @returns 0 or an errno
 */
int prepare_to_make_files();

/** The calling thread makes files of another owner, as long as it lives. */
class AsOwner {
 public:
  AsOwner(uid_t uid, gid_t gid) : uid_(uid), gid_(gid) {}
  AsOwner(const AsOwner&) = delete;
  AsOwner& operator=(const AsOwner&) = delete;

  /** False with errno where this process may not. */
  bool enter() {
    // Both return the value before; asking with -1 changes nothing.
    before_gid_ = setfsgid(gid_);
    before_uid_ = setfsuid(uid_);
    entered_ = true;
    if (static_cast<uid_t>(setfsuid(-1)) == uid_ && static_cast<gid_t>(setfsgid(-1)) == gid_)
      return true;
    errno = EPERM;
    return false;
  }
  ~AsOwner() {
    if (!entered_) return;
    int error = errno;
    setfsuid(before_uid_);
    setfsgid(before_gid_);
    errno = error;
  }

 private:
  uid_t uid_;
  gid_t gid_;
  int before_uid_ = 0;
  int before_gid_ = 0;
  bool entered_ = false;
};

}  // namespace firstlight
