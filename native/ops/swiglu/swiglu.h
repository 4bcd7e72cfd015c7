#pragma once

#include "core/tensor.h"

namespace loza {

// out = silu(gate) * up, silu(x) = x / (1 + exp(-x)).
struct SwigluParams {
  Tensor out;   // f32 [rows, width]; may be `gate` or `up`
  Tensor gate;  // f32 [rows, width]
  Tensor up;    // f32 [rows, width]

  void check() const;
};

}  // namespace loza
