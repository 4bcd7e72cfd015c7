// RMSNorm of one row by one block, shared by rms_norm and latent_store.
#pragma once

#include "cuda/reduce.cuh"
#include "cuda/types.cuh"

namespace loza::cuda {

// scale / sqrt(mean(x^2) + eps), for every thread. `shared`: kMaxWarps floats.
template <int kCount, class X>
__device__ __forceinline__ float rms_factor(const X* x, int64_t width, float eps, float scale,
                                            float* shared) {
  float squares = 0;
  for (int64_t i = threadIdx.x * kCount; i < width; i += blockDim.x * kCount) {
    float values[kCount];
    load(values, x + i);
#pragma unroll
    for (int j = 0; j < kCount; j++) squares += values[j] * values[j];
  }
  const float mean = block_sum(squares, shared) / static_cast<float>(width);
  return scale / sqrtf(mean + eps);
}

// out = x * factor * weight; `out` may be `x`, whose second reading comes from the L1 cache.
template <int kCount, class Out, class X, class Weight>
__device__ __forceinline__ void scale_row(Out* out, const X* x, const Weight* weight, int64_t width,
                                          float factor) {
  for (int64_t i = threadIdx.x * kCount; i < width; i += blockDim.x * kCount) {
    float values[kCount], weights[kCount];
    load(values, x + i);
    load(weights, weight + i);
#pragma unroll
    for (int j = 0; j < kCount; j++) values[j] = values[j] * factor * weights[j];
    store(out + i, values);
  }
}

}  // namespace loza::cuda
