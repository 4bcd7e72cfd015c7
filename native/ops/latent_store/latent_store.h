#pragma once

#include "core/tensor.h"

namespace loza {

// Writes one cache row a token (model-spec section 8):
//   cache[slot] = [ scale * weight * kv[0:latent] / rms | rope(kv[latent:]) ]
// Slot -1 is padding: nothing is written.
struct LatentStoreParams {
  Tensor cache;       // f32 | bf16 [slots, latent + rope]
  Tensor kv;          // act [rows, latent + rope], the output of kv_a_proj_with_mqa
  Tensor weight;      // f32 | bf16 [latent], kv_a_layernorm
  Tensor rope_table;  // f32 [rows, rope]
  Tensor slots;       // i32 [rows]
  float eps = 0;
  float scale = 1;  // LongCat's a_kv

  void check(DType act) const;
};

}  // namespace loza
