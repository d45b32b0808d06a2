// Opens a template and the files of its contents.
#include "template.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include <atomic>

namespace firstlight {

namespace {

// Largest table that is read: 2^32 rows would not fit the format anyway.
constexpr off_t kTocMax = off_t{4} << 30;

std::unique_ptr<uint8_t[]> read_file(int fd, size_t bytes, int* error) {
  std::unique_ptr<uint8_t[]> data(new uint8_t[bytes]);
  size_t have = 0;
  while (have < bytes) {
    ssize_t got = pread(fd, data.get() + have, bytes - have, static_cast<off_t>(have));
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) {
      *error = got < 0 ? errno : EBADMSG;
      return nullptr;
    }
    have += static_cast<size_t>(got);
  }
  return data;
}

// Files that all templates keep open for READs that name no handle. Keeping one is a convenience:
// it must not take the last descriptor from somebody who needs it.
std::atomic<uint64_t> kept_files{0};

bool may_keep_one_more() {
  static const uint64_t most = [] {
    rlimit limit = {};
    return getrlimit(RLIMIT_NOFILE, &limit) == 0 ? limit.rlim_cur / 4 : Template::kFilesMax;
  }();
  if (kept_files.fetch_add(1, std::memory_order_relaxed) < most) return true;
  kept_files.fetch_sub(1, std::memory_order_relaxed);
  return false;
}

int open_to_read(int directory, const char* path, bool at_once) {
  open_how how = {};
  how.flags = O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK;
  if (!at_once) return openat(directory, path, static_cast<int>(how.flags));
  // By names that the kernel has in memory. Linux before 5.12 cannot say: then it is not at once.
  how.resolve = RESOLVE_CACHED;
  return static_cast<int>(syscall(SYS_openat2, directory, path, &how, sizeof how));
}

void hex(const uint8_t* digest, char* text) {
  static const char kDigits[] = "0123456789abcdef";
  for (int i = 0; i < 32; i++) {
    text[2 * i] = kDigits[digest[i] >> 4];
    text[2 * i + 1] = kDigits[digest[i] & 15];
  }
  text[64] = '\0';
}

}  // namespace

Template::~Template() { kept_files.fetch_sub(files_.size(), std::memory_order_relaxed); }

std::shared_ptr<Template> Template::open(const TemplateOptions& options, int* error,
                                         std::string* what) {
  auto fail = [&](int code, const std::string& text) {
    *error = code;
    *what = text;
    return nullptr;
  };
  std::shared_ptr<Template> made(new Template());
  made->partial_prefix_ = options.partial_prefix;
  UniqueFd toc(::open(options.toc_path.c_str(), O_RDONLY | O_CLOEXEC));
  struct stat st;
  if (!toc || fstat(toc.get(), &st) != 0) return fail(errno, options.toc_path);
  if (!S_ISREG(st.st_mode) || st.st_size <= 0 || st.st_size > kTocMax) {
    return fail(EBADMSG, options.toc_path + ": toc: size " + std::to_string(st.st_size));
  }
  size_t bytes = static_cast<size_t>(st.st_size);
  int code = 0;
  auto data = read_file(toc.get(), bytes, &code);
  if (data == nullptr) return fail(code, options.toc_path);
  std::string wrong;
  made->toc_ = Toc::load(std::move(data), bytes, &wrong);
  if (made->toc_ == nullptr) return fail(EBADMSG, options.toc_path + ": " + wrong);
  made->table_ = std::make_unique<ContentTable>(*made->toc_);
  made->digests_.reset(::open(options.digests_path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!made->digests_ || fstat(made->digests_.get(), &st) != 0) {
    return fail(errno, options.digests_path);
  }
  if (static_cast<uint64_t>(st.st_size) < uint64_t{32} * made->toc_->contents()) {
    return fail(EBADMSG, options.digests_path + ": shorter than 32 bytes a content");
  }
  int flags = O_PATH | O_DIRECTORY | O_CLOEXEC;
  made->content_dir_.reset(::open(options.content_dir.c_str(), flags));
  if (!made->content_dir_) return fail(errno, options.content_dir);
  made->incoming_dir_.reset(::open(options.incoming_dir.c_str(), flags));
  if (!made->incoming_dir_) return fail(errno, options.incoming_dir);
  return made;
}

UniqueFd Template::open_content(uint32_t content, int* error, bool at_once) const {
  uint8_t digest[32];
  iovec piece = {digest, sizeof digest};
  int wait = at_once ? RWF_NOWAIT : 0;
  ssize_t got = preadv2(digests_.get(), &piece, 1, off_t{32} * content, wait);
  if (got != sizeof digest) {
    *error = EIO;
    return UniqueFd();
  }
  char name[65];
  hex(digest, name);
  char path[66];
  snprintf(path, sizeof path, "%.2s/%s", name, name + 2);
  UniqueFd fd(open_to_read(content_dir_.get(), path, at_once));
  if (!fd && errno == ENOENT) fd.reset(open_to_read(incoming_dir_.get(), name, at_once));
  if (!fd && errno == ENOENT) fd.reset(open_to_read(content_dir_.get(), path, at_once));
  if (!fd) {
    // ENOENT would tell the program that its file does not exist; the truth is that the store is
    // damaged.
    *error = errno == ENOENT ? EIO : errno;
    return fd;
  }
  struct stat st;
  if (fstat(fd.get(), &st) != 0 || !S_ISREG(st.st_mode) ||
      static_cast<uint64_t>(st.st_size) != toc_->content(content).size) {
    *error = EIO;
    fd.reset();
  }
  return fd;
}

std::shared_ptr<const UniqueFd> Template::shared_content(uint32_t content, bool keep, int* error,
                                                         bool at_once) {
  uint32_t epoch = table_->epoch();
  {
    std::lock_guard lock(files_lock_);
    auto found = file_of_.find(content);
    if (found != file_of_.end() && found->second->epoch == epoch) {
      files_.splice(files_.begin(), files_, found->second);
      return found->second->fd;
    }
  }
  // Without the lock: opening a cold file may wait for the disk.
  UniqueFd opened = open_content(content, error, at_once);
  if (!opened) return nullptr;
  auto fd = std::make_shared<const UniqueFd>(std::move(opened));
  if (!keep) return fd;
  // Closed after the lock, where no READ has it any more.
  std::list<SharedFile> closed;
  std::lock_guard lock(files_lock_);
  auto found = file_of_.find(content);
  if (found != file_of_.end()) {
    closed.splice(closed.begin(), files_, found->second);
  } else if (files_.size() >= kFilesMax || !may_keep_one_more()) {
    if (files_.empty()) return fd;
    file_of_.erase(files_.back().content);
    closed.splice(closed.begin(), files_, std::prev(files_.end()));
  }
  files_.push_front({content, epoch, fd});
  file_of_[content] = files_.begin();
  return fd;
}

UniqueFd Template::open_arriving(uint32_t content, int* error) const {
  if (table_->state(content) == ContentState::kRoLayer) return open_content(content, error);
  std::string name = partial_prefix_ + "." + std::to_string(content);
  UniqueFd fd(
      openat(incoming_dir_.get(), name.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK));
  if (fd) return fd;
  if (errno != ENOENT) {
    *error = errno;
    return fd;
  }
  // Renamed since: complete, though the mark may still be on its way.
  return open_content(content, error);
}

}  // namespace firstlight
