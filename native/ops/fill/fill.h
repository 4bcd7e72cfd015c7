#pragma once

#include "core/tensor.h"

namespace loza {

// out = value, everywhere.
struct FillParams {
  Tensor out;  // f32 | bf16 | i32, contiguous
  float value = 0;

  void check(DType act) const;
};

}  // namespace loza
