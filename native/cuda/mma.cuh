// Tensor cores and asynchronous copies as every architecture since Ampere has them: one instruction
// a function, nothing else. Operand layouts are those of the PTX manual, repeated where used.
#pragma once

#include <cstdint>

namespace loza::cuda {

// The 32-bit address by which PTX names shared memory.
__device__ inline uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// Copies 16 bytes global -> shared, of which the first `bytes` (0 to 16) are read and the rest are
// zeros. Both addresses are multiples of 16.
__device__ inline void cp_async_16(void* shared, const void* global, int bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(shared_address(shared)),
               "l"(__cvta_generic_to_global(global)), "r"(bytes)
               : "memory");
}

// Copies 4 bytes; both addresses are multiples of 4.
__device__ inline void cp_async_4(void* shared, const void* global) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;\n" ::"r"(shared_address(shared)),
               "l"(__cvta_generic_to_global(global))
               : "memory");
}

__device__ inline void cp_async_commit() { asm volatile("cp.async.commit_group;\n" ::: "memory"); }

// Waits until at most `Pending` of this thread's committed groups are still under way.
template <int Pending>
__device__ inline void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(Pending) : "memory");
}

// Four 8 x 8 matrices of 16-bit values. Lanes 8i to 8i + 7 give the addresses of the eight rows of
// matrix i; lane l receives columns 2(l % 4) and 2(l % 4) + 1 of row l / 4 of each.
__device__ inline void ldmatrix_x4(uint32_t (&to)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(shared_address(row))
               : "memory");
}

// The same of the transposed matrices: lane l receives rows 2(l % 4) and 2(l % 4) + 1 of column
// l / 4.
__device__ inline void ldmatrix_x4_transposed(uint32_t (&to)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(shared_address(row))
               : "memory");
}

// The opposite of ldmatrix_x4: lane l has row l / 4, columns 2(l % 4) and 2(l % 4) + 1 of each matrix.
__device__ inline void stmatrix_x4(uint32_t row, const uint32_t (&from)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};\n" ::"r"(row),
               "r"(from[0]), "r"(from[1]), "r"(from[2]), "r"(from[3])
               : "memory");
}

// c[16 x 8] += a[16 x 16] b[16 x 8], bf16 with fp32 sums. With g = lane / 4 and j = lane % 4:
//   a[0..3]: rows g, g + 8, g, g + 8 at k = 2j, 2j + 1 (the last two at k + 8)
//   b0, b1:  column g at k = 2j, 2j + 1 and at k + 8
//   c[0..3]: row g at columns 2j, 2j + 1, then row g + 8
__device__ inline void mma_bf16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};\n"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

}  // namespace loza::cuda
