// Matrix products with many rows on Hopper's warpgroup instructions, for one matrix or for experts:
//   out[i, :] = W[e] x[i, :], or out[i, :] += ..., starts[e] <= first + i < starts[e + 1]
// in bf16, or in f8e4m3 with fp32 scales of both operands. Sums are fp32; the order of a row's sum
// depends on nothing but k.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "core/tensor.h"

namespace loza::cuda {

struct WgmmaProduct {
  DType type = DType::kBF16;     // of x and the weight: bf16 | f8e4m3
  void* out = nullptr;           // bf16 | f32 [rows, n]
  const void* x = nullptr;       // [rows, k]
  const void* weight = nullptr;  // [experts, n, k]
  // Only, and always, with f8e4m3: see QuantiseParams and kScaleBlock.
  const float* x_scale = nullptr;       // f32 [ceil(k / 128), x_scale_stride]
  const float* weight_scale = nullptr;  // f32 [experts, ceil(n / 128), ceil(k / 128)]
  const int32_t* starts = nullptr;  // i32 [experts + 1] on the device; null: one expert, all rows
  int32_t* counter = nullptr;       // i32 [1] of scratch on the device
  // In elements.
  int64_t out_stride = 0, x_stride = 0, weight_stride = 0, weight_expert_stride = 0;
  int64_t x_scale_stride = 0, weight_scale_stride = 0, weight_scale_expert_stride = 0;
  int64_t rows = 0, n = 0, k = 0, experts = 1;
  int64_t first = 0;  // row 0 of out and x is the row that `starts` calls this
  bool out_is_f32 = false, accumulate = false;
};

// Whether bulk copies can read both operands: aligned to 16 bytes, as are their strides.
bool wgmma_can(const WgmmaProduct& product);

// Sets the counter, then computes the product. Needs wgmma_can.
void launch_wgmma(const WgmmaProduct& product, int multiprocessors, cudaStream_t stream,
                  const char* operation);

}  // namespace loza::cuda
