// Bulk tensor copies (TMA) between global and shared memory: the host describes a tensor and its box
// in a TensorMap, passed to the kernel as a `const __grid_constant__ TensorMap`; one thread starts a
// copy; an mbarrier counts the bytes of loads, a bulk group those of stores.
#pragma once

#include <cuda.h>

#include <cstdint>

#include "cuda/barrier.cuh"
#include "cuda/tensor_map.h"

namespace loza::cuda {

// L2 policies, as the copy instructions take them.
inline constexpr uint64_t kEvictFirst =
    0x12F0000000000000;  // read once: weights, KV of one sequence
inline constexpr uint64_t kEvictLast = 0x14F0000000000000;  // read again soon
inline constexpr uint64_t kEvictNormal = 0x1000000000000000;

__device__ __forceinline__ void prefetch(const TensorMap& map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}

// Loads a box at element coordinates; what lies outside the tensor becomes zeros and counts as bytes.
__device__ __forceinline__ void tma_load(void* to, const TensorMap& map, uint64_t* barrier,
                                         int32_t x, int32_t y, uint64_t policy = kEvictNormal) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
      "[%0], [%1, {%3, %4}], [%2], %5;" ::"r"(shared_address(to)),
      "l"(&map), "r"(shared_address(barrier)), "r"(x), "r"(y), "l"(policy)
      : "memory");
}

__device__ __forceinline__ void tma_load(void* to, const TensorMap& map, uint64_t* barrier,
                                         int32_t x, int32_t y, int32_t z,
                                         uint64_t policy = kEvictNormal) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
      "[%0], [%1, {%3, %4, %5}], [%2], %6;" ::"r"(shared_address(to)),
      "l"(&map), "r"(shared_address(barrier)), "r"(x), "r"(y), "r"(z), "l"(policy)
      : "memory");
}

__device__ __forceinline__ void tma_load(void* to, const TensorMap& map, uint64_t* barrier,
                                         int32_t x, int32_t y, int32_t z, int32_t w,
                                         uint64_t policy = kEvictNormal) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
      "[%0], [%1, {%3, %4, %5, %6}], [%2], %7;" ::"r"(shared_address(to)),
      "l"(&map), "r"(shared_address(barrier)), "r"(x), "r"(y), "r"(z), "r"(w), "l"(policy)
      : "memory");
}

// Brings a box into the L2 and no further.
__device__ __forceinline__ void tma_prefetch(const TensorMap& map, int32_t x, int32_t y,
                                             int32_t z) {
  asm volatile("cp.async.bulk.prefetch.tensor.3d.L2.global [%0, {%1, %2, %3}];" ::"l"(&map), "r"(x),
               "r"(y), "r"(z)
               : "memory");
}

// To the same place of every CTA in `ctas` (a bit each), on the barrier at the same place there.
__device__ __forceinline__ void tma_load_multicast(void* to, const TensorMap& map,
                                                   uint64_t* barrier, int32_t x, int32_t y,
                                                   uint16_t ctas, uint64_t policy = kEvictNormal) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
      ".multicast::cluster.L2::cache_hint [%0], [%1, {%3, %4}], [%2], %5, %6;" ::"r"(
          shared_address(to)),
      "l"(&map), "r"(shared_address(barrier)), "r"(x), "r"(y), "h"(ctas), "l"(policy)
      : "memory");
}

__device__ __forceinline__ void tma_load_multicast(void* to, const TensorMap& map,
                                                   uint64_t* barrier, int32_t x, int32_t y,
                                                   int32_t z, uint16_t ctas,
                                                   uint64_t policy = kEvictNormal) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes"
      ".multicast::cluster.L2::cache_hint [%0], [%1, {%3, %4, %5}], [%2], %6, %7;" ::"r"(
          shared_address(to)),
      "l"(&map), "r"(shared_address(barrier)), "r"(x), "r"(y), "r"(z), "h"(ctas), "l"(policy)
      : "memory");
}

// Contiguous bytes to global memory, a multiple of 16 with aligned addresses; joins the thread's bulk
// group.
__device__ __forceinline__ void bulk_store(void* to, const void* from, uint32_t bytes) {
  asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(
                   __cvta_generic_to_global(to)),
               "r"(shared_address(from)), "r"(bytes)
               : "memory");
}

// Stores a box; what lies outside the tensor is not written. Needs a proxy_fence and a barrier after
// the writes to shared memory.
__device__ __forceinline__ void tma_store(const TensorMap& map, const void* from, int32_t x,
                                          int32_t y) {
  asm volatile(
      "cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%2, %3}], [%1];" ::"l"(&map),
      "r"(shared_address(from)), "r"(x), "r"(y)
      : "memory");
}

__device__ __forceinline__ void tma_store(const TensorMap& map, const void* from, int32_t x,
                                          int32_t y, int32_t z) {
  asm volatile(
      "cp.async.bulk.tensor.3d.global.shared::cta.bulk_group [%0, {%2, %3, %4}], [%1];" ::"l"(&map),
      "r"(shared_address(from)), "r"(x), "r"(y), "r"(z)
      : "memory");
}

__device__ __forceinline__ void tma_store_commit() {
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}

// Until at most kPending of the thread's committed stores still read shared memory.
template <int kPending>
__device__ __forceinline__ void tma_store_wait_read() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(kPending) : "memory");
}

}  // namespace loza::cuda
