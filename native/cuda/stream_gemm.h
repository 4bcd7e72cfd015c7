// Products of few rows with a large matrix, or with experts' matrices: see stream_gemm.cuh.
#pragma once

#include <cuda_runtime.h>

#include "core/tensor.h"

namespace loza::cuda {

// out = x W^T, or out += x W^T. Of several experts, rows starts[e] to starts[e + 1] of out are W[e]
// times the rows of x that `order` names, as in grouped_linear.
struct StreamProduct {
  Tensor out;           // bf16 | f32 [rows, n]
  Tensor x;             // bf16 [rows, k], or f8e4m3 where the weight is
  Tensor x_scale;       // f32 [rows of x, ceil(k / 128)], any strides; only with f8e4m3
  Tensor weight;        // bf16 | f8e4m3 [n, k] or [experts, n, k]
  Tensor weight_scale;  // f32 [(experts,) ceil(n / 128), ceil(k / 128)]; only with f8e4m3
  Tensor starts;        // i32 [experts + 1]; only with experts
  Tensor order;         // i32 [rows]; may be absent
  int top_k = 1;
  bool accumulate = false;
};

// How the work is cut. `split` alone decides how sums are rounded.
struct StreamPlan {
  int rows;   // of x in a tile, rounded up to 8, 16, 32 or 64; all of them unless there are experts
  int tile;   // rows of the weight a CTA: 64 or 128
  int split;  // CTAs that share k: 1, 2, 4 or 8
  int ctas;   // at most, without a split
};

// One matrix: at most 64 rows.
StreamPlan plan_stream(const StreamProduct& product, int multiprocessors);

// Rows of x and of the weight are aligned to 16 bytes. Weights that one matrix needs first are loaded
// before the kernels before this one have ended.
void launch_stream(const StreamProduct& product, const StreamPlan& plan, cudaStream_t stream,
                   const char* operation);

}  // namespace loza::cuda
