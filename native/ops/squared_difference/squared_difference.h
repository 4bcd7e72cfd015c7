#pragma once

#include "core/tensor.h"

namespace loza {

// How far final hidden states are from those of another model, and its gradient, row by row:
//   loss[t] = weights[t] * mean_c (x[t, c] - target[t, c])^2
//   dx[t, c] = weights[t] * 2 / width * (x[t, c] - target[t, c])
struct SquaredDifferenceParams {
  Tensor loss;     // f32 [rows]
  Tensor dx;       // act | f32 [rows, width]; may be `x`; may be absent
  Tensor x;        // act | f32 [rows, width]
  Tensor target;   // act | f32 [rows, width]
  Tensor weights;  // f32 [rows]

  void check(DType act) const;
};

}  // namespace loza
