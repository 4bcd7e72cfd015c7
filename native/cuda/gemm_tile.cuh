// One tile of a matrix product, which dense_tiles.cu and grouped_tiles.cu share:
//   out[rows, columns] = x[rows, k] W[columns, k]^T, or out += ...
// x is bf16; sums are fp32. W is, by its type,
//   bf16     multiplied as it is;
//   f8e4m3   multiplied by the scale of its 128 x 128 block and rounded to bf16;
//   f32      split into three bf16 terms that add up to it exactly: every product is exact, and
//            each step's sums are added to the total by fp32 additions that round to nearest.
// and lies along k ([n, k]) or along n ([k, n]).
//
// Schedule: a ring of kStages steps of kDepth values of k, filled by cp.async kStages - 1 steps
// ahead; one barrier a step. Weights that need conversion land in a ring of their own: each thread
// converts the bytes that it copied itself, into one of two buffers, before the step's barrier.
//
// The sum over k runs in the same order whatever the tile: results do not depend on the choice.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp8.h>

#include <type_traits>

#include "cuda/barrier.cuh"
#include "cuda/check.h"
#include "cuda/launch.h"
#include "cuda/mma.cuh"
#include "ops/linear/linear.h"

namespace loza::cuda {

using Bf16 = __nv_bfloat16;
using F8 = __nv_fp8_e4m3;

// ---- Traits ------------------------------------------------------------------------------------

template <class Weight_, bool kAlongK_, int kRows_, int kColumns_, int kDepth_, int kStages_,
          int kRowWarps_, int kColumnWarps_, int kCtas_>
struct TileTraits {
  using Weight = Weight_;
  static constexpr bool kAlongK = kAlongK_;
  static constexpr int kRows = kRows_, kColumns = kColumns_, kDepth = kDepth_, kStages = kStages_;
  static constexpr int kColumnWarps = kColumnWarps_;
  static constexpr int kThreads = 32 * kRowWarps_ * kColumnWarps_;
  static constexpr int kCtas = kCtas_;  // on one multiprocessor, for the register allocation

  static constexpr int kWarpRows = kRows / kRowWarps_, kWarpColumns = kColumns / kColumnWarps_;
  static constexpr int kRowTiles = kWarpRows / 16, kColumnTiles = kWarpColumns / 8;

  // The weight's part of a step, in the order of memory.
  static constexpr int kPanelRows = kAlongK ? kColumns : kDepth;
  static constexpr int kPanelWidth = kAlongK ? kDepth : kColumns;

  // 16 bytes behind each row put the eight rows that ldmatrix reads at once into different banks.
  static constexpr int kXStride = kDepth + 8, kPanelStride = kPanelWidth + 8;

  static constexpr bool kConverts = !std::is_same_v<Weight, Bf16>;
  static constexpr int kPlanes = std::is_same_v<Weight, float> ? 3 : 1;  // bf16 terms a weight
  static constexpr int kRingStride = kConverts ? kPanelWidth : kPanelStride;

  // 16 bytes a copy.
  static constexpr int kXChunk = 8, kChunk = 16 / static_cast<int>(sizeof(Weight));
  static constexpr int kXChunks = kRows * kDepth / kXChunk / kThreads;
  static constexpr int kChunks = kPanelRows * kPanelWidth / kChunk / kThreads;

  static_assert(kWarpRows % 16 == 0 && kWarpColumns % 16 == 0 && kDepth % 16 == 0);
  static_assert(kXChunks * kXChunk * kThreads == kRows * kDepth);
  static_assert(kChunks * kChunk * kThreads == kPanelRows * kPanelWidth);
  static_assert(kThreads % (kDepth / kXChunk) == 0 && kThreads % (kPanelWidth / kChunk) == 0);
  static_assert(kScaleBlock % kColumns == 0 && kScaleBlock % kChunk == 0);  // one scale a chunk
  static_assert(kStages >= 2);
};

template <class Weight, bool kAlongK>
struct Tiles {
  using Rows16 = TileTraits<Weight, kAlongK, 16, 32, 64, 6, 1, 2, 4>;
  using Rows32 = TileTraits<Weight, kAlongK, 32, 32, 64, 5, 2, 2, 4>;
  using Rows64 = TileTraits<Weight, kAlongK, 64, 64, 64, 4, 2, 2, 2>;
  using Rows128 = TileTraits<Weight, kAlongK, 128, 128, 32, 4, 2, 4, 2>;
};

// f32 weights belong to small matrices: one tile does.
template <bool kAlongK>
struct Tiles<float, kAlongK> {
  using Rows16 = TileTraits<float, kAlongK, 64, 64, 32, 3, 2, 2, 2>;
  using Rows32 = Rows16;
  using Rows64 = Rows16;
  using Rows128 = Rows16;
};

template <class T>
struct TileStorage {
  alignas(16) Bf16 x[T::kStages][T::kRows * T::kXStride];
  alignas(16) typename T::Weight ring[T::kStages][T::kPanelRows * T::kRingStride];
  alignas(16) Bf16 converted[T::kConverts ? 2 * T::kPlanes : 1]
                            [T::kConverts ? T::kPanelRows * T::kPanelStride : 8];
};

// What one CTA computes. Pointers are those of the tile's first row and column.
struct TileTask {
  const Bf16* x;       // rows of k values, found through the kernel's Source
  const void* weight;  // [columns, k] or [k, columns]
  const float* scale;  // f32 [ceil(k / 128)], the block row of the tile's columns; f8e4m3 only
  void* out;           // bf16 | f32 [rows, columns]
  int64_t x_stride, weight_stride, out_stride;
  int rows, columns, k;            // what exists of the tile
  bool x_aligned, weight_aligned;  // every row starts at a multiple of 16 bytes
  bool out_aligned;                // every row starts at a multiple of two values
  bool out_is_f32, accumulate;
};

// ---- load --------------------------------------------------------------------------------------

// Copies 16 bytes, of which the first `count` values exist; the rest become zeros. `base` is any
// readable aligned address.
template <class Value>
__device__ inline void copy_chunk(Value* to, const Value* from, int count, bool aligned,
                                  const void* base) {
  constexpr int kCount = 16 / static_cast<int>(sizeof(Value));
  count = min(max(count, 0), kCount);
  if (aligned) {
    cp_async_16(to, count > 0 ? static_cast<const void*>(from) : base,
                count * static_cast<int>(sizeof(Value)));
    return;
  }
  // Moved without looking at them, by types that the compiler may not confuse with others.
  using Bits = std::conditional_t<sizeof(Value) == 1, uint8_t,
                                  std::conditional_t<sizeof(Value) == 2, uint16_t, float>>;
  for (int i = 0; i < kCount; i++)
    reinterpret_cast<Bits*>(to)[i] = i < count ? reinterpret_cast<const Bits*>(from)[i] : Bits{0};
}

// Where the rows of this thread's chunks begin; null for rows that do not exist.
template <class T, class Source>
__device__ inline void find_rows(const Bf16* (&rows)[T::kXChunks], const TileTask& task,
                                 const Source& source) {
  constexpr int kPerRow = T::kDepth / T::kXChunk;
#pragma unroll
  for (int i = 0; i < T::kXChunks; i++) {
    const int row = static_cast<int>(threadIdx.x) / kPerRow + i * (T::kThreads / kPerRow);
    rows[i] = row < task.rows ? task.x + source(row) * task.x_stride : nullptr;
  }
}

template <class T>
__device__ inline void load_x(TileStorage<T>& shared, const TileTask& task,
                              const Bf16* const (&rows)[T::kXChunks], int step, int stage) {
  constexpr int kPerRow = T::kDepth / T::kXChunk;
  const int part = static_cast<int>(threadIdx.x) % kPerRow * T::kXChunk;
  const int k = step * T::kDepth + part;
#pragma unroll
  for (int i = 0; i < T::kXChunks; i++) {
    const int row = static_cast<int>(threadIdx.x) / kPerRow + i * (T::kThreads / kPerRow);
    copy_chunk(&shared.x[stage][row * T::kXStride + part], rows[i] + k, rows[i] ? task.k - k : 0,
               task.x_aligned, task.x);
  }
}

template <class T>
__device__ inline void load_weight(TileStorage<T>& shared, const TileTask& task, int step,
                                   int stage) {
  using Weight = typename T::Weight;
  constexpr int kPerRow = T::kPanelWidth / T::kChunk;
  const int part = static_cast<int>(threadIdx.x) % kPerRow * T::kChunk;
  const int first = static_cast<int>(threadIdx.x) / kPerRow;
  const int k = step * T::kDepth;
  const Weight* weight =
      static_cast<const Weight*>(task.weight) + part +
      (T::kAlongK ? first * task.weight_stride + k : (first + int64_t{k}) * task.weight_stride);
#pragma unroll
  for (int i = 0; i < T::kChunks; i++) {
    const int row = first + i * (T::kThreads / kPerRow);
    const int rows = T::kAlongK ? task.columns : task.k - k;
    const int width = T::kAlongK ? task.k - k - part : task.columns - part;
    copy_chunk(&shared.ring[stage][row * T::kRingStride + part],
               weight + i * (T::kThreads / kPerRow) * task.weight_stride, row < rows ? width : 0,
               task.weight_aligned, task.weight);
  }
}

// ---- convert -----------------------------------------------------------------------------------

__device__ inline uint32_t bits_of(__nv_bfloat162 pair) {
  return *reinterpret_cast<const uint32_t*>(&pair);
}

// Two f8e4m3 values, exactly.
__device__ inline float2 widen_f8x2(uint32_t bits) {
  const __half2_raw halves =
      __nv_cvt_fp8x2_to_halfraw2(static_cast<__nv_fp8x2_storage_t>(bits), __NV_E4M3);
  return __half22float2(__half2(halves));
}

// 16 values times their scale.
__device__ inline void widen_chunk(uint4 (&to)[2], const uint4& from, float scale) {
  const uint32_t words[4] = {from.x, from.y, from.z, from.w};
  uint32_t pairs[8];
#pragma unroll
  for (int i = 0; i < 4; i++) {
    const float2 low = widen_f8x2(words[i] & 0xffffu), high = widen_f8x2(words[i] >> 16);
    pairs[2 * i] = bits_of(__floats2bfloat162_rn(low.x * scale, low.y * scale));
    pairs[2 * i + 1] = bits_of(__floats2bfloat162_rn(high.x * scale, high.y * scale));
  }
  to[0] = make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
  to[1] = make_uint4(pairs[4], pairs[5], pairs[6], pairs[7]);
}

// Four values as three bf16 terms each: 3 x 8 bits of mantissa hold all 24 of fp32.
template <int kPlane>
__device__ inline void split_chunk(Bf16* to, float4 rest) {
#pragma unroll
  for (int plane = 0; plane < 3; plane++, to += kPlane) {
    const __nv_bfloat162 low = __floats2bfloat162_rn(rest.x, rest.y);
    const __nv_bfloat162 high = __floats2bfloat162_rn(rest.z, rest.w);
    *reinterpret_cast<uint2*>(to) = make_uint2(bits_of(low), bits_of(high));
    const float2 l = __bfloat1622float2(low), h = __bfloat1622float2(high);
    rest = make_float4(rest.x - l.x, rest.y - l.y, rest.z - h.x, rest.w - h.y);
  }
}

// The chunks that this thread copied in load_weight.
template <class T>
__device__ inline void convert_weight(TileStorage<T>& shared, const TileTask& task, int step,
                                      int stage) {
  constexpr int kPerRow = T::kPanelWidth / T::kChunk;
  const int part = static_cast<int>(threadIdx.x) % kPerRow * T::kChunk;
#pragma unroll
  for (int i = 0; i < T::kChunks; i++) {
    const int row = static_cast<int>(threadIdx.x) / kPerRow + i * (T::kThreads / kPerRow);
    const auto* from = &shared.ring[stage][row * T::kRingStride + part];
    Bf16* to = &shared.converted[step % 2 * T::kPlanes][row * T::kPanelStride + part];
    if constexpr (std::is_same_v<typename T::Weight, F8>) {
      const int k = min(step * T::kDepth + part, task.k - 1);
      uint4 wide[2];
      widen_chunk(wide, *reinterpret_cast<const uint4*>(from),
                  __ldg(task.scale + k / static_cast<int>(kScaleBlock)));
      reinterpret_cast<uint4*>(to)[0] = wide[0];
      reinterpret_cast<uint4*>(to)[1] = wide[1];
    } else {
      split_chunk<T::kPanelRows * T::kPanelStride>(to, *reinterpret_cast<const float4*>(from));
    }
  }
}

// ---- compute -----------------------------------------------------------------------------------

template <class T>
using TileSums = float[T::kRowTiles][T::kColumnTiles][4];

// Adds one step. Layouts: see mma_bf16.
template <class T>
__device__ inline void multiply(TileSums<T>& sums, const Bf16* x, const Bf16* panel) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int first_row = warp / T::kColumnWarps * T::kWarpRows;
  const int first_column = warp % T::kColumnWarps * T::kWarpColumns;
  // Matrices of ldmatrix: a: rows 0-7, 8-15 at k 0-7, then both at k 8-15.
  x += (first_row + lane % 16) * T::kXStride + lane / 16 * 8;
  // b: columns 0-7 at k 0-7 and 8-15, then columns 8-15; transposed from memory along n.
  panel += T::kAlongK
               ? (first_column + lane / 16 * 8 + lane % 8) * T::kPanelStride + lane / 8 % 2 * 8
               : lane % 16 * T::kPanelStride + first_column + lane / 16 * 8;
#pragma unroll
  for (int k = 0; k < T::kDepth; k += 16) {
    uint32_t a[T::kRowTiles][4];
#pragma unroll
    for (int row = 0; row < T::kRowTiles; row++)
      ldmatrix_x4(a[row], x + row * 16 * T::kXStride + k);
#pragma unroll
    for (int column = 0; column < T::kColumnTiles; column += 2) {
      uint32_t b[4];
      if constexpr (T::kAlongK)
        ldmatrix_x4(b, panel + column * 8 * T::kPanelStride + k);
      else
        ldmatrix_x4_transposed(b, panel + k * T::kPanelStride + column * 8);
#pragma unroll
      for (int row = 0; row < T::kRowTiles; row++) {
        mma_bf16(sums[row][column], a[row], b[0], b[1]);
        mma_bf16(sums[row][column + 1], a[row], b[2], b[3]);
      }
    }
  }
}

// Three terms a weight, the small ones first.
template <class T>
__device__ inline void multiply_exactly(TileSums<T>& sums, const TileStorage<T>& shared, int step,
                                        int stage) {
  TileSums<T> partial = {};
#pragma unroll
  for (int plane = T::kPlanes - 1; plane >= 0; plane--)
    multiply<T>(partial, shared.x[stage], shared.converted[step % 2 * T::kPlanes + plane]);
#pragma unroll
  for (int row = 0; row < T::kRowTiles; row++)
#pragma unroll
    for (int column = 0; column < T::kColumnTiles; column++)
#pragma unroll
      for (int i = 0; i < 4; i++) sums[row][column][i] += partial[row][column][i];
}

template <class T>
__device__ inline void compute(TileSums<T>& sums, const TileStorage<T>& shared, int step,
                               int stage) {
  if constexpr (T::kPlanes > 1)
    multiply_exactly<T>(sums, shared, step, stage);
  else if constexpr (T::kConverts)
    multiply<T>(sums, shared.x[stage], shared.converted[step % 2]);
  else
    multiply<T>(sums, shared.x[stage], shared.ring[stage]);
}

// ---- store -------------------------------------------------------------------------------------

// Two neighbours of a row; `count` of them exist.
__device__ inline void store_pair(const TileTask& task, int row, int column, float2 sum,
                                  int count) {
  const int64_t offset = row * task.out_stride + column;
  if (task.out_is_f32) {
    float* out = static_cast<float*>(task.out) + offset;
    out[0] = task.accumulate ? out[0] + sum.x : sum.x;
    if (count > 1) out[1] = task.accumulate ? out[1] + sum.y : sum.y;
    return;
  }
  Bf16* out = static_cast<Bf16*>(task.out) + offset;
  if (task.accumulate) {
    sum.x += __bfloat162float(out[0]);
    if (count > 1) sum.y += __bfloat162float(out[1]);
  }
  if (count > 1 && task.out_aligned) {
    *reinterpret_cast<__nv_bfloat162*>(out) = __floats2bfloat162_rn(sum.x, sum.y);
    return;
  }
  out[0] = __float2bfloat16_rn(sum.x);
  if (count > 1) out[1] = __float2bfloat16_rn(sum.y);
}

template <class T>
__device__ inline void store(const TileTask& task, const TileSums<T>& sums) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int first_row = warp / T::kColumnWarps * T::kWarpRows + lane / 4;
  const int first_column = warp % T::kColumnWarps * T::kWarpColumns + lane % 4 * 2;
#pragma unroll
  for (int row_tile = 0; row_tile < T::kRowTiles; row_tile++) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const int row = first_row + row_tile * 16 + half * 8;
      if (row >= task.rows) continue;
#pragma unroll
      for (int column_tile = 0; column_tile < T::kColumnTiles; column_tile++) {
        const int column = first_column + column_tile * 8;
        const float* sum = &sums[row_tile][column_tile][half * 2];
        if (column < task.columns)
          store_pair(task, row, column, make_float2(sum[0], sum[1]), task.columns - column);
      }
    }
  }
}

// ---- a whole tile ------------------------------------------------------------------------------

// source(i): the row of x that row i of the tile multiplies, for i < task.rows. All threads of the
// CTA call this, once a launch.
template <class T, class Source>
__device__ inline void run_tile(TileStorage<T>& shared, const TileTask& task,
                                const Source& source) {
  TileSums<T> sums = {};
  const Bf16* rows[T::kXChunks];
  find_rows<T>(rows, task, source);
  const int steps = (task.k + T::kDepth - 1) / T::kDepth;
  const auto load = [&](int step, int stage) {
    if (step < steps) {
      load_x<T>(shared, task, rows, step, stage);
      load_weight<T>(shared, task, step, stage);
    }
    cp_async_commit();  // an empty group past the end keeps the count
  };
  for (int stage = 0; stage < T::kStages - 1; stage++) load(stage, stage);
  int stage = 0, free_stage = T::kStages - 1;
  for (int step = 0; step < steps; step++) {
    cp_async_wait<T::kStages - 2>();
    if constexpr (T::kConverts) convert_weight<T>(shared, task, step, stage);
    // Everybody's copies of this step have landed, and nobody reads the stage before it any more:
    // that one is filled next.
    __syncthreads();
    load(step + T::kStages - 1, free_stage);
    compute<T>(sums, shared, step, stage);
    free_stage = stage;
    stage = stage + 1 < T::kStages ? stage + 1 : 0;
  }
  store<T>(task, sums);
}

// ---- launchers' share --------------------------------------------------------------------------

// A kernel may use more than 48 KiB of shared memory only after saying so, on each device.
template <class Kernel>
inline void allow_shared(Kernel* kernel, size_t bytes, const char* operation) {
  if (bytes <= 48 * 1024) return;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             static_cast<int>(bytes)),
        operation);
}

inline bool multiple_of(const void* address, uintptr_t bytes) {
  return reinterpret_cast<uintptr_t>(address) % bytes == 0;
}

// Whether every row that can be reached by these strides starts at a multiple of `bytes`. The
// stride of an extent of one is never used.
inline bool rows_aligned(const Tensor& tensor, int64_t bytes, int contiguous) {
  bool aligned = multiple_of(tensor.data, static_cast<uintptr_t>(bytes));
  for (int i = 0; i < tensor.rank; i++)
    if (i != contiguous && tensor.shape[i] > 1)
      aligned = aligned && tensor.strides[i] * size_of(tensor.dtype) % bytes == 0;
  return aligned;
}

// Calls body(Tiles<Weight, kAlongK>{}) for weights of type `dtype`; those along n are not f8e4m3.
template <class Body>
void with_tiles(DType dtype, bool along_n, const Body& body) {
  if (dtype == DType::kBF16)
    return along_n ? body(Tiles<Bf16, false>{}) : body(Tiles<Bf16, true>{});
  if (dtype == DType::kF32)
    return along_n ? body(Tiles<float, false>{}) : body(Tiles<float, true>{});
  if (dtype == DType::kF8E4M3 && !along_n) return body(Tiles<F8, true>{});
  fail(code::kInternal, "expected weights along k or of another type, got ", name_of(dtype));
}

}  // namespace loza::cuda
