// How gemm_wgmma.cuh writes a tile: from the registers where wgmma left it, in whole sectors.
#pragma once

#include <cuda_bf16.h>

#include "cuda/gemm_wgmma_tiles.cuh"

namespace loza::cuda::wgmma_gemm {

__device__ inline uint32_t pack(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}

// Four lanes hold four words each; lane j of them receives word j of all, in the order of lanes.
__device__ inline uint4 transpose_quad(const uint32_t (&words)[4]) {
  constexpr uint32_t kAll = 0xffffffffu;
  const bool odd = threadIdx.x & 1, upper = threadIdx.x & 2;
  const uint32_t low = __shfl_xor_sync(kAll, odd ? words[0] : words[1], 1);
  const uint32_t high = __shfl_xor_sync(kAll, odd ? words[2] : words[3], 1);
  const uint2 first = odd ? make_uint2(low, words[1]) : make_uint2(words[0], low);
  const uint2 second = odd ? make_uint2(high, words[3]) : make_uint2(words[2], high);
  const uint32_t x = __shfl_xor_sync(kAll, upper ? first.x : second.x, 2);
  const uint32_t y = __shfl_xor_sync(kAll, upper ? first.y : second.y, 2);
  return upper ? make_uint4(x, y, second.x, second.y) : make_uint4(first.x, first.y, x, y);
}

// One of the thread's rows, as vectors of eight bf16: `sums` from the row's first register on.
template <class T>
__device__ inline void store_vectors(const Params& params, const float* sums, int64_t row,
                                     bool exists, int column, int lane) {
  __nv_bfloat16* out = static_cast<__nv_bfloat16*>(params.out) + row * params.out_stride;
#pragma unroll
  for (int i = 0; i < T::kSums; i += 16) {
    const uint32_t words[4] = {pack(sums[i], sums[i + 1]), pack(sums[i + 4], sums[i + 5]),
                               pack(sums[i + 8], sums[i + 9]), pack(sums[i + 12], sums[i + 13])};
    const uint4 vector = transpose_quad(words);
    const int at = column + 2 * i + lane % 4 * 8;
    if (exists && at < params.n) *reinterpret_cast<uint4*>(out + at) = vector;
  }
}

template <class Out>
__device__ inline void store_value(Out* to, float value, bool accumulate) {
  if (accumulate) value += static_cast<float>(*to);
  *to = static_cast<Out>(value);
}

// The same, value by value.
template <class T, class Out>
__device__ inline void store_values(const Params& params, const float* sums, int64_t row,
                                    int column, int lane) {
  Out* out = static_cast<Out*>(params.out) + row * params.out_stride;
#pragma unroll
  for (int i = 0; i < T::kSums; i += 4) {
    const int at = column + 2 * i + lane % 4 * 2;
    if (at < params.n) store_value(out + at, sums[i], params.accumulate);
    if (at + 1 < params.n) store_value(out + at + 1, sums[i + 1], params.accumulate);
  }
}

// Adds in memory, where nobody else adds: one rounding, as if it were loaded, added and stored.
__device__ inline void add_pair(float* to, float low, float high) {
  asm volatile("red.global.add.v2.f32 [%0], {%1, %2};" ::"l"(__cvta_generic_to_global(to)),
               "f"(low), "f"(high)
               : "memory");
}

// f32 in pairs: the four lanes of a row fill a sector.
template <class T>
__device__ inline void store_pairs(const Params& params, const float* sums, int64_t row, int column,
                                   int lane) {
  float* out = static_cast<float*>(params.out) + row * params.out_stride + column + lane % 4 * 2;
#pragma unroll
  for (int i = 0; i < T::kSums / 4; i++) {
    if (column + 8 * i >= params.n) break;
    if (params.accumulate)
      add_pair(out + 8 * i, sums[4 * i], sums[4 * i + 1]);
    else
      *reinterpret_cast<float2*>(out + 8 * i) = make_float2(sums[4 * i], sums[4 * i + 1]);
  }
}

template <class T, int kActive>
__device__ inline void store_tile(const Params& params, const Tile& tile, const Sums<T>& sums,
                                  const Consumer& self) {
#pragma unroll
  for (int half = 0; half < kActive; half++) {
#pragma unroll
    for (int i = 0; i < 2; i++) {
      const int within = self.row(half) + 8 * i;
      const int64_t row = tile.row + within;
      const bool exists = within < tile.rows;
      const float* values = sums[half] + 2 * i;
      if (params.vectors && !params.out_is_f32)
        store_vectors<T>(params, values, row, exists, tile.column, self.lane);
      else if (exists && params.vectors)
        store_pairs<T>(params, values, row, tile.column, self.lane);
      else if (exists && params.out_is_f32)
        store_values<T, float>(params, values, row, tile.column, self.lane);
      else if (exists)
        store_values<T, __nv_bfloat16>(params, values, row, tile.column, self.lane);
    }
  }
}

}  // namespace loza::cuda::wgmma_gemm
