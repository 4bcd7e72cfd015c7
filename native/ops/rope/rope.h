#pragma once

#include "core/tensor.h"

namespace loza {

// The rotations of one step, made once and shared by every layer:
//   table[t, 2p] = attention_scale * cos(a), table[t, 2p + 1] = attention_scale * sin(a),
//   a = positions[t] * inverse_frequencies[p]
// `exact_angles` false: a is the fp32 product of fp32 factors, as in Hugging Face and SGLang.
// True: a is computed in float64 (up to 0.03 rad apart near position 1M).
// cos and sin are evaluated in float64 either way.
struct RopeTableParams {
  Tensor table;      // f32 [rows, dim]
  Tensor positions;  // i32 [rows]
  Tensor
      inverse_frequencies;  // f32 [2, dim / 2]: row 0 + row 1 is the float64 value, row 0 its fp32
  float attention_scale = 1;
  bool exact_angles = false;

  void check(DType act) const;
};

// Rotates interleaved pairs: (x[2p], x[2p + 1]) turns by angle p of its row.
struct RopeParams {
  Tensor out;    // act [rows, heads, dim], rows and heads may be strided; may be `x`
  Tensor x;      // act [rows, heads, dim], rows and heads may be strided
  Tensor table;  // f32 [rows, dim], from RopeTableParams

  void check(DType act) const;
};

}  // namespace loza
