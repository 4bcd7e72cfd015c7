#pragma once

#include "core/tensor.h"

namespace loza {

// Adds up what the slots of a token have, in ascending order; slots of zero experts have nothing:
//   out[t, :] += sum_i place[t * top_k + i] < 0 ? 0 : y[place[t * top_k + i], :]
// The gradient of reading x through expert_plan's order.
struct SumSlotsParams {
  Tensor out;    // f32 [rows, width]
  Tensor y;      // act | f32 [rows * top_k, width], in sorted order
  Tensor place;  // i32 [rows * top_k], from expert_plan

  void check(DType act) const;
};

}  // namespace loza
