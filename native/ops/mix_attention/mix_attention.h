#pragma once

#include "core/tensor.h"

namespace loza {

// LoZA's calibration (equation 3): an attention between full and streaming.
//   out = alpha * full + (1 - alpha) * streaming
// alpha of exactly 1 or 0 gives the bits of full or of streaming (where those are of out's type), and
// elements that are equal in both are in `out` what they are there, whatever alpha.
// Tensors are contiguous and of one shape; `full` and `streaming` are of one type.
struct MixAttentionParams {
  Tensor out;        // act [rows, heads, value]
  Tensor full;       // act | f32 [rows, heads, value]
  Tensor streaming;  // act | f32 [rows, heads, value]
  Tensor alpha;      // f32 [1]

  void check(DType act) const;
};

// Reverse mode of MixAttention:
//   d_full = alpha * d_out,  d_streaming = (1 - alpha) * d_out     overwritten; absent: not wanted
//   d_alpha += sum(d_out * (full - streaming))                     fp32, in an order that sizes decide
struct MixAttentionBackwardParams {
  Tensor d_full;       // act [rows, heads, value], optional
  Tensor d_streaming;  // act [rows, heads, value], optional
  Tensor d_alpha;      // f32 [1]
  Tensor d_out;        // act [rows, heads, value]
  Tensor full;         // act | f32 [rows, heads, value]
  Tensor streaming;    // act | f32 [rows, heads, value]
  Tensor alpha;        // f32 [1]

  void check(DType act) const;
};

}  // namespace loza
