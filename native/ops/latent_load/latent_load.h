#pragma once

#include "core/tensor.h"

namespace loza {

// out[i, :] = cache[slots[i], :]: the prefix rows that expanded attention reads.
struct LatentLoadParams {
  Tensor out;    // act [rows, latent + rope]
  Tensor cache;  // f32 | bf16 [cache slots, latent + rope]
  Tensor slots;  // i32 [rows], all valid

  void check(DType act) const;
};

}  // namespace loza
