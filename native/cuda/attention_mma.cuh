// What the attention kernels share: one-instruction wrappers and shared-memory tiles of bf16.
//
// Fragments of mma.m16n8k16, lane = 4 g + t: the accumulator holds (row g, columns 2t and 2t + 1),
// then the same of row g + 8. A comes from a row-major tile with load_matrices, B from one whose rows
// are B's columns with load_matrices and from one whose rows are B's rows with load_transposed.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <atomic>
#include <cstdint>

#include "cuda/check.h"
#include "cuda/mma.cuh"

namespace loza::cuda::attention {

using bf16 = __nv_bfloat16;

inline constexpr int kLanes = 32;
inline constexpr int kChunk = 8;  // bf16 of a 16-byte chunk, the unit of copies and of ldmatrix
inline constexpr float kLog2e = 1.4426950408889634f;
inline constexpr float kLn2 = 0.6931471805599453f;

__device__ inline float negative_infinity() { return __int_as_float(0xff800000); }
__device__ inline float not_a_number() { return __int_as_float(0x7fc00000); }

// Copies 16 bytes, or writes 16 zero bytes without reading anything.
__device__ inline void copy_async(uint32_t to, const void* from, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from),
               "r"(valid ? 16 : 0)
               : "memory");
}

// The thread's own copies have arrived; a barrier makes those of the others visible.
__device__ inline void wait_for_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

__device__ inline void load_matrices(uint32_t (&to)[4], uint32_t from) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(from)
               : "memory");
}

__device__ inline void load_transposed(uint32_t (&to)[4], uint32_t from) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(from)
               : "memory");
}

// sums += a b, [16, 16] x [16, 8]
__device__ inline void multiply_add(float (&sums)[4], const uint32_t (&a)[4], uint32_t b0,
                                    uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ inline uint32_t pack(float low, float high) {
  uint32_t packed;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}

__device__ inline float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Over the four lanes that hold one row of an accumulator.
__device__ inline float quad_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(0xffffffff, x, 1));
  return fmaxf(x, __shfl_xor_sync(0xffffffff, x, 2));
}
__device__ inline float quad_sum(float x) {
  x += __shfl_xor_sync(0xffffffff, x, 1);
  return x + __shfl_xor_sync(0xffffffff, x, 2);
}

// Byte offset of a chunk in a row-major tile of kColumns. Chunks are permuted inside 128 bytes so
// that the eight rows of a matrix lie in different banks.
template <int kColumns>
__device__ inline uint32_t tile_offset(int row, int chunk) {
  static_assert(kColumns == 32 || kColumns % 64 == 0);
  const int swizzle = kColumns == 32 ? (row >> 1) & 3 : row & 7;
  return static_cast<uint32_t>(row * kColumns * 2 + ((chunk ^ swizzle) << 4));
}

// Fills a tile [kRows, kColumns] with `rows` rows of `columns` values; the rest is zeros, and nothing
// is read for it. `at(row, column)` points to a value. Vector copies need whole aligned chunks and
// complete asynchronously; the caller waits and has a barrier in either case.
template <int kRows, int kColumns, int kThreads, class At>
__device__ inline void load_tile(bf16* to, int rows, int columns, bool vector, const void* anywhere,
                                 const At& at) {
  constexpr int kRowChunks = kColumns / kChunk;
  const uint32_t base = shared_address(to);
#pragma unroll 4
  for (int i = static_cast<int>(threadIdx.x); i < kRows * kRowChunks; i += kThreads) {
    const int row = i / kRowChunks, chunk = i % kRowChunks, column = chunk * kChunk;
    const uint32_t offset = tile_offset<kColumns>(row, chunk);
    if (vector) {
      const bool valid = row < rows && column < columns;
      copy_async(base + offset, valid ? static_cast<const void*>(at(row, column)) : anywhere,
                 valid);
      continue;
    }
    bf16* values = to + offset / sizeof(bf16);
    for (int c = 0; c < kChunk; c++)
      values[c] = row < rows && column + c < columns ? *at(row, column + c) : bf16{};
  }
}

// Lets a kernel have more than 48 KiB of shared memory; once for a kernel and a device.
template <auto kKernel>
void allow_shared_memory(size_t bytes) {
  static std::atomic<uint64_t> devices{0};
  int device = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  const uint64_t bit = uint64_t{1} << (device & 63);
  if (devices.load(std::memory_order_relaxed) & bit) return;
  check(cudaFuncSetAttribute(kKernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             static_cast<int>(bytes)),
        "cudaFuncSetAttribute");
  devices.fetch_or(bit, std::memory_order_relaxed);
}

}  // namespace loza::cuda::attention
