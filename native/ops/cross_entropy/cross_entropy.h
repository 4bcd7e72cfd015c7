#pragma once

#include "core/tensor.h"

namespace loza {

// The loss of next tokens and its gradient, row by row:
//   loss[t] = weights[t] * (log sum_v exp(logits[t, v]) - logits[t, targets[t]])
//   dlogits[t, v] = weights[t] * (softmax(logits[t])[v] - (v == targets[t]))
// Rows of weight 0 give zeros, whatever their target. The other targets must be in the vocabulary:
// one outside fails the stream with ERR_LOZA_INVALID_ARG on the CPU and gives a NaN row on CUDA.
struct CrossEntropyParams {
  Tensor loss;     // f32 [rows]
  Tensor dlogits;  // act | f32 [rows, vocabulary]; may be `logits`; may be absent
  Tensor logits;   // f32 [rows, vocabulary]
  Tensor targets;  // i32 [rows]
  Tensor weights;  // f32 [rows]

  void check(DType act) const;
};

}  // namespace loza
