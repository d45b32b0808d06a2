// Tables with a few wrong bytes: refused with a reason, or safe to read everywhere.
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include <algorithm>

#include "../ops.h"
#include "harness.h"

namespace firstlight::test {

namespace {

void damage(std::vector<uint8_t>* bytes, Random& random) {
  static const uint32_t kWords[] = {0,          1,          2,          0x7fffffff, 0x80000000,
                                    0xffffffff, 0xfffffffe, 0x00100000, 64,         255};
  int changes = 1 + static_cast<int>(random() % 4);
  for (int i = 0; i < changes && !bytes->empty(); i++) {
    size_t at = random() % bytes->size();
    switch (random() % 6) {
      case 0:
        (*bytes)[at] ^= static_cast<uint8_t>(1u << (random() % 8));
        break;
      case 1:
        (*bytes)[at] = static_cast<uint8_t>(random());
        break;
      case 2: {
        uint32_t word = kWords[random() % std::size(kWords)];
        at = at / 4 * 4;
        if (at + 4 <= bytes->size()) memcpy(bytes->data() + at, &word, 4);
        break;
      }
      case 3: {  // a field of some row
        size_t row = 64 + random() % 45 * 64 + random() % 16 * 4;
        uint32_t word = static_cast<uint32_t>(random() % 64);
        if (row + 4 <= bytes->size()) memcpy(bytes->data() + row, &word, 4);
        break;
      }
      case 4:
        if (random() % 8 == 0) bytes->resize(at);
        break;
      case 5:
        if (random() % 8 == 0) bytes->insert(bytes->end(), random() % 100, 0x41);
        break;
    }
  }
}

// Everything that can be asked of a TOC.
void read_all(const Toc& toc) {
  uint64_t sum = 0;
  for (uint32_t i = 0; i < toc.rows(); i++) {
    const TocRow& row = toc.row(i);
    for (char c : toc.name(row)) sum += static_cast<uint8_t>(c);
    if ((row.mode & S_IFMT) == S_IFLNK) {
      for (char c : toc.target(row)) sum += static_cast<uint8_t>(c);
    }
    toc.each_xattr(row, [&](const TocXattr& x) {
      for (char c : x.name) sum += static_cast<uint8_t>(c);
      for (char c : x.value) sum += static_cast<uint8_t>(c);
      return true;
    });
    uint32_t content = toc.content_of(row);
    if (content != kNone) sum += toc.content(content).size + toc.part_count(content);
    if (i != 0) {
      auto found = toc.find(toc.row(row.parent), toc.name(row));
      if (!found || *found != i) die("a row that its directory does not find");
    }
    fuse_attr attributes;
    fill_attributes(toc, i, &attributes);
    sum += attributes.blocks;
  }
  for (uint32_t part = 0; part < std::min<uint32_t>(toc.parts(), 1000); part++) {
    if (toc.content_of_part(part) >= toc.contents()) die("a part of no content");
  }
  // Used, so that no read of it is optimized away.
  if (sum == 1) fputs("one\n", stderr);
}

std::unique_ptr<Toc> load(const std::vector<uint8_t>& bytes, std::string* error) {
  // Its own allocation, so that one byte past the end is seen.
  std::unique_ptr<uint8_t[]> copy(new uint8_t[bytes.size()]);
  if (!bytes.empty()) memcpy(copy.get(), bytes.data(), bytes.size());
  return Toc::load(std::move(copy), bytes.size(), error);
}

}  // namespace

void fuzz_toc(const Deadline& deadline, Random& random) {
  const std::vector<uint8_t> good = make_toc();
  std::string error;
  auto first = load(good, &error);
  if (first == nullptr) die("the good TOC is refused: " + error);
  read_all(*first);
  uint64_t rounds_done = 0;
  uint64_t taken = 0;
  while (!deadline.passed()) {
    std::vector<uint8_t> bytes = good;
    damage(&bytes, random);
    error.clear();
    auto toc = load(bytes, &error);
    rounds_done++;
    if (toc == nullptr) {
      if (error.empty()) die("refused without a reason");
      continue;
    }
    taken++;
    read_all(*toc);
  }
  printf("toc: %llu tables, %llu of them sound\n", static_cast<unsigned long long>(rounds_done),
         static_cast<unsigned long long>(taken));
}

}  // namespace firstlight::test
