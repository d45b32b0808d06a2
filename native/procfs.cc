// Reading /proc/TID/status and /proc/TID/maps.
#include "procfs.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <string>

#include "unique_fd.h"

namespace firstlight {

namespace {

bool read_proc(uint32_t tid, const char* file, std::string* text) {
  char path[64];
  snprintf(path, sizeof path, "/proc/%u/%s", tid, file);
  UniqueFd fd(open(path, O_RDONLY | O_CLOEXEC));
  if (!fd) return false;
  text->clear();
  char chunk[16384];
  for (;;) {
    ssize_t got = read(fd.get(), chunk, sizeof chunk);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return false;
    if (got == 0) return true;
    text->append(chunk, static_cast<size_t>(got));
  }
}

// Value of a line such as "SigPnd:\t0000000000000100"; `base` 16 or 10.
bool field(std::string_view status, std::string_view name, int base, uint64_t* value) {
  size_t at = 0;
  while (at < status.size()) {
    size_t end = status.find('\n', at);
    if (end == status.npos) end = status.size();
    std::string_view line = status.substr(at, end - at);
    at = end + 1;
    if (!line.starts_with(name) || line.size() <= name.size() || line[name.size()] != ':') continue;
    std::string digits(line.substr(name.size() + 1));
    char* rest = nullptr;
    *value = strtoull(digits.c_str(), &rest, base);
    return rest != digits.c_str();
  }
  return false;
}

constexpr uint64_t bit(int signal) { return uint64_t{1} << (signal - 1); }

// A process with more descriptors than this is not searched.
constexpr size_t kDescriptorsMax = 4096;

// Signals whose default is to ignore, stop or continue (signal(7)).
constexpr uint64_t kHarmless = bit(SIGCHLD) | bit(SIGURG) | bit(SIGWINCH) | bit(SIGCONT) |
                               bit(SIGSTOP) | bit(SIGTSTP) | bit(SIGTTIN) | bit(SIGTTOU);

}  // namespace

bool fatal_signal_in(std::string_view status) {
  uint64_t thread, process, blocked, ignored, caught;
  if (!field(status, "SigPnd", 16, &thread) || !field(status, "ShdPnd", 16, &process) ||
      !field(status, "SigBlk", 16, &blocked) || !field(status, "SigIgn", 16, &ignored) ||
      !field(status, "SigCgt", 16, &caught)) {
    return true;
  }
  uint64_t pending = thread | process;
  if ((pending & bit(SIGKILL)) != 0) return true;
  return (pending & ~blocked & ~ignored & ~caught & ~kHarmless) != 0;
}

bool fatal_signal_pending(uint32_t tid) {
  std::string status;
  if (tid == 0 || !read_proc(tid, "status", &status)) return true;
  return fatal_signal_in(status);
}

bool is_shared_mapping(std::string_view line, uint32_t inode) {
  // 7f0000000000-7f0000001000 r--s 00000000 00:2f 1234   /path
  unsigned long long start, end, offset, number;
  unsigned major, minor;
  char access[5] = {};
  std::string text(line);
  if (sscanf(text.c_str(), "%llx-%llx %4s %llx %x:%x %llu", &start, &end, access, &offset, &major,
             &minor, &number) != 7) {
    return false;
  }
  // overlayfs shows its own number, which keeps ours in the low bits and may put a layer's number
  // into the high ones (xino).
  return access[3] == 's' && major == 0 && static_cast<uint32_t>(number) == inode;
}

SharedMapping find_shared_mapping(uint32_t tid, uint32_t inode) {
  std::string maps;
  // An empty file is a process on its way out.
  if (tid == 0 || !read_proc(tid, "maps", &maps) || maps.empty()) return SharedMapping::kUnknown;
  size_t at = 0;
  while (at < maps.size()) {
    size_t end = maps.find('\n', at);
    if (end == maps.npos) end = maps.size();
    if (is_shared_mapping(std::string_view(maps).substr(at, end - at), inode)) {
      return SharedMapping::kFound;
    }
    at = end + 1;
  }
  return SharedMapping::kNone;
}

// fdinfo tells the inode's number without a look at the file itself, which may be on our own mount.
bool may_have_open(uint32_t tid, uint32_t inode) {
  char path[64];
  snprintf(path, sizeof path, "/proc/%u/fdinfo", tid);
  DIR* directory = tid == 0 ? nullptr : opendir(path);
  if (directory == nullptr) return true;
  bool found = false;
  size_t seen = 0;
  std::string info;
  while (!found) {
    const dirent* entry = readdir(directory);
    if (entry == nullptr) break;
    if (entry->d_name[0] == '.') continue;
    uint64_t number = 0;
    char file[64];
    snprintf(file, sizeof file, "fdinfo/%.16s", entry->d_name);
    if (++seen > kDescriptorsMax) found = true;
    // Gone since it was listed: closed.
    if (!read_proc(tid, file, &info)) continue;
    // Before Linux 5.14 there is no such line, and nothing to be told.
    if (!field(info, "ino", 10, &number) || static_cast<uint32_t>(number) == inode) found = true;
  }
  closedir(directory);
  return found;
}

uint32_t process_of(uint32_t tid) {
  std::string status;
  uint64_t value = 0;
  if (tid == 0 || !read_proc(tid, "status", &status)) return 0;
  return field(status, "Tgid", 10, &value) ? static_cast<uint32_t>(value) : 0;
}

}  // namespace firstlight
