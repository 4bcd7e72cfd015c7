// A row of logits in the shared memory of a cluster of CTAs, a slice of consecutive ids in each, and
// the sums and searches over it. All of it is integer arithmetic: nothing depends on an order.
#pragma once

#include <cstdint>

#include "cuda/barrier.cuh"
#include "cuda/reduce.cuh"
#include "cuda/types.cuh"

namespace loza::cuda {

inline constexpr int kSampleThreads = 512;
inline constexpr int kSampleWarps = kSampleThreads / kWarpSize;
inline constexpr int kMaxCluster = 8;
inline constexpr int kBins = 2048;
inline constexpr int kMaxAlternatives = 256;

struct SampleShared {
  // The two halves of each bin's mass in this slice.
  alignas(16) uint32_t bins_low[kBins], bins_high[kBins];
  uint64_t sums[kMaxWarps];
  uint64_t published[2][3];  // for the other CTAs of the cluster
  uint64_t bin_before, bin_mass;
  int32_t bin;
  int32_t found;
  uint64_t kept[kMaxAlternatives];
  int32_t kept_count;
};

// Unsigned integers in the reverse order of the floats, so that the most likely token has the lowest
// rank. -0 counts as 0.
__device__ __forceinline__ uint32_t rank_of(float logit) {
  const uint32_t bits = logit == 0 ? 0u : __float_as_uint(logit);
  return bits & 0x80000000u ? bits : ~bits & 0x7fffffffu;
}

__device__ __forceinline__ float logit_of_rank(uint32_t rank) {
  return __uint_as_float(rank & 0x80000000u ? rank : ~rank & 0x7fffffffu);
}

// Sorts tokens by logit, ties to the lower id.
__device__ __forceinline__ uint64_t sort_key(float logit, int32_t id) {
  return static_cast<uint64_t>(rank_of(logit)) << 32 | static_cast<uint32_t>(id);
}

__device__ __forceinline__ void cluster_sync() {
  cluster_arrive();
  cluster_wait();
}

// The CTAs of a row. Every thread of all of them calls the same methods in the same order.
class RowCluster {
 public:
  __device__ RowCluster(SampleShared& shared, int size)
      : shared_(shared), size_(size), rank_(static_cast<int>(cluster_rank())) {}

  __device__ __forceinline__ int rank() const { return rank_; }

  // The same object in the shared memory of another CTA.
  template <class T>
  __device__ __forceinline__ T& in(T& object, int rank) const {
    return *static_cast<T*>(__cluster_map_shared_rank(const_cast<std::remove_const_t<T>*>(&object),
                                                      static_cast<unsigned>(rank)));
  }

  // Shows every CTA the values of each. What it returns is this CTA's; those of the others are
  // in(values[i], rank), until the next exchange.
  template <int kCount>
  __device__ __forceinline__ uint64_t* exchange(const uint64_t (&values)[kCount]) {
    // Two buffers: nobody writes one again before all have come back from the next exchange's
    // barrier, and so have read it.
    uint64_t* own = shared_.published[parity_];
    parity_ ^= 1;
    if (threadIdx.x == 0)
      for (int i = 0; i < kCount; i++) own[i] = values[i];
    sync();
    return own;
  }

  // The sum over the cluster of what is the same in all threads of a CTA.
  __device__ __forceinline__ uint64_t sum(uint64_t value) {
    const uint64_t* own = exchange({value});
    uint64_t total = 0;
#pragma unroll 1
    for (int rank = 0; rank < size_; rank++) total += in(own[0], rank);
    return total;
  }

  __device__ __forceinline__ void sync() const {
    if (size_ > 1)
      cluster_sync();
    else
      __syncthreads();
  }

  __device__ __forceinline__ int size() const { return size_; }

 private:
  SampleShared& shared_;
  int size_, rank_;
  int parity_ = 0;
};

// This CTA's slice: ids begin to begin + count.
struct Slice {
  float* logits;  // shared [count]
  int32_t begin, count, vocab;

  __device__ __forceinline__ int32_t vectors() const { return (count + 3) / 4; }

  // body(id of the first, four logits); those past the end are -inf.
  template <class Body>
  __device__ __forceinline__ void for_each_vector(const Body& body) const {
#pragma unroll 4
    for (int32_t i = threadIdx.x; i < vectors(); i += kSampleThreads)
      body(begin + 4 * i, reinterpret_cast<const float4*>(logits)[i]);
  }

  // body(id, logit), dealt out to the threads of the CTA.
  template <class Body>
  __device__ __forceinline__ void for_each(const Body& body) const {
#pragma unroll 2
    for (int32_t i = threadIdx.x; i < count; i += kSampleThreads) body(begin + i, logits[i]);
  }
};

// The first token of the slice at which the running mass exceeds `target`, which the slice's mass
// does. mass(id, logit): u64. Every thread of the CTA gets it.
template <class Mass>
__device__ int32_t first_beyond_in(const Slice& slice, SampleShared& shared, const Mass& mass,
                                   uint64_t target) {
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  const auto mass_at = [&](int32_t i) { return mass(slice.begin + i, slice.logits[i]); };
  int32_t begin = 0, end = slice.count;
  while (true) {
    const auto piece =
        static_cast<int32_t>(ceil_div(ceil_div(end - begin, kSampleWarps), kWarpSize) * kWarpSize);
    const int32_t to = min(begin + (warp + 1) * piece, end);
    uint64_t sum = 0;
#pragma unroll 4
    for (int32_t i = begin + warp * piece + lane; i < to; i += kWarpSize) sum += mass_at(i);
    sum = warp_sum(sum);
    if (lane == 0) shared.sums[warp] = sum;
    __syncthreads();
    int chosen = 0;
    while (chosen + 1 < kSampleWarps && shared.sums[chosen] <= target)
      target -= shared.sums[chosen++];
    __syncthreads();
    begin = min(begin + chosen * piece, slice.count - 1);
    end = min(begin + piece, end);
    if (piece == kWarpSize) break;
  }
  // At most 32 tokens are left; every warp looks at them, which needs no more barriers.
  const int32_t i = begin + lane;
  const uint64_t running = warp_inclusive_sum(i < end ? mass_at(i) : uint64_t{0});
  const unsigned beyond = __ballot_sync(kFullWarp, running > target);
  return slice.begin + (beyond == 0 ? begin : begin + __ffs(beyond) - 1);
}

// The first id of the row at which the running mass exceeds target_of(total mass), which must be
// below the total. Every thread of the cluster gets it.
template <class Mass, class Target>
__device__ int32_t first_beyond(const Slice& slice, RowCluster& cluster, SampleShared& shared,
                                const Mass& mass, const Target& target_of) {
  uint64_t own = 0;
  slice.for_each([&](int32_t id, float logit) { own += mass(id, logit); });
  own = block_sum(own, shared.sums);
  const uint64_t* masses = cluster.exchange({own});
  uint64_t total = 0;
#pragma unroll 1
  for (int rank = 0; rank < cluster.size(); rank++) total += cluster.in(masses[0], rank);
  uint64_t target = target_of(total);
  int chosen = 0;
#pragma unroll 1
  for (; chosen + 1 < cluster.size(); chosen++) {
    const uint64_t mass_of_slice = cluster.in(masses[0], chosen);
    if (mass_of_slice > target) break;
    target -= mass_of_slice;
  }
  uint64_t found = 0;
  if (cluster.rank() == chosen)
    found = static_cast<uint64_t>(first_beyond_in(slice, shared, mass, target));
  return static_cast<int32_t>(cluster.sum(found));
}

__device__ __forceinline__ void add_to_bin(SampleShared& shared, int32_t bin, uint64_t mass) {
  const auto low = static_cast<uint32_t>(mass);
  auto high = static_cast<uint32_t>(mass >> 32);
  const uint32_t before = atomicAdd(&shared.bins_low[bin], low);
  high += before + low < before;  // the carry
  if (high != 0) atomicAdd(&shared.bins_high[bin], high);
}

// Finds the bin of the row's histogram in which the running mass reaches target_of(total), into
// shared.bin, with the mass before it and its own. Every CTA adds up all histograms.
template <class Target>
__device__ void find_bin(SampleShared& shared, const RowCluster& cluster, const Target& target_of) {
  constexpr int kPerThread = kBins / kSampleThreads;
  uint64_t masses[kPerThread] = {}, sum = 0;
#pragma unroll 1
  for (int rank = 0; rank < cluster.size(); rank++) {
    const auto* low = &cluster.in(shared.bins_low[threadIdx.x * kPerThread], rank);
    const auto* high = &cluster.in(shared.bins_high[threadIdx.x * kPerThread], rank);
    uint4 lows[kPerThread / 4], highs[kPerThread / 4];
#pragma unroll
    for (int i = 0; i < kPerThread / 4; i++) {
      lows[i] = reinterpret_cast<const uint4*>(low)[i];
      highs[i] = reinterpret_cast<const uint4*>(high)[i];
    }
#pragma unroll
    for (int i = 0; i < kPerThread / 4; i++) {
      masses[4 * i] += static_cast<uint64_t>(highs[i].x) << 32 | lows[i].x;
      masses[4 * i + 1] += static_cast<uint64_t>(highs[i].y) << 32 | lows[i].y;
      masses[4 * i + 2] += static_cast<uint64_t>(highs[i].z) << 32 | lows[i].z;
      masses[4 * i + 3] += static_cast<uint64_t>(highs[i].w) << 32 | lows[i].w;
    }
  }
#pragma unroll
  for (int i = 0; i < kPerThread; i++) sum += masses[i];
  auto [before, total] = block_prefix(sum, shared.sums);
  const uint64_t target = target_of(total);
#pragma unroll
  for (int i = 0; i < kPerThread; i++) {
    if (before < target && target <= before + masses[i]) {
      shared.bin = threadIdx.x * kPerThread + i;
      shared.bin_before = before;
      shared.bin_mass = masses[i];
    }
    before += masses[i];
  }
  cluster.sync();  // the bin is known, and nobody reads the histograms any more
}

}  // namespace loza::cuda
