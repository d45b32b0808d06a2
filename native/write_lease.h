// Whether anybody can write to a file: has it open for that, or mapped so.
#pragma once

#include <fcntl.h>
#include <signal.h>

namespace firstlight {

/**
 * A read lease is refused while a file is open for writing, or mapped so, and nothing else tells
 * (fcntl(2), F_SETLEASE). It is given back before the call returns; should somebody open the file
 * in between, he waits for that, and the signal that this sends is one that is ignored.
 * @param fd  open for reading only; several threads may ask by the same one
 */
inline bool is_held_for_writing(int fd) {
  if (fcntl(fd, F_SETSIG, SIGURG) != 0 || fcntl(fd, F_SETLEASE, F_RDLCK) != 0) return true;
  fcntl(fd, F_SETLEASE, F_UNLCK);
  return false;
}

}  // namespace firstlight
