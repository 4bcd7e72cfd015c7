// What the kernels of outer_tiles.cu and outer_exact.cu are given.
#pragma once

#include "cuda/product.h"

namespace loza::cuda {

template <class Value>
struct OuterOperands {
  const Value* y;         // [slots, n]
  const Value* x;         // [rows, k]
  float* out;             // [experts, n, k]
  const int32_t* starts;  // [experts + 1], or null: one matrix for all rows
  const int32_t* order;   // [slots], or null
  int64_t y_stride, x_stride, out_stride, out_expert_stride;
  int64_t rows;  // of y
  int n, k, top_k;
};

template <class Value>
OuterOperands<Value> operands_of(const OuterProduct& product) {
  return {.y = product.y.as<const Value>(),
          .x = product.x.as<const Value>(),
          .out = product.out.as<float>(),
          .starts = product.starts.as<const int32_t>(),
          .order = product.order.as<const int32_t>(),
          .y_stride = product.y.stride(0),
          .x_stride = product.x.stride(0),
          .out_stride = product.out.stride(-2),
          .out_expert_stride = product.expert_stride(),
          .rows = product.y.dim(0),
          .n = static_cast<int>(product.n()),
          .k = static_cast<int>(product.k()),
          .top_k = product.top_k};
}

// Tiles of `side` x `side` sums: x = along k, y = along n, z = experts.
inline dim3 outer_grid(const OuterProduct& product, int64_t side) {
  return dim3(static_cast<unsigned>((product.k() + side - 1) / side),
              static_cast<unsigned>((product.n() + side - 1) / side),
              static_cast<unsigned>(product.experts()));
}

}  // namespace loza::cuda
