// RMSNorm of one row by one block, shared by rms_norm and latent_store.
#pragma once

#include "cuda/launch.h"
#include "cuda/reduce.cuh"
#include "cuda/types.cuh"

namespace loza::cuda {

// Vectors of a row that a thread keeps in registers; where a row is wider than the block can hold,
// the rest is read twice.
inline constexpr int kHeldVectors = 2;

// Threads, at most `most`, for a row of `vectors` vectors. They depend on its width alone: a row gives the same bits
// whatever is around it.
inline unsigned norm_threads(int64_t vectors, int64_t most) {
  return static_cast<unsigned>(
      std::clamp<int64_t>(ceil_div(vectors, kHeldVectors * 32) * 32, 32, most));
}

// out = scale * weight * x / sqrt(mean(x^2) + eps); `out` may be `x`.
template <int kCount, class Weight>
class RowNorm {
 public:
  // Loads what does not depend on other kernels.
  __device__ __forceinline__ RowNorm(const Weight* weight, int64_t width)
      : weight_(weight), width_(width) {
#pragma unroll
    for (int v = 0; v < kHeldVectors; v++)
      if (at(v) < width_) weights_[v].load(weight_ + at(v));
  }

  // All threads of the block; `shared`: kMaxWarps floats.
  template <class Out, class X>
  __device__ __forceinline__ void operator()(Out* out, const X* x, float eps, float scale,
                                             float* shared) const {
    Held<kCount, X> held[kHeldVectors];
    float squares = 0, values[kCount];
#pragma unroll
    for (int v = 0; v < kHeldVectors; v++)
      if (at(v) < width_) held[v].load(x + at(v));
#pragma unroll
    for (int v = 0; v < kHeldVectors; v++) {
      if (at(v) >= width_) continue;
      held[v].widen_to(values);
      squares += sum_of_squares(values);
    }
    for (int v = kHeldVectors; at(v) < width_; v++) {
      load(values, x + at(v));
      squares += sum_of_squares(values);
    }
    const float mean = block_sum(squares, shared) / static_cast<float>(width_);
    const float factor = scale / sqrtf(mean + eps);
    float weights[kCount];
#pragma unroll
    for (int v = 0; v < kHeldVectors; v++) {
      if (at(v) >= width_) continue;
      held[v].widen_to(values);
      weights_[v].widen_to(weights);
      scale_vector(out + at(v), values, weights, factor);
    }
    for (int v = kHeldVectors; at(v) < width_; v++) {
      load(values, x + at(v));
      load(weights, weight_ + at(v));
      scale_vector(out + at(v), values, weights, factor);
    }
  }

 private:
  __device__ __forceinline__ static int64_t at(int v) {
    return static_cast<int64_t>(threadIdx.x + v * blockDim.x) * kCount;
  }
  __device__ __forceinline__ static float sum_of_squares(const float (&values)[kCount]) {
    float squares = 0;
#pragma unroll
    for (int i = 0; i < kCount; i++) squares += values[i] * values[i];
    return squares;
  }
  template <class Out>
  __device__ __forceinline__ static void scale_vector(Out* out, const float (&values)[kCount],
                                                      const float (&weights)[kCount],
                                                      float factor) {
    float scaled[kCount];
#pragma unroll
    for (int i = 0; i < kCount; i++) scaled[i] = values[i] * factor * weights[i];
    store(out, scaled);
  }

  const Weight* weight_;
  int64_t width_;
  Held<kCount, Weight> weights_[kHeldVectors];
};

}  // namespace loza::cuda
