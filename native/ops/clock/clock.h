#pragma once

#include "core/tensor.h"

namespace loza {

// out = the device's clock in nanoseconds when all work enqueued before has run: low and high 32
// bits of a count whose origin means nothing. Two of them, in a recorded graph too, time what lies
// between them.
struct ClockParams {
  Tensor out;  // i32 [2], contiguous

  void check(DType act) const;
};

}  // namespace loza
