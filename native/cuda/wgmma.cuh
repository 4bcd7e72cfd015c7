// Warpgroup matrix instructions of Hopper (wgmma): D[64, N] (+)= A[64, K] B[N, K]^T with fp32 sums, by
// the 128 threads of a warpgroup, asynchronously. B, and A unless it is in registers, lie in shared
// memory and are named by descriptors. N is twice the length of `d`.
//
// Thread t of the warpgroup, warp w = t / 32, g = t % 32 / 4, j = t % 4, holds of D:
//   d[4 i + 0, 1]: row 16 w + g,     columns 8 i + 2 j, + 1
//   d[4 i + 2, 3]: row 16 w + g + 8, the same columns
// and of A in registers (bf16, K = 16): a[0], a[2] row 16 w + g and a[1], a[3] row + 8, the first two
// at k = 2 j, 2 j + 1, the others at k + 8; which is D's layout, two values a register. For e4m3
// (K = 32) a register holds four values: a[0], a[1] at k = 4 j to 4 j + 3, a[2], a[3] at k + 16.
//
// Order: wgmma_fence, any number of wgmma, wgmma_commit, wgmma_wait before d (or the operands) are
// touched again. A new chain on the same registers needs a fence after other writes to them.
#pragma once

#include <cstdint>

#include "cuda/mma.cuh"

namespace loza::cuda {

// Before the first wgmma, and after ordinary writes to registers that it reads or adds to.
__device__ __forceinline__ void wgmma_fence() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

__device__ __forceinline__ void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

// Until at most kPending committed groups are still under way.
template <int kPending>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

// Keeps the compiler from moving accesses of d across a wait.
template <int kCount>
__device__ __forceinline__ void wgmma_pin(float (&d)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; i++) asm volatile("" : "+f"(d[i])::"memory");
}

// A tile of 128-byte rows that TMA wrote with Swizzle::k128Bytes, at an address that is a multiple of
// 1024 (plus 16 bytes a step along a row: 32 bytes a wgmma).
//   K along the rows (the usual case): the row is the index m or n, eight rows take 1024 bytes, and
//     `row_group_stride` (1024 where rows are dense) is from one group of eight to the next.
//   K across the rows (transposed; bf16 only): a row is one k and 64 values of m or n;
//     `panel_stride` is from 64 values of m or n to the next 64, row_group_stride as before but of k.
__device__ __forceinline__ uint64_t wgmma_descriptor(const void* shared, uint32_t panel_stride = 16,
                                                     uint32_t row_group_stride = 1024) {
  constexpr uint64_t kSwizzle128 = uint64_t{1} << 62;
  const uint64_t address = (shared_address(shared) & 0x3ffff) >> 4;
  return kSwizzle128 | address | uint64_t{panel_stride >> 4} << 16 |
         uint64_t{row_group_stride >> 4} << 32;
}

// The same tile further on: a descriptor counts 16 bytes.
__device__ __forceinline__ uint64_t wgmma_advance(uint64_t descriptor, uint32_t bytes) {
  return descriptor + (bytes >> 4);
}

// ---- The instructions, an overload each N ----------------------------------------------------------
// wgmma_bf16<kTransposeA, kTransposeB>(d, a, b, accumulate), wgmma_bf16<kTransposeB>(d, registers, b,
// accumulate), wgmma_f16(d, registers, b, accumulate), wgmma_e4m3(d, a, b, accumulate),
// wgmma_e4m3(d, registers, b, accumulate). Without accumulate, d is overwritten.

// clang-format off
#define LOZA_R4 "%0, %1, %2, %3"
#define LOZA_R8 LOZA_R4 ", %4, %5, %6, %7"
#define LOZA_R12 LOZA_R8 ", %8, %9, %10, %11"
#define LOZA_R16 LOZA_R12 ", %12, %13, %14, %15"
#define LOZA_R20 LOZA_R16 ", %16, %17, %18, %19"
#define LOZA_R24 LOZA_R20 ", %20, %21, %22, %23"
#define LOZA_R28 LOZA_R24 ", %24, %25, %26, %27"
#define LOZA_R32 LOZA_R28 ", %28, %29, %30, %31"
#define LOZA_R36 LOZA_R32 ", %32, %33, %34, %35"
#define LOZA_R40 LOZA_R36 ", %36, %37, %38, %39"
#define LOZA_R44 LOZA_R40 ", %40, %41, %42, %43"
#define LOZA_R48 LOZA_R44 ", %44, %45, %46, %47"
#define LOZA_R52 LOZA_R48 ", %48, %49, %50, %51"
#define LOZA_R56 LOZA_R52 ", %52, %53, %54, %55"
#define LOZA_R60 LOZA_R56 ", %56, %57, %58, %59"
#define LOZA_R64 LOZA_R60 ", %60, %61, %62, %63"
#define LOZA_R68 LOZA_R64 ", %64, %65, %66, %67"
#define LOZA_R72 LOZA_R68 ", %68, %69, %70, %71"
#define LOZA_R76 LOZA_R72 ", %72, %73, %74, %75"
#define LOZA_R80 LOZA_R76 ", %76, %77, %78, %79"
#define LOZA_R84 LOZA_R80 ", %80, %81, %82, %83"
#define LOZA_R88 LOZA_R84 ", %84, %85, %86, %87"
#define LOZA_R92 LOZA_R88 ", %88, %89, %90, %91"
#define LOZA_R96 LOZA_R92 ", %92, %93, %94, %95"
#define LOZA_R100 LOZA_R96 ", %96, %97, %98, %99"
#define LOZA_R104 LOZA_R100 ", %100, %101, %102, %103"
#define LOZA_R108 LOZA_R104 ", %104, %105, %106, %107"
#define LOZA_R112 LOZA_R108 ", %108, %109, %110, %111"
#define LOZA_R116 LOZA_R112 ", %112, %113, %114, %115"
#define LOZA_R120 LOZA_R116 ", %116, %117, %118, %119"
#define LOZA_R124 LOZA_R120 ", %120, %121, %122, %123"
#define LOZA_R128 LOZA_R124 ", %124, %125, %126, %127"
#define LOZA_D4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define LOZA_D8(i) LOZA_D4(i), LOZA_D4(i + 4)
#define LOZA_D16(i) LOZA_D8(i), LOZA_D8(i + 8)
#define LOZA_D32(i) LOZA_D16(i), LOZA_D16(i + 16)
#define LOZA_D64(i) LOZA_D32(i), LOZA_D32(i + 32)
// n, registers of d, then the numbers of the asm operands after d.
#define LOZA_WGMMA(N, R, D, I0, I1, I2, I3, I4, I5, I6) \
  template <int kTransposeA = 0, int kTransposeB = 0> \
  __device__ __forceinline__ void wgmma_bf16(float (&d)[R], uint64_t a, uint64_t b, bool accumulate) { \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #I2 ", 0;\n" \
                 "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32.bf16.bf16 {" LOZA_R##R "}, %" #I0 ", %" #I1 \
                 ", p, 1, 1, %" #I3 ", %" #I4 ";\n}" \
                 : D : "l"(a), "l"(b), "r"(int{accumulate}), "n"(kTransposeA), "n"(kTransposeB)); \
  } \
  template <int kTransposeB = 0> \
  __device__ __forceinline__ void wgmma_bf16(float (&d)[R], const uint32_t (&a)[4], uint64_t b, bool accumulate) { \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #I5 ", 0;\n" \
                 "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32.bf16.bf16 {" LOZA_R##R "}, {%" #I0 ", %" #I1 ", %" #I2 ", %" #I3 "}, %" #I4 \
                 ", p, 1, 1, %" #I6 ";\n}" \
                 : D : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(int{accumulate}), "n"(kTransposeB)); \
  } \
  __device__ __forceinline__ void wgmma_f16(float (&d)[R], const uint32_t (&a)[4], uint64_t b, bool accumulate) { \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #I5 ", 0;\n" \
                 "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32.f16.f16 {" LOZA_R##R "}, {%" #I0 ", %" #I1 ", %" #I2 ", %" #I3 "}, %" #I4 \
                 ", p, 1, 1, 0;\n}" \
                 : D : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(int{accumulate})); \
  } \
  __device__ __forceinline__ void wgmma_e4m3(float (&d)[R], uint64_t a, uint64_t b, bool accumulate) { \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #I2 ", 0;\n" \
                 "wgmma.mma_async.sync.aligned.m64n" #N "k32.f32.e4m3.e4m3 {" LOZA_R##R "}, %" #I0 ", %" #I1 ", p, 1, 1;\n}" \
                 : D : "l"(a), "l"(b), "r"(int{accumulate})); \
  } \
  __device__ __forceinline__ void wgmma_e4m3(float (&d)[R], const uint32_t (&a)[4], uint64_t b, bool accumulate) { \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #I5 ", 0;\n" \
                 "wgmma.mma_async.sync.aligned.m64n" #N "k32.f32.e4m3.e4m3 {" LOZA_R##R "}, {%" #I0 ", %" #I1 ", %" #I2 ", %" #I3 "}, %" #I4 ", p, 1, 1;\n}" \
                 : D : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(int{accumulate})); \
  }
#define LOZA_LIST(...) __VA_ARGS__
LOZA_WGMMA(8, 4, LOZA_LIST(LOZA_D4(0)), 4, 5, 6, 7, 8, 9, 10)
LOZA_WGMMA(16, 8, LOZA_LIST(LOZA_D8(0)), 8, 9, 10, 11, 12, 13, 14)
LOZA_WGMMA(24, 12, LOZA_LIST(LOZA_D8(0), LOZA_D4(8)), 12, 13, 14, 15, 16, 17, 18)
LOZA_WGMMA(32, 16, LOZA_LIST(LOZA_D16(0)), 16, 17, 18, 19, 20, 21, 22)
LOZA_WGMMA(48, 24, LOZA_LIST(LOZA_D16(0), LOZA_D8(16)), 24, 25, 26, 27, 28, 29, 30)
LOZA_WGMMA(56, 28, LOZA_LIST(LOZA_D16(0), LOZA_D8(16), LOZA_D4(24)), 28, 29, 30, 31, 32, 33, 34)
LOZA_WGMMA(64, 32, LOZA_LIST(LOZA_D32(0)), 32, 33, 34, 35, 36, 37, 38)
LOZA_WGMMA(80, 40, LOZA_LIST(LOZA_D32(0), LOZA_D8(32)), 40, 41, 42, 43, 44, 45, 46)
LOZA_WGMMA(96, 48, LOZA_LIST(LOZA_D32(0), LOZA_D16(32)), 48, 49, 50, 51, 52, 53, 54)
LOZA_WGMMA(112, 56, LOZA_LIST(LOZA_D32(0), LOZA_D16(32), LOZA_D8(48)), 56, 57, 58, 59, 60, 61, 62)
LOZA_WGMMA(128, 64, LOZA_LIST(LOZA_D64(0)), 64, 65, 66, 67, 68, 69, 70)
LOZA_WGMMA(160, 80, LOZA_LIST(LOZA_D64(0), LOZA_D16(64)), 80, 81, 82, 83, 84, 85, 86)
LOZA_WGMMA(176, 88, LOZA_LIST(LOZA_D64(0), LOZA_D16(64), LOZA_D8(80)), 88, 89, 90, 91, 92, 93, 94)
LOZA_WGMMA(192, 96, LOZA_LIST(LOZA_D64(0), LOZA_D32(64)), 96, 97, 98, 99, 100, 101, 102)
LOZA_WGMMA(224, 112, LOZA_LIST(LOZA_D64(0), LOZA_D32(64), LOZA_D16(96)), 112, 113, 114, 115, 116, 117, 118)
LOZA_WGMMA(256, 128, LOZA_LIST(LOZA_D64(0), LOZA_D64(64)), 128, 129, 130, 131, 132, 133, 134)
#undef LOZA_LIST
#undef LOZA_WGMMA
#undef LOZA_D64
#undef LOZA_D32
#undef LOZA_D16
#undef LOZA_D8
#undef LOZA_D4
#undef LOZA_R128
#undef LOZA_R124
#undef LOZA_R120
#undef LOZA_R116
#undef LOZA_R112
#undef LOZA_R108
#undef LOZA_R104
#undef LOZA_R100
#undef LOZA_R96
#undef LOZA_R92
#undef LOZA_R88
#undef LOZA_R84
#undef LOZA_R80
#undef LOZA_R76
#undef LOZA_R72
#undef LOZA_R68
#undef LOZA_R64
#undef LOZA_R60
#undef LOZA_R56
#undef LOZA_R52
#undef LOZA_R48
#undef LOZA_R44
#undef LOZA_R40
#undef LOZA_R36
#undef LOZA_R32
#undef LOZA_R28
#undef LOZA_R24
#undef LOZA_R20
#undef LOZA_R16
#undef LOZA_R12
#undef LOZA_R8
#undef LOZA_R4
// clang-format on

}  // namespace loza::cuda
