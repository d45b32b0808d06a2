// Which nodes the writable tree answers for: a bit for each row of the template, set once and never
// cleared, and who is just answering from the template all the same.
//
// A lane that answers from the template is `inside` while it does: its number is odd. `thaw` sets
// the bit and then waits for every lane that was inside; one that enters later sees the bit. Both
// sides are sequentially consistent, so that of the two (bit set, number odd) each side sees the
// other's or is seen. Opens are not inside, since they may wait for a disk: they look at the bit
// under the handle table's lock, when they are counted.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

namespace firstlight {

/** First node id of files that are in no template (FIRST_OWN_NODE of src/native/upcalls.ts). */
inline constexpr uint64_t kFirstOwnNode = uint64_t{1} << 32;

class Divergence {
 public:
  /** @param writable  false: nothing ever diverges, and no room is taken */
  Divergence(bool writable, uint32_t rows, uint32_t lanes);

  /** True where the tree answers for the node. */
  bool thawed(uint64_t node) const {
    if (!writable_) return false;
    if (node == 0 || node > rows_) return node >= kFirstOwnNode;
    uint64_t row = node - 1;
    return (bits_[row / 64].load(std::memory_order_seq_cst) >> (row % 64) & 1) != 0;
  }

  /** Sets the node's bit and waits for the lanes that are inside. Any thread that is not inside. */
  void thaw(uint64_t node);

  /** While it lives, its lane answers from the template. One thread for each lane. */
  class Inside {
   public:
    Inside(Divergence& of, uint32_t lane) : turn_(of.turns_[lane].value) {
      turn_.store(turn_.load(std::memory_order_relaxed) + 1, std::memory_order_seq_cst);
    }
    ~Inside() { turn_.store(turn_.load(std::memory_order_relaxed) + 1, std::memory_order_release); }
    Inside(const Inside&) = delete;
    Inside& operator=(const Inside&) = delete;

   private:
    std::atomic<uint64_t>& turn_;
  };

 private:
  struct alignas(64) Turn {
    std::atomic<uint64_t> value{0};
  };
  bool writable_;
  uint32_t rows_;
  std::unique_ptr<std::atomic<uint64_t>[]> bits_;
  std::vector<Turn> turns_;
};

}  // namespace firstlight
