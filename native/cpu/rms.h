// RMSNorm of one row, shared by rms_norm and latent_store.
#pragma once

#include <cmath>

#include "cpu/convert.h"
#include "cpu/simd.h"

namespace loza::cpu {

// Independent partial sums: they vectorise without reassociation, and they shorten the error.
inline constexpr int64_t kSumLanes = 32;

LOZA_MULTIVERSION inline float sum_of_squares(const float* x, int64_t width) {
  float lanes[kSumLanes] = {};
  int64_t i = 0;
  for (; i + kSumLanes <= width; i += kSumLanes)
    for (int64_t lane = 0; lane < kSumLanes; lane++) lanes[lane] += x[i + lane] * x[i + lane];
  double total = 0;
  for (; i < width; i++) total += static_cast<double>(x[i]) * x[i];
  for (const float lane : lanes) total += lane;
  return static_cast<float>(total);
}

// out = scale * weight * x / sqrt(mean(x^2) + eps); `out` may be `x`.
template <class Out, class Weight>
LOZA_MULTIVERSION void scale_row(Out* out, const float* x, const Weight* weight, int64_t width,
                                 float factor) {
#pragma GCC ivdep
  for (int64_t i = 0; i < width; i++) out[i] = narrow<Out>(x[i] * factor * widen(weight[i]));
}

template <class Out, class Weight>
void rms_norm_row(Out* out, const float* x, const Weight* weight, int64_t width, float eps,
                  float scale) {
  const float mean = sum_of_squares(x, width) / static_cast<float>(width);
  scale_row(out, x, weight, width, scale / std::sqrt(mean + eps));
}

}  // namespace loza::cpu
