// The check of a TOC that comes from disk: one pass over each section, linear in its size, whatever
// it holds. src/delta/toc-check.ts checks the same rules where a TOC comes from the network; here
// they keep a file that was damaged since from leading a thread out of the table.
#include <sys/stat.h>

#include <cstring>
#include <vector>

#include "toc.h"

namespace firstlight {

namespace {
constexpr uint32_t kMagic = 0x31544c46;
constexpr uint32_t kVersion = 1;
constexpr uint32_t kNameMax = 255;
constexpr uint32_t kTargetMax = 4095;
constexpr uint32_t kXattrValueMax = 65536;
}  // namespace

class TocChecker {
 public:
  TocChecker(Toc* toc, size_t length, std::string* error)
      : toc_(*toc), length_(length), error_(error) {}

  bool check() {
    if (!sections() || !xattr_sets() || !contents()) return false;
    next_child_ = 1;
    for (uint32_t row = 0; row < toc_.rows(); row++) {
      if (!names(row) || !attributes(row) || !inode(row) || !reference(row)) return false;
    }
    if (next_child_ != toc_.rows()) return fail("rows: some have no directory", next_child_);
    return true;
  }

 private:
  bool fail(const char* what, uint64_t where) {
    *error_ = std::string("toc: ") + what + " (at " + std::to_string(where) + ")";
    return false;
  }

  bool sections() {
    if (length_ < sizeof(TocHeader)) return fail("shorter than its header", length_);
    const uint8_t* bytes = toc_.bytes_.get();
    const auto* h = toc_.header_ = reinterpret_cast<const TocHeader*>(bytes);
    if (h->magic != kMagic) return fail("magic", h->magic);
    if (h->version != kVersion) return fail("version", h->version);
    if (h->file_bytes != length_) return fail("file size", h->file_bytes);
    if (h->rows == 0) return fail("no rows", 0);
    uint64_t contents_at = sizeof(TocHeader) + uint64_t{h->rows} * sizeof(TocRow);
    uint64_t xattrs_at = contents_at + uint64_t{h->contents} * sizeof(TocContent);
    uint64_t names_at = xattrs_at + h->xattrs_bytes;
    if (h->rows_offset != sizeof(TocHeader)) return fail("rows offset", h->rows_offset);
    if (h->contents_offset != contents_at) return fail("contents offset", h->contents_offset);
    if (h->xattrs_offset != xattrs_at) return fail("xattrs offset", h->xattrs_offset);
    if (h->names_offset != names_at) return fail("names offset", h->names_offset);
    if (names_at + h->names_bytes != length_) return fail("names size", h->names_bytes);
    toc_.rows_ = reinterpret_cast<const TocRow*>(bytes + h->rows_offset);
    toc_.contents_ = reinterpret_cast<const TocContent*>(bytes + h->contents_offset);
    toc_.xattrs_ = bytes + h->xattrs_offset;
    toc_.names_ = reinterpret_cast<const char*>(bytes + h->names_offset);
    return true;
  }

  // The section is a run of sets. Rows may only point at the start of one, so that checking takes
  // one pass, however many rows share a set.
  bool xattr_sets() {
    uint64_t end = toc_.header_->xattrs_bytes;
    set_starts_.assign(end, false);
    uint64_t at = 0;
    while (at < end) {
      set_starts_[at] = true;
      if (end - at < 2) return fail("xattr set ends early", at);
      uint16_t count = Toc::load_u16(toc_.xattrs_ + at);
      if (count == 0) return fail("empty xattr set", at);
      at += 2;
      std::string_view last;
      for (uint16_t i = 0; i < count; i++) {
        if (end - at < 6) return fail("xattr ends early", at);
        uint16_t name_length = Toc::load_u16(toc_.xattrs_ + at);
        uint32_t value_length = Toc::load_u32(toc_.xattrs_ + at + 2);
        if (name_length == 0 || name_length > kNameMax) return fail("xattr name length", at);
        if (value_length > kXattrValueMax) return fail("xattr value length", at);
        at += 6;
        if (end - at < uint64_t{name_length} + value_length) return fail("xattr ends early", at);
        std::string_view name(reinterpret_cast<const char*>(toc_.xattrs_ + at), name_length);
        if (name.find('\0') != name.npos) return fail("NUL in an xattr name", at);
        if (name <= last) return fail("xattr names are not in order", at);
        if (name.starts_with("system.posix_acl_")) toc_.has_acls_ = true;
        last = name;
        at += name_length + value_length;
      }
    }
    return true;
  }

  bool contents() {
    uint64_t parts = 0;
    uint64_t total = 0;
    for (uint32_t i = 0; i < toc_.contents(); i++) {
      const TocContent& c = toc_.contents_[i];
      if (c.size == 0 || c.size > uint64_t{1} << 53) return fail("content size", i);
      if (c.first_part != parts) return fail("first part of a content", i);
      if (c.first_row >= toc_.rows()) return fail("first row of a content", i);
      parts += (c.size + kPartBytes - 1) / kPartBytes;
      total += c.size;
      if (parts > kNone) return fail("number of parts", i);
    }
    if (parts != toc_.parts()) return fail("number of parts", toc_.parts());
    if (total != toc_.total_bytes()) return fail("sum of the contents", toc_.total_bytes());
    return true;
  }

  bool within_names(uint64_t offset, uint64_t length) const {
    return offset + length <= toc_.header_->names_bytes;
  }

  bool names(uint32_t row) {
    const TocRow& r = toc_.rows_[row];
    if (!within_names(r.name_offset, r.name_length)) return fail("name outside the table", row);
    if (row == 0) {
      if (r.name_length != 0) return fail("the root has a name", row);
      if (r.parent != 0) return fail("the root has a parent", row);
      return true;
    }
    std::string_view name = toc_.name(r);
    if (name.empty() || name.size() > kNameMax) return fail("name length", row);
    if (name == "." || name == "..") return fail("name is . or ..", row);
    if (memchr(name.data(), '/', name.size()) != nullptr) return fail("slash in a name", row);
    if (memchr(name.data(), '\0', name.size()) != nullptr) return fail("NUL in a name", row);
    // A parent stands before its children (breadth-first order), so its range is checked by now.
    if (r.parent >= row) return fail("parent after its child", row);
    const TocRow& parent = toc_.rows_[r.parent];
    if ((parent.mode & S_IFMT) != S_IFDIR || row < parent.a || row - parent.a >= parent.b) {
      return fail("parent does not list the row", row);
    }
    if (row > parent.a && toc_.name(toc_.rows_[row - 1]) >= name) {
      return fail("names are not in order", row);
    }
    return true;
  }

  bool attributes(uint32_t row) {
    const TocRow& r = toc_.rows_[row];
    uint32_t type = r.mode & S_IFMT;
    if ((r.mode & ~(uint32_t{S_IFMT} | 07777)) != 0) return fail("mode", row);
    if (row == 0 && type != S_IFDIR) return fail("the root is no directory", row);
    if (r.mtime_nsec >= 1000000000) return fail("nanoseconds", row);
    if (r.size > uint64_t{1} << 53) return fail("size", row);
    if (r.nlink == 0) return fail("link count", row);
    switch (type) {
      case S_IFDIR:
      case S_IFREG:
      case S_IFLNK:
      case S_IFCHR:
      case S_IFBLK:
      case S_IFIFO:
      case S_IFSOCK:
        break;
      default:
        return fail("file type", row);
    }
    if (r.xattrs != kNone && (r.xattrs >= set_starts_.size() || !set_starts_[r.xattrs])) {
      return fail("xattrs of a row", row);
    }
    return true;
  }

  bool inode(uint32_t row) {
    const TocRow& r = toc_.rows_[row];
    if (r.inode == row) return true;
    if (r.inode > row) return fail("hard link to a later row", row);
    const TocRow& first = toc_.rows_[r.inode];
    // The kernel sees one inode, so every row of the group must say the same about it.
    if (first.inode != r.inode || first.mode != r.mode || (r.mode & S_IFMT) == S_IFDIR ||
        first.uid != r.uid || first.gid != r.gid || first.size != r.size || first.a != r.a ||
        first.b != r.b || first.mtime_sec != r.mtime_sec || first.mtime_nsec != r.mtime_nsec ||
        first.nlink != r.nlink || first.xattrs != r.xattrs) {
      return fail("hard links differ", row);
    }
    return true;
  }

  bool reference(uint32_t row) {
    const TocRow& r = toc_.rows_[row];
    switch (r.mode & S_IFMT) {
      case S_IFDIR:
        if (r.b == 0) return r.a == 0 ? true : fail("children of an empty directory", row);
        if (r.a != next_child_ || r.a <= row || r.b > toc_.rows() - r.a) {
          return fail("children of a directory", row);
        }
        next_child_ += r.b;
        return true;
      case S_IFREG:
        if (r.a == kNone) return r.size == 0 ? true : fail("content of a file", row);
        if (r.a >= toc_.contents() || toc_.contents_[r.a].size != r.size) {
          return fail("content of a file", row);
        }
        return true;
      case S_IFLNK: {
        if (r.b == 0 || r.b > kTargetMax || r.size != r.b) return fail("length of a target", row);
        if (!within_names(r.a, r.b)) return fail("target outside the table", row);
        if (memchr(toc_.names_ + r.a, '\0', r.b) != nullptr) return fail("NUL in a target", row);
        return true;
      }
      default:
        return r.size == 0 ? true : fail("size of a special file", row);
    }
  }

  Toc& toc_;
  size_t length_;
  std::string* error_;
  uint32_t next_child_ = 0;
  std::vector<bool> set_starts_;
};

std::unique_ptr<Toc> Toc::load(std::unique_ptr<uint8_t[]> bytes, size_t length,
                               std::string* error) {
  std::unique_ptr<Toc> toc(new Toc());
  toc->bytes_ = std::move(bytes);
  if (!TocChecker(toc.get(), length, error).check()) return nullptr;
  return toc;
}

}  // namespace firstlight
