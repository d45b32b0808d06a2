// The flat TOC in memory, read in place. The layout is that of src/delta/toc-layout.ts.
//
// A Toc can only be had through `load`, which checks every offset, count and name in one pass:
// after it no accessor can leave the table, whatever the file on disk held. The bytes are copied
// out of the file, not mapped, since a file that shrinks or cannot be read under a mapping kills
// the process.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

namespace firstlight {

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the TOC is read in place");

inline constexpr uint32_t kNone = 0xffffffffu;
inline constexpr uint32_t kPartBytes = 1u << 20;

struct TocHeader {
  uint32_t magic, version, rows, contents, parts, inodes;
  uint64_t total_bytes;
  uint32_t rows_offset, contents_offset, xattrs_offset, xattrs_bytes, names_offset, names_bytes;
  uint32_t file_bytes, reserved;
};
static_assert(sizeof(TocHeader) == 64);

struct TocRow {
  uint32_t name_offset;
  uint16_t name_length;
  uint16_t layer;
  uint32_t mode, uid, gid, mtime_nsec;
  int64_t mtime_sec;
  uint64_t size;
  uint32_t parent, a, b, nlink, inode, xattrs;
};
static_assert(sizeof(TocRow) == 64);

struct TocContent {
  uint64_t size;
  uint32_t first_part;
  uint32_t first_row;
};
static_assert(sizeof(TocContent) == 16);

/** One extended attribute as it stands in a set. */
struct TocXattr {
  std::string_view name;
  std::string_view value;
};

class Toc {
 public:
  /** Checks `bytes` and takes them. On an error returns nullptr and names the wrong field. */
  static std::unique_ptr<Toc> load(std::unique_ptr<uint8_t[]> bytes, size_t length,
                                   std::string* error);

  /** The whole table as it stands in its file. */
  std::string_view bytes() const {
    return {reinterpret_cast<const char*>(bytes_.get()), header_->file_bytes};
  }
  uint32_t rows() const { return header_->rows; }
  uint32_t contents() const { return header_->contents; }
  uint32_t parts() const { return header_->parts; }
  uint32_t inodes() const { return header_->inodes; }
  uint64_t total_bytes() const { return header_->total_bytes; }
  /** True where any row has extended attributes. */
  bool has_xattrs() const { return header_->xattrs_bytes != 0; }
  /** True where any row has a POSIX ACL. */
  bool has_acls() const { return has_acls_; }

  /** `row` must be below rows(). */
  const TocRow& row(uint32_t row) const { return rows_[row]; }
  /** `content` must be below contents(). */
  const TocContent& content(uint32_t content) const { return contents_[content]; }
  std::string_view name(const TocRow& row) const {
    return {names_ + row.name_offset, row.name_length};
  }
  /** Only for symlinks. */
  std::string_view target(const TocRow& row) const { return {names_ + row.a, row.b}; }
  /** Content index of a regular file; kNone for an empty one and for other types. */
  uint32_t content_of(const TocRow& row) const;
  /** Number of parts of a content. */
  uint32_t part_count(uint32_t content) const {
    return static_cast<uint32_t>((contents_[content].size + kPartBytes - 1) / kPartBytes);
  }
  /** Content that a part (numbered through all contents, below parts()) belongs to. */
  uint32_t content_of_part(uint32_t part) const;
  /** Row of a name in a directory; nullopt where there is none or `directory` is no directory. */
  std::optional<uint32_t> find(const TocRow& directory, std::string_view name) const;

  /** Calls `visit(TocXattr)` for each attribute in order of names until it returns false. */
  template <class Visit>
  void each_xattr(const TocRow& row, Visit visit) const {
    if (row.xattrs == kNone) return;
    const uint8_t* at = xattrs_ + row.xattrs;
    uint16_t count = load_u16(at);
    at += 2;
    for (uint16_t i = 0; i < count; i++) {
      uint16_t name_length = load_u16(at);
      uint32_t value_length = load_u32(at + 2);
      const char* text = reinterpret_cast<const char*>(at + 6);
      if (!visit(TocXattr{{text, name_length}, {text + name_length, value_length}})) return;
      at += 6 + name_length + value_length;
    }
  }

 private:
  friend class TocChecker;
  Toc() = default;
  static uint16_t load_u16(const uint8_t* at) {
    uint16_t value;
    __builtin_memcpy(&value, at, sizeof value);
    return value;
  }
  static uint32_t load_u32(const uint8_t* at) {
    uint32_t value;
    __builtin_memcpy(&value, at, sizeof value);
    return value;
  }

  std::unique_ptr<uint8_t[]> bytes_;
  const TocHeader* header_ = nullptr;
  const TocRow* rows_ = nullptr;
  const TocContent* contents_ = nullptr;
  const uint8_t* xattrs_ = nullptr;
  const char* names_ = nullptr;
  bool has_acls_ = false;
};

}  // namespace firstlight
