#pragma once

#include "core/tensor.h"

namespace loza {

// out[i, :] = cache[slots[i], :] as fp32: the prefix rows that expanded attention reads.
struct LatentLoadParams {
  Tensor out;    // f32 [rows, latent + rope]
  Tensor cache;  // f32 | bf16 [cache slots, latent + rope]
  Tensor slots;  // i32 [rows], all valid

  void check() const;
};

}  // namespace loza
