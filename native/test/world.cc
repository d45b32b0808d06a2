// The fake kernel and the image.
#include "world.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <utility>

#include "../fuse_abi.h"

namespace firstlight::test {

void die(const std::string& what) {
  fprintf(stderr, "harness: %s\n", what.c_str());
  abort();
}

namespace {

struct Built {
  std::vector<TocRow> rows;
  std::vector<TocContent> contents;
  std::string xattrs;
  std::string names;
  uint32_t parts = 0;
  uint64_t total = 0;

  uint32_t name(const std::string& text) {
    uint32_t at = static_cast<uint32_t>(names.size());
    names += text;
    return at;
  }
  uint32_t content(uint64_t size, uint32_t row) {
    contents.push_back({size, parts, row});
    parts += static_cast<uint32_t>((size + kPartBytes - 1) / kPartBytes);
    total += size;
    return static_cast<uint32_t>(contents.size() - 1);
  }
  TocRow& add(const std::string& text, uint32_t mode, uint32_t parent) {
    TocRow row = {};
    row.name_offset = name(text);
    row.name_length = static_cast<uint16_t>(text.size());
    row.mode = mode;
    row.parent = parent;
    row.nlink = 1;
    row.mtime_sec = 1600000000;
    row.inode = static_cast<uint32_t>(rows.size());
    row.xattrs = kNone;
    rows.push_back(row);
    return rows.back();
  }
};

void put_u16(std::string* to, uint16_t value) { to->append(reinterpret_cast<char*>(&value), 2); }
void put_u32(std::string* to, uint32_t value) { to->append(reinterpret_cast<char*>(&value), 4); }

void put_set(std::string* to, const std::map<std::string, std::string>& set) {
  put_u16(to, static_cast<uint16_t>(set.size()));
  for (const auto& [name, value] : set) {
    put_u16(to, static_cast<uint16_t>(name.size()));
    put_u32(to, static_cast<uint32_t>(value.size()));
    *to += name + value;
  }
}

}  // namespace

// Rows: / [a-dir b-file c-link d-node], a-dir [40 files of which three are large, one empty].
std::vector<uint8_t> make_toc() {
  Built b;
  constexpr uint32_t kFiles = 40;
  put_set(&b.xattrs, {{"security.capability", std::string(20, '\1')}, {"user.note", ""}});
  uint32_t second = static_cast<uint32_t>(b.xattrs.size());
  put_set(&b.xattrs, {{"user.big", std::string(3000, 'x')}});
  TocRow& root = b.add("", S_IFDIR | 0755, 0);
  root.a = 1, root.b = 4, root.nlink = 3, root.size = 4096;
  TocRow& dir = b.add("a-dir", S_IFDIR | 0700, 0);
  dir.a = 5, dir.b = kFiles, dir.nlink = 2, dir.size = 4096, dir.xattrs = second;
  TocRow& file = b.add("b-file", S_IFREG | 04755, 0);
  file.size = 100, file.nlink = 2, file.xattrs = 0;
  file.a = b.content(file.size, 2);
  TocRow& link = b.add("c-link", S_IFLNK | 0777, 0);
  link.a = b.name("a-dir/f07"), link.b = 9, link.size = 9;
  TocRow& node = b.add("d-node", S_IFCHR | 0600, 0);
  node.a = 0x103;
  for (uint32_t i = 0; i < kFiles; i++) {
    char text[8];
    snprintf(text, sizeof text, "f%02u", i);
    uint32_t row = static_cast<uint32_t>(b.rows.size());
    TocRow& r = b.add(text, S_IFREG | 0644, 1);
    if (i == 0) {
      r.a = kNone;
    } else if (i == 1) {  // a hard link to b-file
      TocRow first = b.rows[2];
      r.mode = first.mode, r.size = first.size, r.a = first.a, r.nlink = 2, r.inode = 2;
      r.xattrs = first.xattrs;
    } else {
      r.size = i < 5 ? uint64_t{i} * kPartBytes + 5 : 50 + i;
      r.a = b.content(r.size, row);
    }
  }
  TocHeader h = {};
  h.magic = 0x31544c46, h.version = 1;
  h.rows = static_cast<uint32_t>(b.rows.size());
  h.contents = static_cast<uint32_t>(b.contents.size());
  h.parts = b.parts, h.inodes = h.rows - 1, h.total_bytes = b.total;
  h.rows_offset = sizeof h;
  h.contents_offset = h.rows_offset + h.rows * static_cast<uint32_t>(sizeof(TocRow));
  h.xattrs_offset = h.contents_offset + h.contents * static_cast<uint32_t>(sizeof(TocContent));
  h.xattrs_bytes = static_cast<uint32_t>(b.xattrs.size());
  h.names_offset = h.xattrs_offset + h.xattrs_bytes;
  h.names_bytes = static_cast<uint32_t>(b.names.size());
  h.file_bytes = h.names_offset + h.names_bytes;
  std::vector<uint8_t> bytes(h.file_bytes);
  memcpy(bytes.data(), &h, sizeof h);
  memcpy(bytes.data() + h.rows_offset, b.rows.data(), b.rows.size() * sizeof(TocRow));
  memcpy(bytes.data() + h.contents_offset, b.contents.data(),
         b.contents.size() * sizeof(TocContent));
  memcpy(bytes.data() + h.xattrs_offset, b.xattrs.data(), b.xattrs.size());
  memcpy(bytes.data() + h.names_offset, b.names.data(), b.names.size());
  return bytes;
}

Store::Store(const std::vector<uint8_t>& toc) {
  std::string pattern = std::filesystem::temp_directory_path() / "firstlight-harness-XXXXXX";
  if (mkdtemp(pattern.data()) == nullptr) die("no temporary directory");
  dir_ = pattern;
  std::filesystem::create_directory(dir_ + "/content");
  std::filesystem::create_directory(dir_ + "/incoming");
  FILE* file = fopen((dir_ + "/toc").c_str(), "wb");
  if (file == nullptr || fwrite(toc.data(), 1, toc.size(), file) != toc.size()) die("write toc");
  fclose(file);
  // Digest of content i: its number. Enough for a million.
  file = fopen((dir_ + "/digests").c_str(), "wb");
  for (uint32_t i = 0; i < 4096; i++) {
    uint8_t digest[32] = {};
    memcpy(digest, &i, sizeof i);
    fwrite(digest, 1, sizeof digest, file);
  }
  fclose(file);
}

Store::~Store() { std::filesystem::remove_all(dir_); }

std::shared_ptr<Template> Store::open() const {
  int error = 0;
  std::string what;
  return Template::open(
      {dir_ + "/toc", dir_ + "/digests", dir_ + "/content", dir_ + "/incoming", "part"}, &error,
      &what);
}

void Store::put(const Toc& toc, uint32_t content) const {
  uint8_t digest[4];
  memcpy(digest, &content, sizeof digest);
  char name[80];
  snprintf(name, sizeof name, "/incoming/%02x%02x%02x%02x%056d", digest[0], digest[1], digest[2],
           digest[3], 0);
  std::string path = dir_ + name;
  int fd = ::open(path.c_str(), O_CREAT | O_WRONLY | O_CLOEXEC, 0444);
  if (fd < 0 || ftruncate(fd, static_cast<off_t>(toc.content(content).size)) != 0) die("put");
  close(fd);
}

FakeTransport::~FakeTransport() {
  if (!backings_.empty()) die("backing ids that were never closed");
}

ssize_t FakeTransport::receive(uint32_t, uint8_t*, size_t) {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return stopped_; });
  return 0;
}

void FakeTransport::stop() {
  std::lock_guard lock(mutex_);
  stopped_ = true;
  changed_.notify_all();
}

void FakeTransport::expect(uint64_t unique, uint32_t opcode, uint64_t node) {
  bool silent = opcode == FUSE_FORGET || opcode == FUSE_BATCH_FORGET || opcode == FUSE_INTERRUPT ||
                opcode == FUSE_DESTROY;
  std::lock_guard lock(mutex_);
  if (!silent) pending_[unique] = {opcode, node};
}

int FakeTransport::reply(uint32_t, const iovec* pieces, int count) {
  size_t total = 0;
  for (int i = 0; i < count; i++) total += pieces[i].iov_len;
  std::vector<uint8_t> bytes;
  for (int i = 0; i < count; i++) {
    const auto* from = static_cast<const uint8_t*>(pieces[i].iov_base);
    bytes.insert(bytes.end(), from, from + pieces[i].iov_len);
  }
  fuse_out_header header;
  if (total < sizeof header) die("a reply without a header");
  memcpy(&header, bytes.data(), sizeof header);
  if (header.len != total) die("a reply whose length is wrong");
  if (header.error > 0 || header.error <= -512) die("a reply with a strange errno");
  if (header.error != 0 && total != sizeof header) die("an error with data");
  std::lock_guard lock(mutex_);
  auto found = pending_.find(header.unique);
  if (found == pending_.end()) {
    // A short FORGET or the like is answered with EINVAL, which the kernel ignores.
    if (header.error == -EINVAL) return -ENOENT;
    die("a reply that nobody waits for");
  }
  Pending request = found->second;
  pending_.erase(found);
  if (watches_end_ && request.opcode == FUSE_OPEN && header.error == -ENOSYS) {
    for (const Opened& open : opened_) {
      if ((open.flags & abi::kOpenPassthrough) != 0) die("the end of opens beside passthrough");
    }
    unseen_ = true;
  }
  const uint8_t* body = bytes.data() + sizeof header;
  if (request.opcode == FUSE_OPEN && header.error == 0) {
    check_open(request.node, body, total - sizeof header);
  }
  if ((request.opcode == FUSE_CREATE || request.opcode == FUSE_TMPFILE) && header.error == 0) {
    fuse_entry_out entry;
    if (total != sizeof header + sizeof entry + sizeof(abi::OpenOut)) die("a CREATE of that size");
    memcpy(&entry, body, sizeof entry);
    check_open(entry.nodeid, body + sizeof entry, total - sizeof header - sizeof entry);
  }
  return 0;
}

int FakeTransport::notify(iovec* pieces, int count) {
  size_t total = 0;
  for (int i = 0; i < count; i++) total += pieces[i].iov_len;
  fuse_out_header header;
  if (count < 2 || pieces[0].iov_len != sizeof header) die("a notification without a header");
  memcpy(&header, pieces[0].iov_base, sizeof header);
  if (header.unique != 0 || header.len != total || header.error <= 0) die("a wrong notification");
  return -ENOENT;
}

void FakeTransport::check_open(uint64_t node, const uint8_t* body, size_t bytes) {
  abi::OpenOut out;
  if (bytes != sizeof out) die("an OPEN reply of the wrong size");
  memcpy(&out, body, sizeof out);
  bool passthrough = (out.open_flags & abi::kOpenPassthrough) != 0;
  if (passthrough && !backings_.contains(out.backing_id)) die("a backing id that is not open");
  if (passthrough && unseen_) die("passthrough after the end of opens");
  constexpr uint32_t kBeside =
      abi::kOpenPassthrough | FOPEN_DIRECT_IO | FOPEN_NOFLUSH | FOPEN_PARALLEL_DIRECT_WRITES;
  if (passthrough && (out.open_flags & ~kBeside) != 0) die("flags that passthrough does not take");
  for (const Opened& other : opened_) {
    if (other.node != node) continue;
    bool beside = (other.flags & abi::kOpenPassthrough) != 0;
    if (beside && (!passthrough || other.backing != out.backing_id)) {
      die("an open beside passthrough that the kernel refuses");
    }
    bool cached = (other.flags & (abi::kOpenPassthrough | FOPEN_DIRECT_IO)) == 0;
    if (cached && passthrough) die("passthrough beside a cached open");
  }
  opened_.push_back({node, out.fh, out.open_flags, out.backing_id});
}

int FakeTransport::open_backing(int fd) {
  if (fcntl(fd, F_GETFD) < 0) die("a backing descriptor that is not open");
  if (int error = refuse_.load(); error != 0) return -error;
  if (meanwhile_) std::exchange(meanwhile_, nullptr)();
  std::lock_guard lock(mutex_);
  backings_.insert(next_backing_);
  return next_backing_++;
}

void FakeTransport::close_backing(int32_t id) {
  std::lock_guard lock(mutex_);
  if (backings_.erase(id) == 0) die("a backing id closed twice");
  for (const Opened& open : opened_) {
    if (!stopped_ && (open.flags & abi::kOpenPassthrough) != 0 && open.backing == id) {
      die("a backing id closed under an open file");
    }
  }
}

bool FakeTransport::unseen() {
  std::lock_guard lock(mutex_);
  return unseen_;
}

size_t FakeTransport::backings() {
  std::lock_guard lock(mutex_);
  return backings_.size();
}

size_t FakeTransport::missing() {
  std::lock_guard lock(mutex_);
  return pending_.size();
}

bool FakeTransport::pick_handle(Random& random, uint64_t* node, uint64_t* fh) {
  std::lock_guard lock(mutex_);
  if (opened_.empty()) return false;
  const Opened& picked = opened_[random() % opened_.size()];
  *node = picked.node;
  *fh = picked.fh;
  return true;
}

bool FakeTransport::released(uint64_t node, uint64_t fh) {
  std::lock_guard lock(mutex_);
  auto found = std::find_if(opened_.begin(), opened_.end(),
                            [&](const Opened& open) { return open.node == node && open.fh == fh; });
  if (found == opened_.end()) return false;
  opened_.erase(found);
  return true;
}

}  // namespace firstlight::test
