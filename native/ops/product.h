// Matrix products as tensors: what linear, head_linear, grouped_linear and their gradients come down
// to, in one form that each backend computes (cpu/product.h, cuda/product.h).
#pragma once

#include <utility>

#include "core/tensor.h"
#include "ops/grouped_linear/grouped_linear.h"
#include "ops/grouped_linear_gradient/grouped_linear_gradient.h"
#include "ops/head_linear/head_linear.h"
#include "ops/linear/linear.h"
#include "ops/linear_gradient/linear_gradient.h"

namespace loza {

// The scales of a weight, one a block of 128 x 128: there, and only there, where it is f8e4m3.
inline void expect_scale(const char* name, const Tensor& weight, const Tensor& scale) {
  const bool quantised = weight.dtype == DType::kF8E4M3;
  check(quantised == static_cast<bool>(scale), name, ": belongs to f8e4m3 weights, got weight ",
        weight, " and ", scale);
  if (!quantised) return;
  const auto blocks = [](int64_t extent) { return (extent + kScaleBlock - 1) / kScaleBlock; };
  const int64_t n = blocks(weight.dim(-2)), k = blocks(weight.dim(-1));
  if (weight.rank == 3)
    expect(name, scale, DType::kF32, weight.dim(0), n, k);
  else
    expect(name, scale, DType::kF32, n, k);
}

// The last two dimensions change places.
inline Tensor transposed(Tensor tensor) {
  std::swap(tensor.shape[tensor.rank - 2], tensor.shape[tensor.rank - 1]);
  std::swap(tensor.strides[tensor.rank - 2], tensor.strides[tensor.rank - 1]);
  return tensor;
}

// out = x W^T, or out += x W^T, of one matrix, or of one a head.
struct Product {
  Tensor out;      // [rows, n] or [rows, heads, n]
  Tensor x;        // [rows, k] or [rows, heads, k]
  Tensor weight;   // [n, k] or [heads, n, k], contiguous along k, or with `along_n` along n
  Tensor scale{};  // of f8e4m3 weights, one a block of 128 x 128, as the weight lies in memory
  bool along_n = false;
  bool accumulate = false;

  int64_t rows() const { return x.dim(0); }
  int64_t heads() const { return weight.rank == 3 ? weight.dim(0) : 1; }
  int64_t n() const { return weight.dim(-2); }
  int64_t k() const { return weight.dim(-1); }

  // Strides from head to head; 0 of one matrix.
  int64_t out_head_stride() const { return out.rank == 3 ? out.stride(1) : 0; }
  int64_t x_head_stride() const { return x.rank == 3 ? x.stride(1) : 0; }
  int64_t weight_head_stride() const { return weight.rank == 3 ? weight.stride(0) : 0; }
  // Between neighbours along n, or with `along_n` along k.
  int64_t weight_stride() const { return weight.stride(along_n ? -1 : -2); }
  int64_t scale_stride() const { return scale ? scale.stride(0) : 0; }
};

// A matrix an expert. Row i of `out` belongs to expert e with starts[e] <= i < starts[e + 1]:
//   out[i, :] = weight[e] x[source(i), :], or +=,  source(i) = order ? order[i] / top_k : i
// Rows from starts[experts] on are left as they are.
struct GroupedProduct {
  Tensor out;      // [slots, n]
  Tensor x;        // [rows, k]
  Tensor weight;   // [experts, n, k], contiguous along k, or with `along_n` along n
  Tensor scale{};  // [experts, ceil(n / 128), ceil(k / 128)] of f8e4m3 weights, which lie along k
  Tensor starts;   // i32 [experts + 1]
  Tensor order{};  // i32 [slots]; may be absent
  int32_t top_k = 1;
  bool along_n = false;
  bool accumulate = false;

  int64_t slots() const { return out.dim(0); }
  int64_t experts() const { return weight.dim(0); }
  int64_t n() const { return weight.dim(1); }
  int64_t k() const { return weight.dim(2); }
  int64_t weight_stride() const { return weight.stride(along_n ? 2 : 1); }
  int64_t scale_stride() const { return scale ? scale.stride(1) : 0; }
  int64_t scale_expert_stride() const { return scale ? scale.stride(0) : 0; }
};

// Sums of outer products, which gradients of weights are, of one matrix or one an expert:
//   out[e] += sum over the rows i of e of y[i, :]^T x[source(i), :]
struct OuterProduct {
  Tensor out;       // f32 [n, k] or [experts, n, k], contiguous along k
  Tensor y;         // [slots, n]
  Tensor x;         // [rows, k]
  Tensor starts{};  // i32 [experts + 1]; absent: one matrix for all rows
  Tensor order{};   // i32 [slots]; may be absent
  int32_t top_k = 1;

  int64_t experts() const { return out.rank == 3 ? out.dim(0) : 1; }
  int64_t n() const { return out.dim(-2); }
  int64_t k() const { return out.dim(-1); }
  int64_t expert_stride() const { return out.rank == 3 ? out.stride(0) : 0; }
};

// ---- What the operations are ---------------------------------------------------------------------

inline Product product_of(const LinearParams& params) {
  return {.out = params.out,
          .x = params.x,
          .weight = params.weight,
          .scale = params.scale,
          .accumulate = params.accumulate};
}

inline Product product_of(const HeadLinearParams& params) {
  const Tensor& weight = params.weight;
  return {.out = params.out,
          .x = params.x,
          .weight = weight,
          .along_n = weight.stride(2) != 1 && weight.dim(2) != 1};
}

// dx = dy W
inline Product product_of(const LinearInputGradientParams& params) {
  return {.out = params.dx,
          .x = params.dy,
          .weight = transposed(params.weight),
          .scale = params.scale,
          .along_n = true,
          .accumulate = params.accumulate};
}

inline GroupedProduct product_of(const GroupedLinearParams& params) {
  return {.out = params.out,
          .x = params.x,
          .weight = params.weight,
          .scale = params.scale,
          .starts = params.starts,
          .order = params.order,
          .top_k = params.top_k};
}

inline GroupedProduct product_of(const GroupedLinearInputGradientParams& params) {
  return {.out = params.dx,
          .x = params.dy,
          .weight = transposed(params.weight),
          .starts = params.starts,
          .along_n = true,
          .accumulate = params.accumulate};
}

inline OuterProduct product_of(const LinearWeightGradientParams& params) {
  return {.out = params.dw, .y = params.dy, .x = params.x};
}

inline OuterProduct product_of(const GroupedLinearWeightGradientParams& params) {
  return {.out = params.dw,
          .y = params.dy,
          .x = params.x,
          .starts = params.starts,
          .order = params.order,
          .top_k = params.top_k};
}

}  // namespace loza
