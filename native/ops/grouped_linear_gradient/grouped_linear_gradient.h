#pragma once

#include "core/tensor.h"

namespace loza {

// The gradients of grouped_linear. Row i of dy and dx belongs to expert e with
// starts[e] <= i < starts[e + 1]; rows from starts[experts] on belong to no expert.

// dx[i, :] = dy[i, :] weight[e], or dx[i, :] += ... Slots stay in sorted order: where the forward pass
// read x through `order`, sum_slots adds them up. Rows of no expert are left as they are.
struct GroupedLinearInputGradientParams {
  Tensor dx;      // act | f32 [slots, k]
  Tensor dy;      // act [slots, n], rows may be strided
  Tensor weight;  // f32 | bf16 [experts, n, k]
  Tensor starts;  // i32 [experts + 1], from expert_plan
  bool accumulate = false;

  void check(DType act) const;
};

// dw[e] += sum over the rows i of e of dy[i, :]^T x[source(i), :], in fp32;
// source(i) = order ? order[i] / top_k : i
struct GroupedLinearWeightGradientParams {
  Tensor dw;      // f32 [experts, n, k], contiguous along k
  Tensor dy;      // act [slots, n], rows may be strided
  Tensor x;       // act [rows, k], rows may be strided
  Tensor starts;  // i32 [experts + 1], from expert_plan
  Tensor order;   // i32 [slots], from expert_plan; may be absent
  int32_t top_k = 1;

  void check(DType act) const;
};

}  // namespace loza
