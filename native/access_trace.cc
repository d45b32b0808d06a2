// The bits that tell first accesses from later ones, and the records of the first.
#include "access_trace.h"

#include <sys/stat.h>

#include <algorithm>
#include <utility>

#include "procfs.h"

namespace firstlight {

namespace {

constexpr auto kRelaxed = std::memory_order_relaxed;
constexpr size_t kWordBits = 64;

size_t words_of(uint64_t bits) { return static_cast<size_t>((bits + kWordBits - 1) / kWordBits); }

uint64_t blocks_of(uint64_t bytes) {
  return (bytes + AccessTrace::kBlockBytes - 1) / AccessTrace::kBlockBytes;
}

// Sets bits [first, last]; how many of them are new.
uint32_t set_bits(std::atomic<uint64_t>* words, uint64_t first, uint64_t last) {
  uint32_t fresh = 0;
  for (uint64_t word = first / kWordBits; word <= last / kWordBits; word++) {
    uint64_t low = word == first / kWordBits ? first % kWordBits : 0;
    uint64_t high = word == last / kWordBits ? last % kWordBits : kWordBits - 1;
    uint64_t mask = (~uint64_t{0} >> (kWordBits - 1 - high)) & (~uint64_t{0} << low);
    // Most calls are for what was seen: a load leaves the cache line shared.
    if ((words[word].load(kRelaxed) & mask) == mask) continue;
    uint64_t before = words[word].fetch_or(mask, kRelaxed);
    fresh += static_cast<uint32_t>(__builtin_popcountll(mask & ~before));
  }
  return fresh;
}

}  // namespace

void AccessTrace::lay_out(const Toc& toc) {
  rows_ = toc.rows();
  opened_ = std::make_unique<std::atomic<uint64_t>[]>(words_of(rows_));
  auto several_parts = [&](uint32_t row) {
    uint32_t content = toc.content_of(toc.row(row));
    return content != kNone && toc.part_count(content) > 1;
  };
  for (uint32_t row = 0; row < rows_; row++) large_count_ += several_parts(row) ? 1 : 0;
  large_ = std::make_unique<Large[]>(large_count_);
  size_t next = 0;
  for (uint32_t row = 0; row < rows_; row++) {
    if (!several_parts(row)) continue;
    large_[next++] = {row, 0, words_, toc.row(row).size, 0};
    words_ += words_of(blocks_of(toc.row(row).size));
  }
  blocks_ = std::make_unique<std::atomic<uint64_t>[]>(words_);
}

void AccessTrace::start(const Toc& toc) {
  on_.store(false, kRelaxed);
  if (opened_ == nullptr) lay_out(toc);
  for (size_t i = 0; i < words_of(rows_); i++) opened_[i].store(0, kRelaxed);
  for (size_t i = 0; i < words_; i++) blocks_[i].store(0, kRelaxed);
  for (size_t i = 0; i < large_count_; i++) {
    uint32_t blocks = static_cast<uint32_t>(blocks_of(toc.row(large_[i].row).size));
    std::atomic_ref(large_[i].left).store(blocks, kRelaxed);
    std::atomic_ref(large_[i].read_to).store(0, kRelaxed);
  }
  std::lock_guard lock(mutex_);
  records_.clear();
  records_.reserve(kRecordsMax);
  bulk_readers_.clear();
  lost_ = 0;
  start_ = Clock::now();
  on_.store(true, std::memory_order_release);
}

void AccessTrace::stop() { on_.store(false, kRelaxed); }

AccessTrace::Taken AccessTrace::take() {
  {
    std::lock_guard lock(mutex_);
    if (records_.empty()) return {{}, std::exchange(lost_, 0)};
  }
  std::vector<AccessRecord> empty;
  // Made before the lock is held, and of its full size: no thread that answers requests allocates.
  if (on()) empty.reserve(kRecordsMax);
  std::lock_guard lock(mutex_);
  return {std::exchange(records_, std::move(empty)), std::exchange(lost_, 0)};
}

void AccessTrace::add_lost(uint64_t count) {
  std::lock_guard lock(mutex_);
  if (on()) lost_ += count;
}

AccessTrace::Large* AccessTrace::find(uint32_t row) const {
  Large* end = large_.get() + large_count_;
  Large* found = std::lower_bound(large_.get(), end, row,
                                  [](const Large& large, uint32_t key) { return large.row < key; });
  return found == end || found->row != row ? nullptr : found;
}

bool AccessTrace::first_open(uint32_t row) {
  if (!on_.load(std::memory_order_acquire) || row >= rows_) return false;
  return set_bits(opened_.get(), row, row) != 0;
}

bool AccessTrace::first_read(uint32_t row, uint64_t offset, uint32_t bytes, uint32_t tid) {
  if (bytes == 0 || !on_.load(std::memory_order_acquire)) return false;
  Large* large = find(row);
  if (large == nullptr) return false;
  std::atomic_ref read_to(large->read_to);
  if (read_to.load(kRelaxed) == offset) {
    read_to.store(offset + bytes, kRelaxed);
    if (offset + bytes == large->size) read_to_end(tid);
  }
  uint64_t last = (offset + bytes - 1) / kBlockBytes;
  uint32_t fresh = set_bits(blocks_.get() + large->first_word, offset / kBlockBytes, last);
  if (fresh == 0) return false;
  std::atomic_ref(large->left).fetch_sub(fresh, kRelaxed);
  return true;
}

bool AccessTrace::wants_reads(uint32_t row) const {
  if (!on_.load(std::memory_order_acquire)) return false;
  Large* large = find(row);
  return large != nullptr && std::atomic_ref(large->left).load(kRelaxed) != 0;
}

bool AccessTrace::shows_reads(uint32_t row, uint32_t tid, bool first, Clock::time_point at) {
  if (!wants_reads(row)) return false;
  if (!reads_whole_files(tid)) return true;
  if (first) return false;
  constexpr uint32_t kStep = 1u << 30;
  uint64_t size = find(row)->size;
  for (uint64_t offset = 0; offset < size; offset += kStep) {
    uint32_t bytes = static_cast<uint32_t>(std::min<uint64_t>(kStep, size - offset));
    if (first_read(row, offset, bytes)) record(kRead, row, offset, bytes, at, {});
  }
  return false;
}

void AccessTrace::read_to_end(uint32_t tid) {
  uint32_t process = tid == 0 ? 0 : process_of(tid);
  if (process == 0) return;
  std::lock_guard lock(mutex_);
  auto known = std::find_if(bulk_readers_.begin(), bulk_readers_.end(),
                            [process](const BulkReader& r) { return r.process == process; });
  BulkReader reader = {process, 1};
  if (known != bulk_readers_.end()) {
    reader.files += known->files;
    bulk_readers_.erase(known);
  }
  if (bulk_readers_.size() == kBulkReadersMax) bulk_readers_.pop_back();
  bulk_readers_.insert(bulk_readers_.begin(), reader);
}

bool AccessTrace::reads_whole_files(uint32_t tid) {
  {
    std::lock_guard lock(mutex_);
    if (bulk_readers_.empty()) return false;
  }
  // Not under the lock: it asks the kernel.
  uint32_t process = process_of(tid);
  std::lock_guard lock(mutex_);
  return std::any_of(bulk_readers_.begin(), bulk_readers_.end(), [process](const BulkReader& r) {
    return r.process == process && r.files >= kBulkFiles;
  });
}

void AccessTrace::record(Kind kind, uint32_t row, uint64_t offset, uint32_t length,
                         Clock::time_point at, Clock::duration wait) {
  auto ns = [](Clock::duration span) {
    return static_cast<double>(std::chrono::nanoseconds(span).count());
  };
  std::lock_guard lock(mutex_);
  if (!on() || at < start_) return;
  // Without room where the owner has stopped taking.
  if (records_.size() >= std::min(kRecordsMax, records_.capacity())) {
    lost_++;
    return;
  }
  records_.push_back(
      {ns(at - start_), ns(wait), static_cast<double>(offset), length, row, kind, 0});
}

}  // namespace firstlight
