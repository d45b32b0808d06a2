// Ends a filesystem as a power cut does: what it has not written to its disk by now is lost. ext4
// and xfs have an ioctl for it (EXT4_IOC_SHUTDOWN, XFS_IOC_GOINGDOWN). What is found after the next
// mount does not live here.
//
//   powercut DIR      a directory of the filesystem, of which root makes a ruin
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>

#define GOING_DOWN _IOR('X', 125, uint32_t)
// Not even the journal that is in memory.
enum { NO_LOG_FLUSH = 2 };

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  int fd = open(argv[1], O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  uint32_t how = NO_LOG_FLUSH;
  if (fd < 0 || ioctl(fd, GOING_DOWN, &how) != 0) {
    fprintf(stderr, "%s: %s\n", argv[1], strerror(errno));
    return 1;
  }
  return 0;
}
