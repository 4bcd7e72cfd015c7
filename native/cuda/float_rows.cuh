// Rows that are f32 or bf16, which a kernel sees when it runs: for the light kernels of gradients, which
// would otherwise exist for every mix of types. The branch is the same for all threads.
#pragma once

#include "cuda/types.cuh"

namespace loza::cuda {

struct FloatRows {
  void* data;
  int64_t stride;  // in elements
  bool bf16;

  explicit operator bool() const { return data != nullptr; }

  // values = row[at : at + kCount]; kVector elements must be aligned as types.cuh says.
  template <int kCount>
  __device__ __forceinline__ void load(float (&values)[kCount], int64_t row, int64_t at) const {
    if (bf16)
      cuda::load(values, static_cast<const Bf16*>(data) + row * stride + at);
    else
      cuda::load(values, static_cast<const float*>(data) + row * stride + at);
  }
  template <int kCount>
  __device__ __forceinline__ void store(int64_t row, int64_t at,
                                        const float (&values)[kCount]) const {
    if (bf16)
      cuda::store(static_cast<Bf16*>(data) + row * stride + at, values);
    else
      cuda::store(static_cast<float*>(data) + row * stride + at, values);
  }
};

// A vector is one row, an absent tensor null.
inline FloatRows float_rows(const Tensor& tensor) {
  return {tensor.data, tensor.rank > 1 ? tensor.stride(0) : 0, tensor.dtype == DType::kBF16};
}

// Whether all of them can be read kVector elements at a time; absent ones can.
template <class... Tensors>
bool all_vectorisable(const Tensors&... tensors) {
  return ((!tensors || vectorisable(tensors)) && ...);
}

}  // namespace loza::cuda
