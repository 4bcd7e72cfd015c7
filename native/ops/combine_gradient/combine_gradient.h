#pragma once

#include "core/tensor.h"

namespace loza {

// The gradients of combine. With slot s = t * top_k + i at sorted place p = place[s]:
//   p >= 0:  dy[p, :] = weights[t, i] * dout[t, :],       dweights[t, i] = dout[t, :] . y[p, :]
//   p < 0:   didentity[t, :] += weights[t, i] * dout[t, :],
//            dweights[t, i] = dout[t, :] . identity[t, :]
// The residual itself passes its gradient on unchanged. Rows of dy that belong to no expert are left
// as they are.
struct CombineGradientParams {
  Tensor dy;         // act [rows * top_k, width], in sorted order
  Tensor dweights;   // f32 [rows, top_k]
  Tensor didentity;  // f32 [rows, width]; absent with identity
  Tensor dout;       // f32 [rows, width]
  Tensor y;          // act [rows * top_k, width], in sorted order
  Tensor place;      // i32 [rows * top_k], from expert_plan
  Tensor weights;    // f32 [rows, top_k], from route
  Tensor identity;   // act [rows, width]; may be absent if there are no zero experts

  void check(DType act) const;
};

}  // namespace loza
