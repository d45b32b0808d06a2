// Access to a checked TOC; the check itself is toc_check.cc.
#include "toc.h"

#include <sys/stat.h>

#include <algorithm>

namespace firstlight {

uint32_t Toc::content_of(const TocRow& row) const {
  return (row.mode & S_IFMT) == S_IFREG ? row.a : kNone;
}

uint32_t Toc::content_of_part(uint32_t part) const {
  const TocContent* end = contents_ + contents();
  const TocContent* after = std::upper_bound(
      contents_, end, part, [](uint32_t p, const TocContent& c) { return p < c.first_part; });
  return static_cast<uint32_t>(after - contents_) - 1;
}

std::optional<uint32_t> Toc::find(const TocRow& directory, std::string_view name) const {
  if ((directory.mode & S_IFMT) != S_IFDIR) return std::nullopt;
  uint32_t low = directory.a;
  uint32_t high = directory.a + directory.b;
  while (low < high) {
    uint32_t middle = low + (high - low) / 2;
    int order = this->name(rows_[middle]).compare(name);
    if (order == 0) return middle;
    if (order < 0) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return std::nullopt;
}

}  // namespace firstlight
