// Dense matrix products through cuBLASLt, which is looked for when the program runs: this project
// needs it neither to build nor to load nor to compute.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "core/tensor.h"

namespace loza {

class CudaStream;

class MatrixLibrary {
 public:
  // Row-major, bf16 products with fp32 sums, for each of `batch` matrices:
  //   out[rows, n] = x[rows, k] W^T, or out += x W^T
  // Strides are in elements.
  struct Product {
    void* out;
    const void* x;       // bf16
    const void* weight;  // bf16
    int64_t rows, n, k;
    int64_t out_stride, x_stride;       // between rows; of [k, rows] too
    int64_t weight_stride;              // between rows of [n, k], or of [k, n]
    DType out_type = DType::kBF16;      // bf16 | f32
    bool weight_is_transposed = false;  // the weight lies in memory as [k, n]
    bool x_is_transposed = false;       // x lies in memory as [k, rows]
    bool accumulate = false;
    int64_t batch = 1;
    int64_t out_batch_stride = 0, x_batch_stride = 0, weight_batch_stride = 0;
    // Bytes at the front of CudaStream::scratch that the caller uses; the workspace lies behind.
    // The caller asked for them with scratch_bytes(), so that the memory does not move.
    size_t scratch_in_use = 0;
  };

  // What to ask CudaStream::scratch for, so that matmul finds its workspace behind `in_use` bytes.
  static size_t scratch_bytes(size_t in_use);

  // Never throws: a missing library only means that available() is false. LOZA_CUBLAS=off has the
  // same effect.
  explicit MatrixLibrary(CudaStream& stream);
  ~MatrixLibrary();

  bool available() const { return state_ != nullptr; }

  // Enqueues the product. False when it cannot: the caller then runs its own kernel, nothing of the
  // product has been enqueued.
  bool matmul(const Product& product);

 private:
  struct State;
  CudaStream& stream_;
  std::unique_ptr<State> state_;  // null: no library
};

}  // namespace loza
