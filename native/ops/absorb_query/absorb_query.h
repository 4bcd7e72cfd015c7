#pragma once

#include "core/tensor.h"

namespace loza {

// The query of absorbed attention (model-spec section 8):
//   out[t, h] = [ W_UK[h]^T q[t, h, 0:nope] | rope(q[t, h, nope:]) ]
// The weight is a view of kv_b_proj, as in head_linear.
struct AbsorbQueryParams {
  Tensor out;         // act [rows, heads, latent + rope]
  Tensor q;           // act [rows, heads, nope + rope]
  Tensor weight;      // f32 | bf16 [heads, latent, nope], stride 1 along latent or along nope
  Tensor rope_table;  // f32 [rows, rope], from rope_table

  void check(DType act) const;
};

}  // namespace loza
