#pragma once

#include "core/tensor.h"

namespace loza {

// Adds the experts' results to the residual, slots in ascending order (deterministic):
//   out[t, :] += sum_i weights[t, i] * (place[t * top_k + i] < 0 ? identity[t, :]
//                                                                : y[place[t * top_k + i], :])
struct CombineParams {
  Tensor out;       // f32 [rows, width]
  Tensor y;         // act [rows * top_k, width], in sorted order
  Tensor place;     // i32 [rows * top_k], from expert_plan
  Tensor weights;   // f32 [rows, top_k], from route
  Tensor identity;  // act [rows, width], what zero experts return; may be absent if there are none

  void check(DType act) const;
};

}  // namespace loza
