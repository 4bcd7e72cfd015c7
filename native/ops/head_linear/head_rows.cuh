// out[t, h, :] = W[h] x[t, h, :] for at most 64 rows, and, as absorb_query's tail, the rotation of
// what follows x into what follows out: limited by how fast the weights can be read.
//
// A CTA takes one head and 32 or 64 KiB of its weight (kColumns columns, all of k), which it asks for
// before it waits for the kernel before: all CTAs fit the device at once, so the whole weight is
// on its way while x is still being made. Warps: 4 column groups x kRowTiles tiles of 16 rows.
// Grid: x = column tiles, y = heads. The order of the sum over k does not depend on the rows.
#pragma once

#include <algorithm>

#include "cuda/barrier.cuh"
#include "cuda/cuda_stream.h"
#include "cuda/launch.h"
#include "cuda/mma.cuh"
#include "cuda/types.cuh"
#include "ops/head_linear/head_linear.h"
#include "ops/rope/rope.cuh"

namespace loza::cuda {

template <bool kAlongK_, int kRowTiles_>
struct HeadRowsTraits {
  static constexpr bool kAlongK = kAlongK_;  // weight [n, k]; otherwise [k, n]
  static constexpr int kRowTiles = kRowTiles_, kRows = 16 * kRowTiles;
  static constexpr int kColumnWarps = 4, kThreads = 32 * kColumnWarps * kRowTiles;
  // Along k the rows of x are long: with many of them, fewer CTAs that each read them all.
  static constexpr int kColumns = !kAlongK ? 128 : kRowTiles == 1 ? 32 : 64;
  static constexpr int kWarpColumns = kColumns / kColumnWarps;
  static constexpr int kChunk = 8;  // values of a copy of 16 bytes
  // 16 bytes behind each row put the eight rows that ldmatrix reads at once into different banks.
  static constexpr int kPad = 8;

  static constexpr int panel_rows(int k) { return kAlongK ? kColumns : k; }
  static constexpr int panel_width(int k) { return kAlongK ? k : kColumns; }
  static constexpr size_t shared_bytes(int k) {
    return sizeof(Bf16) * (panel_rows(k) * (panel_width(k) + kPad) + kRows * (k + kPad));
  }
};

inline constexpr int kHeadRowsMost = 64;
inline constexpr int kHeadRowsDepth = 512;  // the largest k, in steps of kHeadRowsStep
inline constexpr int kHeadRowsStep = 32;

struct HeadRowsParams {
  const Bf16* x;       // [rows, heads, k], then `rope` values a head
  const Bf16* weight;  // [heads, n, k] or [heads, k, n]
  void* out;           // bf16 | f32 [rows, heads, n], then `rope` values a head
  const float* table;  // [rows, rope]
  int64_t x_stride, x_head_stride, weight_stride, weight_head_stride, out_stride, out_head_stride;
  int64_t table_stride;
  int rows, n, k, rope;
  bool out_is_f32;
};

// Copies `rows` x `width` values into rows of width + kPad; `count` rows and `columns` values of
// each exist, the rest become zeros. Sixteen threads take a row.
template <class T>
__device__ __forceinline__ void copy_rows(Bf16* to, const Bf16* from, int64_t stride, int rows,
                                          int width, int count, int columns) {
  constexpr int kPerRow = 16;
  const int first = static_cast<int>(threadIdx.x) % kPerRow * T::kChunk;
  for (int row = static_cast<int>(threadIdx.x) / kPerRow; row < rows;
       row += T::kThreads / kPerRow) {
#pragma unroll 4
    for (int at = first; at < width; at += kPerRow * T::kChunk) {
      const bool exists = row < count && at < columns;
      cp_async_16(to + row * (width + T::kPad) + at, exists ? from + row * stride + at : from,
                  exists ? 16 : 0);
    }
  }
}

// The sums of a warp: 16 rows, kWarpColumns columns. Along k even and odd steps add up apart, so that
// products need not wait for each other.
template <class T>
__device__ __forceinline__ void multiply_rows(float (&sums)[T::kWarpColumns / 8][4], const Bf16* x,
                                              const Bf16* panel, int k_end) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int stride = T::panel_width(k_end) + T::kPad;
  x += lane % 16 * (k_end + T::kPad) + lane / 16 * 8;
  if constexpr (T::kAlongK) {
    // One load has eight columns at four eights of k.
    panel += lane % 8 * stride + lane / 8 * 8;
    float odd[T::kWarpColumns / 8][4] = {};
#pragma unroll 4
    for (int k = 0; k < k_end; k += 32) {
      uint32_t a[2][4];
      ldmatrix_x4(a[0], x + k);
      ldmatrix_x4(a[1], x + k + 16);
#pragma unroll
      for (int tile = 0; tile < T::kWarpColumns / 8; tile++) {
        uint32_t b[4];
        ldmatrix_x4(b, panel + tile * 8 * stride + k);
        mma_bf16(sums[tile], a[0], b[0], b[1]);
        mma_bf16(odd[tile], a[1], b[2], b[3]);
      }
    }
#pragma unroll
    for (int tile = 0; tile < T::kWarpColumns / 8; tile++)
#pragma unroll
      for (int i = 0; i < 4; i++) sums[tile][i] += odd[tile][i];
  } else {
    panel += lane % 16 * stride + lane / 16 * 8;
#pragma unroll 4
    for (int k = 0; k < k_end; k += 16) {
      uint32_t a[4];
      ldmatrix_x4(a, x + k);
#pragma unroll
      for (int tile = 0; tile < T::kWarpColumns / 8; tile += 2) {
        uint32_t b[4];
        ldmatrix_x4_transposed(b, panel + k * stride + tile * 8);
        mma_bf16(sums[tile], a, b[0], b[1]);
        mma_bf16(sums[tile + 1], a, b[2], b[3]);
      }
    }
  }
}

template <class T>
__device__ __forceinline__ void store_rows(const HeadRowsParams& params,
                                           const float (&sums)[T::kWarpColumns / 8][4],
                                           int first_row, int first_column) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int tile = 0; tile < T::kWarpColumns / 8; tile++)
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const int row = first_row + lane / 4 + half * 8;
      const int column = first_column + tile * 8 + lane % 4 * 2;
      if (row >= params.rows || column >= params.n) continue;
      const int64_t at = row * params.out_stride + blockIdx.y * params.out_head_stride + column;
      const float2 pair = make_float2(sums[tile][2 * half], sums[tile][2 * half + 1]);
      if (params.out_is_f32)
        *reinterpret_cast<float2*>(static_cast<float*>(params.out) + at) = pair;
      else
        *reinterpret_cast<__nv_bfloat162*>(static_cast<Bf16*>(params.out) + at) =
            __float22bfloat162_rn(pair);
    }
}

// The tail of every row of the head, kVector values a thread.
template <class T>
__device__ __forceinline__ void rotate_tail(const HeadRowsParams& params) {
  const int per_row = params.rope / kVector;
  for (int i = static_cast<int>(threadIdx.x); i < params.rows * per_row; i += T::kThreads) {
    const int row = i / per_row, at = i % per_row * kVector;
    float values[kVector], angles[kVector];
    load(values,
         params.x + row * params.x_stride + blockIdx.y * params.x_head_stride + params.k + at);
    load(angles, params.table + row * params.table_stride + at);
    rotate(values, angles);
    store(static_cast<Bf16*>(params.out) + row * params.out_stride +
              blockIdx.y * params.out_head_stride + params.n + at,
          values);
  }
}

template <class T>
__global__ void __launch_bounds__(T::kThreads)
    head_rows_kernel(const __grid_constant__ HeadRowsParams params) {
  extern __shared__ __align__(16) unsigned char memory[];
  const int k = params.k, column = static_cast<int>(blockIdx.x) * T::kColumns;
  const int panel_width = T::panel_width(k);
  auto* panel = reinterpret_cast<Bf16*>(memory);
  Bf16* x = panel + T::panel_rows(k) * (panel_width + T::kPad);
  launch_dependents();
  const int columns = min(T::kColumns, params.n - column);
  const Bf16* weight = params.weight + blockIdx.y * params.weight_head_stride +
                       (T::kAlongK ? column * params.weight_stride : column);
  copy_rows<T>(panel, weight, params.weight_stride, T::panel_rows(k), panel_width,
               T::kAlongK ? columns : k, T::kAlongK ? k : columns);
  wait_for_prerequisites();
  copy_rows<T>(x, params.x + blockIdx.y * params.x_head_stride, params.x_stride, T::kRows, k,
               params.rows, k);
  cp_async_commit();
  if (params.rope > 0 && blockIdx.x == 0) rotate_tail<T>(params);
  cp_async_wait<0>();
  __syncthreads();

  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int row = warp / T::kColumnWarps * 16;
  const int first = warp % T::kColumnWarps * T::kWarpColumns;
  float sums[T::kWarpColumns / 8][4] = {};
  multiply_rows<T>(sums, x + row * (k + T::kPad),
                   panel + first * (T::kAlongK ? panel_width + T::kPad : 1), k);
  store_rows<T>(params, sums, row, column + first);
}

inline bool fits_head_rows(const HeadLinearParams& params) {
  const Tensor &x = params.x, &weight = params.weight, &out = params.out;
  const auto aligned = [](const Tensor& tensor, int64_t values, int contiguous) {
    bool result = reinterpret_cast<uintptr_t>(tensor.data) % (values * size_of(tensor.dtype)) == 0;
    for (int i = 0; i < tensor.rank; i++)
      if (i != contiguous && tensor.shape[i] > 1)
        result = result && tensor.strides[i] % values == 0;
    return result;
  };
  const int64_t n = weight.dim(1), k = weight.dim(2);
  return weight.dtype == DType::kBF16 && x.dtype == DType::kBF16 && x.dim(0) <= kHeadRowsMost &&
         k <= kHeadRowsDepth && k % kHeadRowsStep == 0 && n % 8 == 0 && aligned(x, 8, 2) &&
         aligned(out, 2, 2) && aligned(weight, 8, weight.stride(2) == 1 ? 2 : 1);
}

template <class T>
void launch_head_tiles(const HeadRowsParams& params, int64_t heads, CudaStream& stream,
                       const char* operation) {
  const size_t shared = T::shared_bytes(params.k);
  check(cudaFuncSetAttribute(head_rows_kernel<T>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             static_cast<int>(T::shared_bytes(kHeadRowsDepth))),
        operation);
  const auto columns = static_cast<unsigned>(ceil_div(params.n, T::kColumns));
  launch_kernel(operation, head_rows_kernel<T>,
                {dim3(columns, static_cast<unsigned>(heads)), T::kThreads, shared}, stream.handle(),
                params);
}

// `table`: f32 [rows, rope], of the tail that absorb_query has; null: no tail.
inline void launch_head_rows(const HeadLinearParams& linear, const Tensor* table,
                             CudaStream& stream, const char* operation) {
  const Tensor &x = linear.x, &weight = linear.weight, &out = linear.out;
  const bool along_k = weight.stride(2) == 1;
  const HeadRowsParams params{.x = x.as<const Bf16>(),
                              .weight = weight.as<const Bf16>(),
                              .out = out.data,
                              .table = table ? table->as<const float>() : nullptr,
                              .x_stride = x.stride(0),
                              .x_head_stride = x.stride(1),
                              .weight_stride = weight.stride(along_k ? 1 : 2),
                              .weight_head_stride = weight.stride(0),
                              .out_stride = out.stride(0),
                              .out_head_stride = out.stride(1),
                              .table_stride = table ? table->stride(0) : 0,
                              .rows = static_cast<int>(x.dim(0)),
                              .n = static_cast<int>(weight.dim(1)),
                              .k = static_cast<int>(weight.dim(2)),
                              .rope = table ? static_cast<int>(table->dim(1)) : 0,
                              .out_is_f32 = out.dtype == DType::kF32};
  const auto launch_for = [&]<bool kAlongK>(std::bool_constant<kAlongK>) {
    if (params.rows <= 16)
      launch_head_tiles<HeadRowsTraits<kAlongK, 1>>(params, weight.dim(0), stream, operation);
    else if (params.rows <= 32)
      launch_head_tiles<HeadRowsTraits<kAlongK, 2>>(params, weight.dim(0), stream, operation);
    else
      launch_head_tiles<HeadRowsTraits<kAlongK, 4>>(params, weight.dim(0), stream, operation);
  };
  if (along_k)
    launch_for(std::true_type{});
  else
    launch_for(std::false_type{});
}

}  // namespace loza::cuda
