// The kernel behind gemm_wgmma.h. A cluster of two CTAs computes kRows x 256 values of `out`, each
// CTA 128 columns of them:
//   producer   one thread keeps a ring of kStages steps of 128 bytes of k full. The rows of x are
//              shared: each CTA loads every other block of 64 rows, into both. W is its own.
//   consumers  two warpgroups; warpgroup w multiplies the row blocks w, w + 2 and w + 4.
// Clusters take tiles from a counter in device memory, in the order that TileList gives them, until
// none is left. Which cluster computes a tile changes nothing in it.
//
// f8e4m3: the sum over 128 values of k comes from the tensor cores unscaled; both scales are applied
// when it is added to the total in fp32. While one warpgroup adds, the other's products run.
#pragma once

#include "cuda/barrier.cuh"
#include "cuda/gemm_wgmma_store.cuh"
#include "cuda/gemm_wgmma_tiles.cuh"
#include "cuda/tma.cuh"
#include "cuda/wgmma.cuh"

namespace loza::cuda::wgmma_gemm {

// ---- take a tile -------------------------------------------------------------------------------------

// The n-th tile of this cluster: the producer of CTA 0 takes a number from the counter and tells both
// CTAs which tile that is.
template <class T>
__device__ inline void take_tile(SharedStorage<T>& shared, const Params& params, TileList<T>& list,
                                 int n) {
  const int slot = n % 2;
  if (n >= 2) barrier_wait_cluster(&shared.tile_read[slot], (n / 2 + 1) % 2);
  const Tile tile = list[atomicAdd(params.counter, 1)];
  const int4 words = make_int4(tile.expert, tile.row, tile.rows, tile.column);
#pragma unroll
  for (uint32_t cta = 0; cta < T::kCtas; cta++) {
    store_remote(&shared.tile[slot], words, cta);
    barrier_arrive_remote(&shared.tile_known[slot], cta);
  }
}

// As this CTA sees it: its own columns.
template <class T>
__device__ inline Tile next_tile(SharedStorage<T>& shared, int n) {
  barrier_wait_cluster(&shared.tile_known[n % 2], n / 2 % 2);
  const volatile int4& words = shared.tile[n % 2];
  return {words.x, words.y, words.z, words.w + static_cast<int>(cluster_rank()) * T::kColumns};
}

// By the producer, and by one lane of a consumer's warp when all have read.
template <class T>
__device__ inline void tile_was_read(SharedStorage<T>& shared, int n) {
  barrier_signal_remote(&shared.tile_read[n % 2], 0);
}

// ---- load --------------------------------------------------------------------------------------------

// A place in the ring, and the parity of its current round.
template <class T>
struct Place {
  int stage = 0;
  uint32_t parity = 0;

  __device__ void advance() {
    if (++stage < T::kStages) return;
    stage = 0;
    parity ^= 1;
  }
};

// Calls `meanwhile` once, when the ring is full or the tile at its end.
template <class T, class Meanwhile>
__device__ inline void load_tile(SharedStorage<T>& shared, const TensorMap& x,
                                 const TensorMap& weight, const Tile& tile, int steps,
                                 Place<T>& place, const Meanwhile& meanwhile) {
  constexpr uint16_t kBoth = 3;
  const int rank = static_cast<int>(cluster_rank());
  const int blocks = tile.blocks(), pack = steps_of_stage<T>(blocks, steps);
  const int stages = steps / pack;
  for (int n = 0; n < stages; n++, place.advance()) {
    const int stage = place.stage;
    uint64_t* full = &shared.full[stage];
    barrier_wait(&shared.empty[stage], place.parity ^ 1);
    barrier_arrive_expect(full,
                          static_cast<uint32_t>(pack * (blocks * T::kBlockBytes + T::kPanelBytes)));
    for (int i = 0; i < pack; i++) {
      const int k = (n * pack + i) * T::kDepth;
      for (int block = (rank + i) % T::kCtas; block < blocks; block += T::kCtas)
        tma_load_multicast(x_of<T>(shared, stage, block, i), x, full, k,
                           tile.row + block * T::kBlock, kBoth);
      tma_load(weight_of<T>(shared, stage, i), weight, full, k, tile.column, tile.expert);
    }
    if (n == min(T::kStages, stages) - 1) meanwhile();
  }
}

template <class T>
__device__ inline void produce(SharedStorage<T>& shared, const TensorMap& x,
                               const TensorMap& weight, const Params& params) {
  const bool leader = cluster_rank() == 0;
  TileList<T> list(params);
  Place<T> place;
  if (leader) take_tile<T>(shared, params, list, 0);
  for (int n = 0;; n++) {
    const Tile tile = next_tile<T>(shared, n);
    tile_was_read<T>(shared, n);
    if (tile.rows == 0) return;
    load_tile<T>(shared, x, weight, tile, params.steps, place, [&] {
      if (leader) take_tile<T>(shared, params, list, n + 1);
    });
  }
}

// ---- compute -----------------------------------------------------------------------------------------

// The warp reads the stage no more: said to the producers of both CTAs.
template <class T>
__device__ inline void release(SharedStorage<T>& shared, int stage, const Consumer& self) {
  if (self.lane < T::kCtas)
    barrier_signal_remote(&shared.empty[stage], static_cast<uint32_t>(self.lane));
}

// bf16: sums stay in the tensor cores' registers from the first step to the last, and one step is
// always under way.
template <class T, int kActive, int kPack>
__device__ inline void multiply_bf16(SharedStorage<T>& shared, Sums<T>& sums, int steps,
                                     Place<T>& place, const Consumer& self) {
  int previous = 0;
  for (int step = 0; step < steps; step += kPack, place.advance()) {
    barrier_wait(&shared.full[place.stage], place.parity);
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < kPack; i++) {
      const uint64_t weight = wgmma_descriptor(weight_of<T>(shared, place.stage, i));
      const uint64_t x = wgmma_descriptor(x_of<T>(shared, place.stage, self.group, i));
#pragma unroll
      for (int k = 0; k < T::kInstructions; k++)
#pragma unroll
        for (int half = 0; half < kActive; half++)
          wgmma_bf16(sums[half], wgmma_advance(x, 2 * half * T::kBlockBytes + 32 * k),
                     wgmma_advance(weight, 32 * k), step > 0 || i > 0 || k > 0);
    }
    wgmma_commit();
    wgmma_wait<1>();
    if (step > 0) release<T>(shared, previous, self);
    previous = place.stage;
  }
  wgmma_wait<0>();
#pragma unroll
  for (int half = 0; half < kActive; half++) wgmma_pin(sums[half]);
  release<T>(shared, previous, self);
}

// The scales of one step: two rows a row block, one block of W.
template <class T>
struct Scales {
  float x[T::kHalves][2], weight;
};

template <class T>
struct ScaleSource {
  const float *x, *weight;  // of the tile's first row
  int x_stride;
  int rows[T::kHalves][2];

  __device__ ScaleSource(const Params& params, const Tile& tile, const Consumer& self)
      : x(params.x_scale + tile.row), x_stride(static_cast<int>(params.x_scale_stride)) {
#pragma unroll
    for (int half = 0; half < T::kHalves; half++)
#pragma unroll
      for (int i = 0; i < 2; i++) rows[half][i] = min(self.row(half) + 8 * i, tile.rows - 1);
    const int block = min(tile.column, params.n - 1) / T::kColumns;
    weight = params.weight_scale + tile.expert * params.weight_scale_expert_stride +
             block * params.weight_scale_stride;
  }

  // Then those of the next step.
  __device__ Scales<T> next() {
    Scales<T> scales;
#pragma unroll
    for (int half = 0; half < T::kHalves; half++)
#pragma unroll
      for (int i = 0; i < 2; i++) scales.x[half][i] = __ldg(x + rows[half][i]);
    scales.weight = __ldg(weight);
    x += x_stride;
    weight++;
    return scales;
  }
};

template <class T>
__device__ inline void add_scaled(float (&sums)[T::kSums], const float (&step)[T::kSums], float low,
                                  float high) {
#pragma unroll
  for (int i = 0; i < T::kSums; i += 4) {
    sums[i] += low * step[i];
    sums[i + 1] += low * step[i + 1];
    sums[i + 2] += high * step[i + 2];
    sums[i + 3] += high * step[i + 3];
  }
}

template <class T, int kActive, int kPack>
__device__ inline void multiply_f8(SharedStorage<T>& shared, Sums<T>& sums, int steps,
                                   Place<T>& place, const Consumer& self, ScaleSource<T> source) {
#pragma unroll
  for (int half = 0; half < kActive; half++)
#pragma unroll
    for (int i = 0; i < T::kSums; i++) sums[half][i] = 0;
  Scales<T> next = source.next();
  for (int step = 0; step < steps; step += kPack, place.advance()) {
    barrier_wait(&shared.full[place.stage], place.parity);
#pragma unroll
    for (int i = 0; i < kPack; i++) {
      const Scales<T> scales = next;
      if (step + i + 1 < steps) next = source.next();
      const uint64_t weight = wgmma_descriptor(weight_of<T>(shared, place.stage, i));
      const uint64_t x = wgmma_descriptor(x_of<T>(shared, place.stage, self.group, i));
#pragma unroll
      for (int half = 0; half < kActive; half++) {
        float partial[T::kSums];
        wgmma_fence();
#pragma unroll
        for (int k = 0; k < T::kInstructions; k++)
          wgmma_e4m3(partial, wgmma_advance(x, 2 * half * T::kBlockBytes + 32 * k),
                     wgmma_advance(weight, 32 * k), k > 0);
        wgmma_commit();
        wgmma_wait<0>();
        wgmma_pin(partial);
        if (half + 1 == kActive && i + 1 == kPack) release<T>(shared, place.stage, self);
        add_scaled<T>(sums[half], partial, scales.x[half][0] * scales.weight,
                      scales.x[half][1] * scales.weight);
      }
    }
  }
}

// A warpgroup without rows keeps the ring turning.
template <class T>
__device__ inline void skip(SharedStorage<T>& shared, int steps, int pack, Place<T>& place,
                            const Consumer& self) {
  for (int step = 0; step < steps; step += pack, place.advance()) {
    barrier_wait(&shared.full[place.stage], place.parity);
    release<T>(shared, place.stage, self);
  }
}

// ---- kernel ------------------------------------------------------------------------------------------

template <class T, int kActive, int kPack>
__device__ inline void compute_tile(SharedStorage<T>& shared, const Params& params,
                                    const Tile& tile, Place<T>& place, const Consumer& self) {
  Sums<T> sums;
  if constexpr (T::kIsF8)
    multiply_f8<T, kActive, kPack>(shared, sums, params.steps, place, self,
                                   ScaleSource<T>(params, tile, self));
  else
    multiply_bf16<T, kActive, kPack>(shared, sums, params.steps, place, self);
  store_tile<T, kActive>(params, tile, sums, self);
}

template <class T>
__device__ inline void consume(SharedStorage<T>& shared, const Params& params) {
  const Consumer self;
  Place<T> place;
  for (int n = 0;; n++) {
    const Tile tile = next_tile<T>(shared, n);
    __syncwarp();
    if (self.lane == 0) tile_was_read<T>(shared, n);
    if (tile.rows == 0) return;
    const int blocks = tile.blocks(), pack = steps_of_stage<T>(blocks, params.steps);
    const int active = (blocks - self.group + 1) / T::kConsumers;
    if (active == 0)
      skip<T>(shared, params.steps, pack, place, self);
    else if (pack == 2)
      compute_tile<T, 1, 2>(shared, params, tile, place, self);
    else if (active == 1)
      compute_tile<T, 1, 1>(shared, params, tile, place, self);
    else if (active == 2 && T::kHalves > 2)
      compute_tile<T, T::kHalves - 1, 1>(shared, params, tile, place, self);
    else
      compute_tile<T, T::kHalves, 1>(shared, params, tile, place, self);
  }
}

template <class T>
__device__ inline void initialise(SharedStorage<T>& shared) {
  constexpr uint32_t kWarps = 4 * T::kConsumers;
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < T::kStages; stage++) {
      barrier_init(&shared.full[stage], 1);
      barrier_init(&shared.empty[stage], kWarps * T::kCtas);
    }
    for (int slot = 0; slot < 2; slot++) {
      barrier_init(&shared.tile_known[slot], 1);
      barrier_init(&shared.tile_read[slot], (kWarps + 1) * T::kCtas);
    }
    barrier_init_fence();
  }
  cluster_arrive();
  cluster_wait();
}

// Grid: clusters, at most as many as run at once.
template <class T>
__global__ void __cluster_dims__(T::kCtas, 1, 1) __launch_bounds__(T::kThreads, 1)
    wgmma_kernel(const __grid_constant__ TensorMap x, const __grid_constant__ TensorMap weight,
                 const __grid_constant__ Params params) {
  extern __shared__ __align__(1024) unsigned char memory[];
  auto& shared = *reinterpret_cast<SharedStorage<T>*>(memory);
  initialise<T>(shared);
  if (threadIdx.x < 128) {
    release_registers<T::kProducerRegisters>();
    if (threadIdx.x == 0) produce<T>(shared, x, weight, params);
    __syncwarp();
  } else {
    claim_registers<T::kConsumerRegisters>();
    consume<T>(shared, params);
  }
  // A CTA's memory must outlive what the other still says to it.
  cluster_arrive();
  cluster_wait();
}

}  // namespace loza::cuda::wgmma_gemm
