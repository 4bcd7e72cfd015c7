#pragma once

#include "core/tensor.h"

namespace loza {

// One small matrix a head: out[t, h, :] = W[h] x[t, h, :]. Absorbs W_UK into the query and applies
// W_UV to the latent output (model-spec section 8) straight from views of kv_b_proj: either n or k
// of the weight is contiguous, so W_UK^T needs no copy.
struct HeadLinearParams {
  Tensor out;     // act | f32 [rows, heads, n], last dim contiguous
  Tensor x;       // act [rows, heads, k], last dim contiguous
  Tensor weight;  // f32 | bf16 [heads, n, k], stride 1 along n or along k

  void check(DType act) const;
};

}  // namespace loza
