// What is read of an image while a trace is recorded: the first open of each file, and the first
// read of each block of the files that have several parts. What it means, and where it is kept, is
// the owner's affair.
//
// Cost: off, one relaxed load an open or read. On, a bit for each file and block says whether it is
// the first, so that a lock is taken and a record kept only once for each of them.
//
// Threads: `start`, `stop` and `take` are the owner's. The others are called by any thread.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "content_table.h"

namespace firstlight {

/** One record, as src/native/index.ts hands it out; times in ns since `start`. */
struct AccessRecord {
  double at_ns;
  double wait_ns;
  double offset;
  uint32_t length;
  uint32_t row;
  uint32_t kind;
  uint32_t reserved;
};
static_assert(sizeof(AccessRecord) == 40);

class AccessTrace {
 public:
  /** The numbers are those of src/native/index.ts. */
  enum Kind : uint32_t { kOpen = 1, kOpenSeen = 2, kRead = 3 };
  /** Granularity of reads: no finer than what the kernel reads ahead. */
  static constexpr uint32_t kBlockBytes = 64u << 10;
  /** Files that a process has to read from start to end until the next ones are taken to be read
   * so. */
  static constexpr uint32_t kBulkFiles = 2;
  /** Records that are kept between two takes. */
  static constexpr size_t kRecordsMax = 65536;

  bool on() const { return on_.load(std::memory_order_relaxed); }

  /** Begins anew: nothing has been seen, and time is 0. */
  void start(const Toc& toc);
  /** Ends it; what was recorded is still to be taken. */
  void stop();

  struct Taken {
    std::vector<AccessRecord> records;
    /** Records that found no room since the last take. */
    uint64_t lost = 0;
  };
  Taken take();
  /** Counts accesses that are known to have been missed. Any thread. */
  void add_lost(uint64_t count);

  /** True where the file is opened for the first time; on the first call alone. */
  bool first_open(uint32_t row);
  /** True where any block of the range is read for the first time. `tid`: the thread that reads. */
  bool first_read(uint32_t row, uint64_t offset, uint32_t bytes, uint32_t tid = 0);
  /** True where the file has several parts and not all of its blocks were read: then its reads are
   * to come to us. */
  bool wants_reads(uint32_t row) const;

  /**
   * Whether the reads of a file that is opened now are to come to us: as `wants_reads`, but not
   * where the opener has read kBulkFiles such files from start to end. A backup or a checksum goes
   * on like that, and would only be held up; the file then counts as read by this open. Where it is
   * the `first` one, the caller's record of an open without reads says so.
   */
  bool shows_reads(uint32_t row, uint32_t tid, bool first, Clock::time_point at);

  /** Keeps a record. What came before `start` belongs to no trace, and is left out. */
  void record(Kind kind, uint32_t row, uint64_t offset, uint32_t length, Clock::time_point at,
              Clock::duration wait);

 private:
  struct Large {
    uint32_t row;
    /** Blocks that were not read yet. */
    uint32_t left;
    /** Its first word in blocks_. */
    size_t first_word;
    uint64_t size;
    /** End of what was read from the start on, one read after the other. */
    uint64_t read_to;
  };
  /** A process that reads whole files. */
  struct BulkReader {
    uint32_t process;
    uint32_t files;
  };
  static constexpr size_t kBulkReadersMax = 16;
  Large* find(uint32_t row) const;
  void lay_out(const Toc& toc);
  void read_to_end(uint32_t tid);
  bool reads_whole_files(uint32_t tid);

  std::atomic<bool> on_{false};
  // Laid out by the first `start` and never moved: a thread that saw on() before a stop may come
  // late.
  uint32_t rows_ = 0;
  std::unique_ptr<std::atomic<uint64_t>[]> opened_;
  std::unique_ptr<std::atomic<uint64_t>[]> blocks_;
  std::unique_ptr<Large[]> large_;  // by row
  size_t large_count_ = 0;
  size_t words_ = 0;

  std::mutex mutex_;
  std::vector<BulkReader> bulk_readers_;  // latest first
  Clock::time_point start_;
  std::vector<AccessRecord> records_;
  uint64_t lost_ = 0;
};

}  // namespace firstlight
