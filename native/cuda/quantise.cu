// q = round(x * 448 / m), scale = m / 448, m = max |x| over a row's 128 columns: one pass over x.
// A warp takes 8 rows of two blocks of columns: 16 lanes a block, 8 values a lane. The eight scales
// of a block are neighbours in memory and leave in one sector. Blocks below 1e-30 become zeros, with
// scale 0; NaN and infinity become NaN.
// Grid: x = groups of 8 rows, y = pairs of blocks; a warp an item of either.
#include "cuda/quantise.h"

#include "cuda/barrier.cuh"
#include "cuda/check.h"
#include "cuda/reduce.cuh"
#include "cuda/types.cuh"

namespace loza::cuda {

namespace {

constexpr int kRows = 8, kBlock = 128, kLanes = kBlock / kVector, kWarps = 4;
constexpr float kLargest = 448;      // of f8e4m3
constexpr float kSmallest = 1e-30f;  // of what is not taken for zero

// The largest of the 16 lanes that share a block.
__device__ __forceinline__ float block_largest(const float (&values)[kVector]) {
  float largest = 0;
#pragma unroll
  for (int i = 0; i < kVector; i++) largest = fmaxf(largest, fabsf(values[i]));
#pragma unroll
  for (int step = kLanes / 2; step > 0; step /= 2)
    largest = fmaxf(largest, __shfl_xor_sync(kFullWarp, largest, step));
  return largest;
}

__device__ __forceinline__ uint2 narrow_f8(const float (&values)[kVector], float factor) {
  uint32_t words[2] = {};
#pragma unroll
  for (int i = 0; i < kVector; i += 2) {
    const uint32_t pair = __nv_cvt_float2_to_fp8x2(
        make_float2(values[i] * factor, values[i + 1] * factor), __NV_SATFINITE, __NV_E4M3);
    words[i / 4] |= pair << (i % 4 * 8);
  }
  return make_uint2(words[0], words[1]);
}

__global__ void __launch_bounds__(kWarps* kWarpSize)
    quantise_kernel(const __grid_constant__ QuantiseParams params) {
  launch_dependents();  // products of few rows load weights meanwhile
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const int64_t first = (int64_t{blockIdx.x} * kWarps + warp) * kRows;
  const int64_t column = int64_t{blockIdx.y} * 2 * kBlock + lane * kVector;
  const int64_t rows = params.rows_in_use
                           ? min(params.rows, int64_t{*params.rows_in_use} - params.first)
                           : params.rows;
  if (first >= rows) return;
  const bool exists = column < params.k;
  uint4 bits[kRows];
#pragma unroll
  for (int i = 0; i < kRows; i++) {
    bits[i] = make_uint4(0, 0, 0, 0);
    if (!exists || first + i >= rows) continue;
    const int64_t row = params.order ? params.order[first + i] / params.top_k : first + i;
    const Bf16* x = static_cast<const Bf16*>(params.x) + row * params.x_stride + column;
    bits[i] = __ldg(reinterpret_cast<const uint4*>(x));
  }
  float scale = 0;  // lane i of a block: that of row i
#pragma unroll
  for (int i = 0; i < kRows; i++) {
    float values[kVector];
    load(values, reinterpret_cast<const Bf16*>(&bits[i]));
    const float largest = block_largest(values);
    const bool zero = largest < kSmallest;  // a factor would overflow
    const float factor = zero ? 0 : kLargest / largest;
    if (lane % kLanes == i) scale = zero ? 0 : largest / kLargest;
    if (exists && first + i < rows)
      *reinterpret_cast<uint2*>(static_cast<F8E4M3*>(params.out) + (first + i) * params.k +
                                column) = narrow_f8(values, factor);
  }
  const int row = lane % kLanes;
  const int64_t block = int64_t{blockIdx.y} * 2 + lane / kLanes;
  if (row < kRows && first + row < rows && block * kBlock < params.k)
    params.scale[block * params.scale_stride + first + row] = scale;
}

}  // namespace

QuantisedRows quantised_rows(int64_t rows, int64_t k) {
  constexpr int64_t kAlignment = 128;
  const int64_t stride = ceil_div(rows, kRows) * kRows;
  const int64_t offset = ceil_div(rows * k, kAlignment) * kAlignment;
  return {stride, static_cast<size_t>(offset),
          static_cast<size_t>(offset + ceil_div(k, kBlock) * stride * int64_t{sizeof(float)})};
}

void launch_quantise(const QuantiseParams& params, cudaStream_t stream, const char* operation) {
  if (params.rows == 0 || params.k == 0) return;
  const dim3 grid(static_cast<unsigned>(ceil_div(params.rows, kRows * kWarps)),
                  static_cast<unsigned>(ceil_div(params.k, 2 * kBlock)));
  quantise_kernel<<<grid, kWarps * kWarpSize, 0, stream>>>(params);
  check_launch(operation);
}

}  // namespace loza::cuda
