// Sums, maxima and prefix sums over a warp and over a block of whole warps. The order of additions
// is fixed, so that results repeat. Every thread of the warp or block must take part.
#pragma once

#include <cstdint>

namespace loza::cuda {

inline constexpr unsigned kFullWarp = 0xffffffffu;
inline constexpr int kWarpSize = 32;
inline constexpr int kMaxWarps = 32;  // of a block

template <class T>
__device__ __forceinline__ T warp_sum(T value) {
#pragma unroll
  for (int step = kWarpSize / 2; step > 0; step /= 2)
    value += __shfl_xor_sync(kFullWarp, value, step);
  return value;
}

// No value may be NaN.
template <class T>
__device__ __forceinline__ T warp_max(T value) {
#pragma unroll
  for (int step = kWarpSize / 2; step > 0; step /= 2) {
    const T other = __shfl_xor_sync(kFullWarp, value, step);
    value = value >= other ? value : other;
  }
  return value;
}

// Prefix sum that includes the lane's own value.
template <class T>
__device__ __forceinline__ T warp_inclusive_sum(T value) {
  const int lane = threadIdx.x % kWarpSize;
#pragma unroll
  for (int step = 1; step < kWarpSize; step *= 2) {
    const T lower = __shfl_up_sync(kFullWarp, value, step);
    if (lane >= step) value += lower;
  }
  return value;
}

// Blocks are one-dimensional here; `shared` holds kMaxWarps values and is free again on return.
template <class T>
__device__ __forceinline__ T block_sum(T value, T* shared) {
  const int lane = threadIdx.x % kWarpSize, warps = blockDim.x / kWarpSize;
  value = warp_sum(value);
  if (lane == 0) shared[threadIdx.x / kWarpSize] = value;
  __syncthreads();
  value = warp_sum(lane < warps ? shared[lane] : T{});
  __syncthreads();
  return value;
}

template <class T>
__device__ __forceinline__ T block_max(T value, T* shared) {
  const int lane = threadIdx.x % kWarpSize, warps = blockDim.x / kWarpSize;
  value = warp_max(value);
  if (lane == 0) shared[threadIdx.x / kWarpSize] = value;
  __syncthreads();
  value = warp_max(shared[lane < warps ? lane : 0]);
  __syncthreads();
  return value;
}

template <class T>
struct Prefix {
  T before;  // the sum of lower threads
  T total;
};

template <class T>
__device__ __forceinline__ Prefix<T> block_prefix(T value, T* shared) {
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  const int warps = blockDim.x / kWarpSize;
  const T inclusive = warp_inclusive_sum(value);
  if (lane == kWarpSize - 1) shared[warp] = inclusive;
  __syncthreads();
  const T of_warp = lane < warps ? shared[lane] : T{};
  const T up_to_warp = warp_inclusive_sum(of_warp);
  const T before_warp = __shfl_sync(kFullWarp, up_to_warp - of_warp, warp);
  const T total = __shfl_sync(kFullWarp, up_to_warp, kWarpSize - 1);
  __syncthreads();
  return {before_warp + inclusive - value, total};
}

}  // namespace loza::cuda
