// What a thread needs before it makes files for others.
#include "as_owner.h"

#include <linux/securebits.h>
#include <sched.h>
#include <sys/prctl.h>
#include <sys/stat.h>

namespace firstlight {

int prepare_to_make_files() {
  if (unshare(CLONE_FS) != 0) return errno;
  umask(0);
  int bits = prctl(PR_GET_SECUREBITS);
  if (bits >= 0 && prctl(PR_SET_SECUREBITS, bits | SECBIT_NO_SETUID_FIXUP) != 0 && errno != EPERM)
    return errno;
  return 0;
}

}  // namespace firstlight
