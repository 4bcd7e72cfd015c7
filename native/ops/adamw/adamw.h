#pragma once

#include "core/tensor.h"

namespace loza {

// One step of AdamW (decoupled weight decay), everything in fp32. With g = clip[1] * gradient:
//   m = beta1 * m + (1 - beta1) * g,   v = beta2 * v + (1 - beta2) * g^2
//   weight -= rate * (m / (1 - beta1^step) / (sqrt(v / (1 - beta2^step)) + eps) + decay * weight)
// and copy = weight, rounded. Where clip[1] is NaN (a gradient that is not finite), nothing changes.
struct AdamwParams {
  Tensor weight;    // f32, contiguous, like all of them
  Tensor m;         // f32, shape of weight
  Tensor v;         // f32, shape of weight
  Tensor copy;      // f32 | bf16, shape of weight: what the next forward pass reads; may be absent
  Tensor gradient;  // f32, shape of weight
  Tensor clip;      // f32 [2], from clip_factor; absent: a factor of 1
  float rate = 0;
  float beta1 = 0.9f;
  float beta2 = 0.999f;
  float eps = 1e-8f;
  float decay = 0;
  int32_t step = 1;  // 1 for the first

  void check(DType act) const;
};

// The norm of a gradient in pieces, and the factor that brings it down to `limit`:
//   clip[0] = norm = sqrt(sum squares),   clip[1] = min(1, limit / norm), NaN if norm is not finite
struct ClipFactorParams {
  Tensor clip;      // f32 [2]
  Tensor squares;   // f32 [pieces], from dot(piece, piece)
  float limit = 0;  // 0: no limit

  void check(DType act) const;
};

}  // namespace loza
