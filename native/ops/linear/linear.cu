// out = x W^T, or out += x W^T. The ways, by what limits them:
//   few rows          few_rows.h: reads W once, at the speed of memory (f8 weights: x quantised too)
//   f32 weights, or few rows that bulk copies cannot read: the gemv kernel below
//   bf16 weights      the matrix library, or where it is missing gemm_wgmma.h
//   f8 weights, many rows: x quantised too, and gemm_wgmma.h
//   everything else   tiles (product.h)
// and with f32 activations those of fp32 arithmetic.
#include "ops/linear/linear.h"

#include <algorithm>

#include "cuda/barrier.cuh"
#include "cuda/cuda_ops.h"
#include "cuda/few_rows.h"
#include "cuda/gemm_tile.cuh"
#include "cuda/gemm_wgmma.h"
#include "cuda/launch.h"
#include "cuda/product.h"
#include "cuda/quantise.h"
#include "cuda/reduce.cuh"

namespace loza::cuda {
namespace {

constexpr const char* kName = "linear";

// ---- gemv --------------------------------------------------------------------------------------
// A warp computes kColumns columns of kRows rows. Its lanes walk k in steps of 16 bytes of W each;
// for small n, `split` warps of the CTA share the walk and their sums are added in a fixed order.
// Which values of k a lane adds, and in which order, depends on n and k alone.
// Grid: x = columns, y = groups of kRows rows.

template <class Weight_, int kRows_, int kColumns_, bool kAligned_>
struct GemvTraits {
  using Weight = Weight_;
  static constexpr int kRows = kRows_, kColumns = kColumns_;
  static constexpr bool kAligned = kAligned_;  // 16-byte loads, k a multiple of kVector
  static constexpr int kVector = 16 / static_cast<int>(sizeof(Weight));  // values a load of W
  static constexpr int kPart = kVector < 8 ? kVector : 8;  // values multiplied at once
  static constexpr int kWarps = 8, kThreads = 32 * kWarps;
  static constexpr int kSums = kRows * kColumns;
  static_assert(kWarps * kSums <= kThreads);
};

struct GemvStorage {
  float sums[256];  // [warp][row][column]
};

struct GemvParams {
  const Bf16* x;       // [rows, k]
  const void* weight;  // [n, k]
  const float* scale;  // f32 [ceil(n / 128), ceil(k / 128)]; f8e4m3 only
  void* out;           // bf16 | f32 [rows, n]
  int64_t x_stride, weight_stride, scale_stride, out_stride;
  int rows, n, k;
  int split;  // warps a column; a power of two
  bool out_is_f32, accumulate;
};

// A vector of W as it lies in memory; zeros from `count` on.
template <class T>
__device__ inline uint4 load_weight(const typename T::Weight* from, int count) {
  if constexpr (T::kAligned) return __ldg(reinterpret_cast<const uint4*>(from));
  constexpr int kBytes = static_cast<int>(sizeof(typename T::Weight));
  const auto* bytes = reinterpret_cast<const unsigned char*>(from);
  uint32_t words[4] = {};
#pragma unroll
  for (int i = 0; i < 16; i++)
    if (i < count * kBytes) words[i / 4] |= static_cast<uint32_t>(bytes[i]) << (i % 4 * 8);
  return make_uint4(words[0], words[1], words[2], words[3]);
}

__device__ inline float2 widen_bf16x2(uint32_t bits) {
  return make_float2(__uint_as_float(bits << 16), __uint_as_float(bits & 0xffff0000u));
}

// Part `part` of a vector of W, as fp32.
template <class T>
__device__ inline void widen_weight(float (&to)[T::kPart], const uint4& vector, int part,
                                    float scale) {
  using Weight = typename T::Weight;
  const uint32_t words[4] = {vector.x, vector.y, vector.z, vector.w};
#pragma unroll
  for (int i = 0; i < T::kPart; i += 2) {
    float2 pair;
    if constexpr (std::is_same_v<Weight, Bf16>) {
      pair = widen_bf16x2(words[i / 2]);
    } else if constexpr (std::is_same_v<Weight, F8>) {
      const uint32_t word = words[part * 2 + i / 4];
      pair = widen_f8x2(i % 4 == 0 ? word & 0xffffu : word >> 16);
      pair = make_float2(pair.x * scale, pair.y * scale);
    } else {
      pair = make_float2(__uint_as_float(words[i]), __uint_as_float(words[i + 1]));
    }
    to[i] = pair.x;
    to[i + 1] = pair.y;
  }
}

template <class T>
__device__ inline void load_x(float (&to)[T::kPart], const Bf16* from, int count) {
  uint32_t words[T::kPart / 2] = {};
  if constexpr (T::kAligned && T::kPart == 8) {
    const uint4 vector = *reinterpret_cast<const uint4*>(from);
    words[0] = vector.x, words[1] = vector.y, words[2] = vector.z, words[3] = vector.w;
  } else if constexpr (T::kAligned) {
    const uint2 vector = *reinterpret_cast<const uint2*>(from);
    words[0] = vector.x, words[1] = vector.y;
  } else {
    const auto* bits = reinterpret_cast<const uint16_t*>(from);
#pragma unroll
    for (int i = 0; i < T::kPart; i++)
      if (i < count) words[i / 2] |= static_cast<uint32_t>(bits[i]) << (i % 2 * 16);
  }
#pragma unroll
  for (int i = 0; i < T::kPart; i += 2) {
    const float2 pair = widen_bf16x2(words[i / 2]);
    to[i] = pair.x;
    to[i + 1] = pair.y;
  }
}

template <class T>
using GemvSums = float[T::kRows][T::kColumns];

// Adds the products of one vector of each column. Rows and columns past the end repeat the last
// one, so that every load is of something; their sums are not stored.
template <class T>
__device__ inline void add_products(GemvSums<T>& sums, const GemvParams& params, int first_row,
                                    int first_column, int k) {
  using Weight = typename T::Weight;
  uint4 vectors[T::kColumns];
  float scales[T::kColumns];
#pragma unroll
  for (int c = 0; c < T::kColumns; c++) {
    const int column = min(first_column + c, params.n - 1);
    vectors[c] = load_weight<T>(
        static_cast<const Weight*>(params.weight) + column * params.weight_stride + k,
        params.k - k);
    scales[c] = 1;
    if constexpr (std::is_same_v<Weight, F8>)
      scales[c] = __ldg(params.scale + column / kScaleBlock * params.scale_stride +
                        k / static_cast<int>(kScaleBlock));
  }
#pragma unroll
  for (int part = 0; part < T::kVector / T::kPart; part++) {
    float weight[T::kColumns][T::kPart];
#pragma unroll
    for (int c = 0; c < T::kColumns; c++) widen_weight<T>(weight[c], vectors[c], part, scales[c]);
#pragma unroll
    for (int r = 0; r < T::kRows; r++) {
      const int64_t row = min(first_row + r, params.rows - 1);
      const int from = k + part * T::kPart;
      float x[T::kPart];
      load_x<T>(x, params.x + row * params.x_stride + from, params.k - from);
#pragma unroll
      for (int c = 0; c < T::kColumns; c++)
#pragma unroll
        for (int i = 0; i < T::kPart; i++) sums[r][c] += x[i] * weight[c][i];
    }
  }
}

// One thread a sum: adds what the warps of its column group have, in order, and stores it.
template <class T>
__device__ inline void store_sums(const GemvStorage& shared, const GemvParams& params) {
  const int thread = static_cast<int>(threadIdx.x);
  const int groups = T::kWarps / params.split;
  if (thread >= groups * T::kSums) return;
  const int group = thread / T::kSums, item = thread % T::kSums;
  const int row = static_cast<int>(blockIdx.y) * T::kRows + item / T::kColumns;
  const int column =
      (static_cast<int>(blockIdx.x) * groups + group) * T::kColumns + item % T::kColumns;
  if (row >= params.rows || column >= params.n) return;
  float sum = 0;
  for (int i = 0; i < params.split; i++)
    sum += shared.sums[(group * params.split + i) * T::kSums + item];
  const int64_t offset = row * params.out_stride + column;
  if (params.out_is_f32) {
    float* out = static_cast<float*>(params.out) + offset;
    *out = params.accumulate ? *out + sum : sum;
  } else {
    Bf16* out = static_cast<Bf16*>(params.out) + offset;
    *out = __float2bfloat16_rn(params.accumulate ? __bfloat162float(*out) + sum : sum);
  }
}

template <class T>
__global__ void __launch_bounds__(T::kThreads)
    gemv_kernel(const __grid_constant__ GemvParams params) {
  __shared__ GemvStorage shared;
  launch_dependents();
  wait_for_prerequisites();
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int groups = T::kWarps / params.split;
  const int group = static_cast<int>(blockIdx.x) * groups + warp / params.split;
  const int first_row = static_cast<int>(blockIdx.y) * T::kRows;
  GemvSums<T> sums = {};
  if (group * T::kColumns < params.n) {
    const int first = (warp % params.split * 32 + lane) * T::kVector;
    const int step = params.split * 32 * T::kVector;
#pragma unroll(T::kRows <= 2 ? 2 : 1)
    for (int k = first; k < params.k; k += step)
      add_products<T>(sums, params, first_row, group * T::kColumns, k);
  }
#pragma unroll
  for (int r = 0; r < T::kRows; r++) {
#pragma unroll
    for (int c = 0; c < T::kColumns; c++) {
      const float sum = warp_sum(sums[r][c]);
      if (lane == 0) shared.sums[warp * T::kSums + r * T::kColumns + c] = sum;
    }
  }
  __syncthreads();
  store_sums<T>(shared, params);
}

template <class T>
void launch_gemv(const GemvParams& params, cudaStream_t stream) {
  const int columns = T::kWarps / params.split * T::kColumns;
  const dim3 grid(static_cast<unsigned>((params.n + columns - 1) / columns),
                  static_cast<unsigned>((params.rows + T::kRows - 1) / T::kRows));
  launch_kernel(kName, gemv_kernel<T>, {grid, T::kThreads}, stream, params);
}

// Enough warps to keep memory busy: sixteen a multiprocessor, if k can be shared among so many.
template <class Weight>
int split_of(int64_t n, int64_t k, int multiprocessors) {
  constexpr int kMost = 8, kColumns = 4;
  const int64_t wanted = int64_t{16} * multiprocessors;
  const int64_t step = 32 * 16 / static_cast<int64_t>(sizeof(Weight));
  int split = 1;
  while (split < kMost && n / kColumns * split < wanted && 2 * split * step <= k) split *= 2;
  return split;
}

template <class Weight>
void run_gemv(const LinearParams& params, CudaStream& stream) {
  const Tensor &x = params.x, &weight = params.weight, &out = params.out;
  const int64_t n = weight.dim(0), k = weight.dim(1), rows = x.dim(0);
  const GemvParams gemv{.x = x.as<const Bf16>(),
                        .weight = weight.data,
                        .scale = params.scale.as<const float>(),
                        .out = out.data,
                        .x_stride = x.stride(0),
                        .weight_stride = weight.stride(0),
                        .scale_stride = params.scale ? params.scale.stride(0) : 0,
                        .out_stride = out.stride(0),
                        .rows = static_cast<int>(rows),
                        .n = static_cast<int>(n),
                        .k = static_cast<int>(k),
                        .split = split_of<Weight>(n, k, stream.multiprocessors()),
                        .out_is_f32 = out.dtype == DType::kF32,
                        .accumulate = params.accumulate};
  const cudaStream_t handle = stream.handle();
  constexpr int64_t kVector = 16 / static_cast<int64_t>(sizeof(Weight));
  if (!rows_aligned(x, 16, 1) || !rows_aligned(weight, 16, 1) || k % kVector != 0)
    return launch_gemv<GemvTraits<Weight, 4, 2, false>>(gemv, handle);
  if (rows == 1) return launch_gemv<GemvTraits<Weight, 1, 4, true>>(gemv, handle);
  if (rows == 2) return launch_gemv<GemvTraits<Weight, 2, 4, true>>(gemv, handle);
  if (rows <= 4) return launch_gemv<GemvTraits<Weight, 4, 4, true>>(gemv, handle);
  launch_gemv<GemvTraits<Weight, 8, 4, true>>(gemv, handle);
}

// ---- many rows ---------------------------------------------------------------------------------

// x is that of the params; quantised, it will be contiguous.
WgmmaProduct wgmma_of(const LinearParams& params) {
  const Tensor &x = params.x, &weight = params.weight, &scale = params.scale, &out = params.out;
  return {.type = weight.dtype,
          .out = out.data,
          .x = x.data,
          .weight = weight.data,
          .weight_scale = scale.as<const float>(),
          .out_stride = out.stride(0),
          .x_stride = weight.dtype == DType::kF8E4M3 ? weight.dim(1) : x.stride(0),
          .weight_stride = weight.stride(0),
          .weight_scale_stride = scale ? scale.stride(0) : 0,
          .rows = x.dim(0),
          .n = weight.dim(0),
          .k = weight.dim(1),
          .out_is_f32 = out.dtype == DType::kF32,
          .accumulate = params.accumulate};
}

constexpr size_t kCounterBytes = 256;

// False when the operands do not suit it; then nothing was enqueued.
bool run_wgmma(const LinearParams& params, CudaStream& stream) {
  WgmmaProduct product = wgmma_of(params);
  const bool quantised = product.type == DType::kF8E4M3;
  if (!rows_aligned(params.x, 16, 1) || !wgmma_can(product)) return false;
  if (quantised && product.k % 16 != 0) return false;
  const QuantisedRows layout = quantised_rows(product.rows, product.k);
  std::byte* scratch = stream.scratch(kCounterBytes + (quantised ? layout.bytes : 0));
  product.counter = reinterpret_cast<int32_t*>(scratch);
  if (quantised) {
    std::byte* rows = scratch + kCounterBytes;
    auto* scale = reinterpret_cast<float*>(rows + layout.scale_offset);
    launch_quantise({.x = params.x.data,
                     .order = nullptr,
                     .rows_in_use = nullptr,
                     .out = rows,
                     .scale = scale,
                     .x_stride = params.x.stride(0),
                     .rows = product.rows,
                     .k = product.k,
                     .scale_stride = layout.scale_stride},
                    stream.handle(), kName);
    product.x = rows;
    product.x_stride = product.k;
    product.x_scale = scale;
    product.x_scale_stride = layout.scale_stride;
  }
  launch_wgmma(product, stream.multiprocessors(), stream.handle(), kName);
  return true;
}

// ---- few rows ----------------------------------------------------------------------------------

bool run_few_rows(const LinearParams& params, CudaStream& stream) {
  return multiply_few_rows({.out = params.out,
                            .x = params.x,
                            .weight = params.weight,
                            .weight_scale = params.scale,
                            .accumulate = params.accumulate},
                           stream, kName);
}

// ---- launch ------------------------------------------------------------------------------------

constexpr int64_t kGemvRows = 8;
// f32: the gemv is limited by fp32 arithmetic, the tile by how few of its CTAs there are.
constexpr int64_t kExactGemvRows = 256;
// From here on the tensor cores limit, not the reading of W.
constexpr int64_t kManyRows = 65;

void run_bf16(const LinearParams& params, CudaStream& stream) {
  const int64_t rows = params.x.dim(0);
  if (run_few_rows(params, stream)) return;
  if (rows <= kGemvRows) return run_gemv<Bf16>(params, stream);
  if (run_library(product_of(params), stream)) return;
  if (rows >= kManyRows && run_wgmma(params, stream)) return;
  run_tiles(product_of(params), stream, kName);
}

void run_f8(const LinearParams& params, CudaStream& stream) {
  const int64_t rows = params.x.dim(0);
  if (run_few_rows(params, stream)) return;
  if (rows <= kGemvRows) return run_gemv<F8>(params, stream);
  if (rows >= kManyRows && run_wgmma(params, stream)) return;
  run_tiles(product_of(params), stream, kName);
}

void run_f32(const LinearParams& params, CudaStream& stream) {
  if (params.x.dim(0) <= kExactGemvRows) return run_gemv<float>(params, stream);
  run_tiles(product_of(params), stream, kName);
}

}  // namespace

void launch(const LinearParams& params, CudaStream& stream) {
  if (params.out.elements() == 0) return;
  switch (params.weight.dtype) {
    case DType::kBF16:
      return run_bf16(params, stream);
    case DType::kF8E4M3:
      return run_f8(params, stream);
    default:
      return run_f32(params, stream);
  }
}

void launch_exact(const LinearParams& params, CudaStream& stream) {
  if (params.out.elements() > 0) run_exact(product_of(params), stream, kName);
}

}  // namespace loza::cuda
