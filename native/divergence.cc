// Thawing; the order is explained in divergence.h.
#include "divergence.h"

#include <sched.h>

namespace firstlight {

Divergence::Divergence(bool writable, uint32_t rows, uint32_t lanes)
    : writable_(writable), rows_(rows), turns_(writable ? lanes : 0) {
  if (writable) bits_ = std::make_unique<std::atomic<uint64_t>[]>((size_t{rows} + 63) / 64);
}

void Divergence::thaw(uint64_t node) {
  if (!writable_ || node == 0 || node > rows_) return;
  uint64_t row = node - 1;
  uint64_t bit = uint64_t{1} << (row % 64);
  bits_[row / 64].fetch_or(bit, std::memory_order_seq_cst);
  for (const Turn& turn : turns_) {
    uint64_t seen = turn.value.load(std::memory_order_seq_cst);
    if (seen % 2 == 0) continue;
    // An answer from memory and one system call: it is over at once, unless the lane has lost its
    // CPU.
    while (turn.value.load(std::memory_order_acquire) == seen) sched_yield();
  }
}

}  // namespace firstlight
