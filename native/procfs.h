// What /proc says about the threads that call us.
#pragma once

#include <cstdint>
#include <string_view>

namespace firstlight {

/**
 * True where a signal that will end the thread is pending: SIGKILL, or one that is neither blocked
 * nor caught nor ignored and whose default is to end the program. Also true where the thread cannot
 * be seen (tid 0: it lives outside our pid namespace), since a wait that nobody can end is worse
 * than one that a handled signal ends.
 */
bool fatal_signal_pending(uint32_t tid);
/** The same for the text of a /proc/TID/status. */
bool fatal_signal_in(std::string_view status);

/** False only where the thread's process surely has no descriptor of an inode of this number. */
bool may_have_open(uint32_t tid, uint32_t inode);

enum class SharedMapping { kNone, kFound, kUnknown };
/** Whether the thread's process maps an inode of an anonymous device (as FUSE and overlayfs have)
 * MAP_SHARED. */
SharedMapping find_shared_mapping(uint32_t tid, uint32_t inode);
/** The same for one line of a /proc/TID/maps. */
bool is_shared_mapping(std::string_view line, uint32_t inode);

/** Process that a thread belongs to; 0 where it cannot be seen. */
uint32_t process_of(uint32_t tid);

}  // namespace firstlight
