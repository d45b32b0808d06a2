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

// On an error nullptr, with a positive errno and what it concerns.
std::unique_ptr<uint8_t[]> read_toc(const std::string& path, size_t* bytes, int* error,
                                    std::string* what) {
  *what = path;
  UniqueFd toc(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  struct stat st;
  if (!toc || fstat(toc.get(), &st) != 0) {
    *error = errno;
    return nullptr;
  }
  if (!S_ISREG(st.st_mode) || st.st_size <= 0 || st.st_size > kTocMax) {
    *error = EBADMSG;
    *what += ": toc: size " + std::to_string(st.st_size);
    return nullptr;
  }
  *bytes = static_cast<size_t>(st.st_size);
  return read_file(toc.get(), *bytes, error);
}

bool same_file(const UniqueFd& one, const UniqueFd& other) {
  struct stat a, b;
  return fstat(one.get(), &a) == 0 && fstat(other.get(), &b) == 0 && a.st_dev == b.st_dev &&
         a.st_ino == b.st_ino;
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
  size_t bytes = 0;
  int code = 0;
  auto data = read_toc(options.toc_path, &bytes, &code, what);
  if (data == nullptr) return fail(code, *what);
  std::string wrong;
  made->toc_ = Toc::load(std::move(data), bytes, &wrong);
  if (made->toc_ == nullptr) return fail(EBADMSG, options.toc_path + ": " + wrong);
  made->table_ = std::make_unique<ContentTable>(*made->toc_);
  code = open_places(options, made->toc_->contents(), &made->places_, what);
  return code == 0 ? made : fail(code, *what);
}

int Template::open_places(const TemplateOptions& options, uint32_t contents, Places* places,
                          std::string* what) {
  *what = options.digests_path;
  places->digests.reset(::open(options.digests_path.c_str(), O_RDONLY | O_CLOEXEC));
  struct stat st;
  if (!places->digests || fstat(places->digests.get(), &st) != 0) return errno;
  if (static_cast<uint64_t>(st.st_size) < uint64_t{32} * contents) {
    *what += ": shorter than 32 bytes a content";
    return EBADMSG;
  }
  int flags = O_PATH | O_DIRECTORY | O_CLOEXEC;
  *what = options.content_dir;
  places->content_dir.reset(::open(options.content_dir.c_str(), flags));
  if (!places->content_dir) return errno;
  *what = options.incoming_dir;
  places->incoming_dir.reset(::open(options.incoming_dir.c_str(), flags));
  return places->incoming_dir ? 0 : errno;
}

int Template::reopen(const TemplateOptions& options, std::string* what) {
  Places now;
  if (int error = open_places(options, toc_->contents(), &now, what); error != 0) return error;
  bool same = same_file(now.digests, places_.digests) &&
              same_file(now.content_dir, places_.content_dir) &&
              same_file(now.incoming_dir, places_.incoming_dir);
  if (same) return 0;
  size_t bytes = 0;
  int error = 0;
  auto data = read_toc(options.toc_path, &bytes, &error, what);
  if (data == nullptr) return error;
  // Contents are numbered by it.
  std::string_view read{reinterpret_cast<const char*>(data.get()), bytes};
  if (read != toc_->bytes()) return ESTALE;
  // The digests last: they are of what stands there now.
  bool done = dup3(now.content_dir.get(), places_.content_dir.get(), O_CLOEXEC) >= 0 &&
              dup3(now.incoming_dir.get(), places_.incoming_dir.get(), O_CLOEXEC) >= 0 &&
              dup3(now.digests.get(), places_.digests.get(), O_CLOEXEC) >= 0;
  return done ? 0 : errno;
}

UniqueFd Template::open_content(uint32_t content, int* error, bool at_once) const {
  uint8_t digest[32];
  iovec piece = {digest, sizeof digest};
  int wait = at_once ? RWF_NOWAIT : 0;
  ssize_t got = preadv2(places_.digests.get(), &piece, 1, off_t{32} * content, wait);
  if (got != sizeof digest) {
    *error = EIO;
    return UniqueFd();
  }
  char name[65];
  hex(digest, name);
  char path[66];
  snprintf(path, sizeof path, "%.2s/%s", name, name + 2);
  UniqueFd fd(open_to_read(places_.content_dir.get(), path, at_once));
  if (!fd && errno == ENOENT) fd.reset(open_to_read(places_.incoming_dir.get(), name, at_once));
  if (!fd && errno == ENOENT) fd.reset(open_to_read(places_.content_dir.get(), path, at_once));
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
  UniqueFd fd(openat(places_.incoming_dir.get(), name.c_str(),
                     O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK));
  if (fd) return fd;
  if (errno != ENOENT) {
    *error = errno;
    return fd;
  }
  // Renamed since: complete, though the mark may still be on its way.
  return open_content(content, error);
}

}  // namespace firstlight
