// Products of few rows, whose time is that of reading the weights: quantises x where the weights are,
// then streams them (stream_gemm.h).
#pragma once

#include "cuda/cuda_stream.h"
#include "cuda/stream_gemm.h"

namespace loza::cuda {

// From so many rows of one matrix on, the tensor cores limit.
inline constexpr int64_t kFewRows = 64;

// x is bf16 whatever the weight, and x_scale absent. False where bulk copies cannot read the operands
// (rows that are not aligned to 16 bytes), or one matrix has more than kFewRows rows; then nothing was
// enqueued.
bool multiply_few_rows(const StreamProduct& product, CudaStream& stream, const char* operation);

}  // namespace loza::cuda
