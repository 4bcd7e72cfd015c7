#pragma once

#include "core/tensor.h"

namespace loza {

// The experts' matrices. Row i of `out` belongs to expert e with starts[e] <= i < starts[e + 1]:
//   out[i, :] = weight[e] x[source(i), :],  source(i) = order ? order[i] / top_k : i
// Rows from starts[experts] on belong to no expert and are left as they are. With f8e4m3 and many rows
// an expert, x is rounded as linear does.
struct GroupedLinearParams {
  Tensor out;     // act [slots, n]
  Tensor x;       // act [rows, k]
  Tensor weight;  // f32 | bf16 | f8e4m3 [experts, n, k]
  Tensor scale;   // f32 [experts, ceil(n / 128), ceil(k / 128)]; only, and always, with f8e4m3
  Tensor starts;  // i32 [experts + 1], from expert_plan
  Tensor order;   // i32 [slots], from expert_plan; may be absent
  int32_t top_k = 1;

  void check(DType act) const;
};

}  // namespace loza
