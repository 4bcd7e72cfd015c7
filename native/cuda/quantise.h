// bf16 rows to f8e4m3, one fp32 scale a row and 128 columns: x = q * scale, scale = max |x| / 448.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace loza::cuda {

// The scales lie by blocks of columns: scale[block * scale_stride + row]. A kernel that multiplies
// tiles of rows finds what it needs side by side.
struct QuantiseParams {
  const void* x;         // bf16 [.., k], rows aligned to 16 bytes
  const int32_t* order;  // i32 [rows]: row i is x[order[i] / top_k]; null: x[i]
  const int32_t*
      rows_in_use;       // i32 [1] on the device: rows first + i from here on are skipped; or null
  void* out;             // f8e4m3 [rows, k], contiguous, aligned to 16 bytes
  float* scale;          // f32 [ceil(k / 128), scale_stride]
  int64_t x_stride;      // in elements
  int64_t rows, k;       // k a multiple of 16
  int64_t scale_stride;  // at least rows
  int64_t first = 0;
  int32_t top_k = 1;
};

// Where a product's quantised rows and their scales lie in a piece of scratch memory.
struct QuantisedRows {
  int64_t scale_stride;  // rows rounded up, so that the scales of a block start aligned
  size_t scale_offset;   // bytes from the quantised rows to their scales
  size_t bytes;          // of both
};
QuantisedRows quantised_rows(int64_t rows, int64_t k);

void launch_quantise(const QuantiseParams& params, cudaStream_t stream, const char* operation);

}  // namespace loza::cuda
