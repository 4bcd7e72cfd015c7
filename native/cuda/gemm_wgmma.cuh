// The kernel behind gemm_wgmma.h. A cluster of two CTAs computes kRows x 256 values of `out`, each
// CTA 128 columns of them:
//   producer   one thread keeps a ring of kStages steps of 128 bytes of k full. The rows of x are
//              shared: each CTA loads every other block of 64 rows, into both. W is its own.
//   consumers  two warpgroups; warpgroup w multiplies the row blocks w and w + 2.
// Clusters take tiles from a counter in device memory, in the order that TileList gives them, until
// none is left. Which cluster computes a tile changes nothing in it.
//
// f8e4m3: the sum over 128 values of k comes from the tensor cores unscaled; both scales are applied
// when it is added to the total in fp32. While one warpgroup adds, the other's products run.
#pragma once

#include <cuda_bf16.h>

#include "cuda/barrier.cuh"
#include "cuda/tma.cuh"
#include "cuda/wgmma.cuh"

namespace loza::cuda::wgmma_gemm {

// ---- Traits ----------------------------------------------------------------------------------------

template <DType kType_, int kRowBlocks_, int kStages_, int kGroup_ = 8>
struct Traits {
  static constexpr DType kType = kType_;
  static constexpr bool kIsF8 = kType == DType::kF8E4M3;
  static constexpr int kBlock = 64;  // rows of a wgmma
  static constexpr int kRowBlocks = kRowBlocks_, kRows = kBlock * kRowBlocks;
  static constexpr int kColumns = 128, kStages = kStages_;
  static constexpr int kStepBytes = 128;  // of a row of x or W: what the swizzle covers
  static constexpr int kDepth = kIsF8 ? 128 : 64;
  static constexpr int kInstructions = 4;  // of 32 bytes of k each
  static constexpr int kConsumers = 2, kHalves = kRowBlocks / kConsumers;
  static constexpr int kThreads = 128 * (kConsumers + 1);
  static constexpr int kCtas = 2;         // of a cluster
  static constexpr int kGroup = kGroup_;  // row tiles that walk the columns together
  static constexpr int kProducerRegisters = 40, kConsumerRegisters = 232;
  static constexpr int kBlockBytes = kBlock * kStepBytes, kPanelBytes = kColumns * kStepBytes;
  static constexpr int kSums = kColumns / 2;  // registers of a row block
};

template <class T>
struct SharedStorage {
  alignas(1024) unsigned char x[T::kStages][T::kRowBlocks * T::kBlockBytes];
  alignas(1024) unsigned char weight[T::kStages][T::kPanelBytes];
  uint64_t full[T::kStages];   // both operands have landed
  uint64_t empty[T::kStages];  // nobody in the cluster reads them any more
  uint64_t tile_known[2], tile_read[2];
  int4 tile[2];
};

// Where the operands of a stage lie. A tile of one row block leaves room in it: in f8e4m3 (bf16 avoids
// such tiles) a stage is then two steps of k, because so small a step is computed faster than the next
// one comes.
template <class T>
__device__ inline int steps_of_stage(int blocks) {
  return T::kIsF8 && T::kRowBlocks >= 4 && blocks == 1 ? 2 : 1;
}
template <class T>
__device__ inline unsigned char* x_of(SharedStorage<T>& shared, int stage, int block, int i) {
  return shared.x[stage] + (block + i) * T::kBlockBytes;
}
template <class T>
__device__ inline unsigned char* weight_of(SharedStorage<T>& shared, int stage, int i) {
  return i == 0 ? shared.weight[stage] : shared.x[stage] + 2 * T::kBlockBytes;
}

struct Params {
  void* out;                  // bf16 | f32 [rows, n]
  const float* x_scale;       // f32 [steps, x_scale_stride]; f8e4m3 only
  const float* weight_scale;  // f32 [experts, ceil(n / 128), steps]; f8e4m3 only
  const int32_t* starts;      // i32 [experts + 1], or null
  int32_t* counter;           // i32 [1]
  int64_t out_stride, x_scale_stride, weight_scale_stride, weight_scale_expert_stride;
  int first, rows, n, experts, steps;
  bool out_is_f32, accumulate, vectors;  // vectors: out can be written 16 bytes at a time
};

// ---- Which tile is which -----------------------------------------------------------------------------

// What a cluster computes next.
struct Tile {
  int expert, row, rows, column;  // rows that exist, 0 past the last tile; columns of the first CTA
};

// Numbers the tiles: experts one after the other; in an expert groups of kGroup row tiles, which walk
// the columns together, so that what runs at the same time shares both operands. Asked for growing
// numbers, it walks the experts once.
template <class T>
class TileList {
 public:
  __device__ explicit TileList(const Params& params)
      : params_(params),
        pairs_((params.n + T::kCtas * T::kColumns - 1) / (T::kCtas * T::kColumns)) {
    enter(0);
  }

  __device__ Tile operator[](int index) {
    while (index - first_ >= tiles_ * pairs_) {
      if (expert_ + 1 >= params_.experts) return {};
      first_ += tiles_ * pairs_;
      enter(expert_ + 1);
    }
    const int within = index - first_, group = within / (T::kGroup * pairs_);
    const int item = within - group * T::kGroup * pairs_;
    const int height = min(T::kGroup, tiles_ - group * T::kGroup);
    return row_tile(group * T::kGroup + item % height, item / height * T::kCtas * T::kColumns);
  }

 private:
  __device__ void enter(int expert) {
    expert_ = expert;
    begin_ = params_.starts ? row_of(__ldg(params_.starts + expert)) : 0;
    rows_ = (params_.starts ? row_of(__ldg(params_.starts + expert + 1)) : params_.rows) - begin_;
    tiles_ = (rows_ + T::kRows - 1) / T::kRows;
  }
  __device__ int row_of(int start) const {
    return min(max(start - params_.first, 0), params_.rows);
  }

  // bf16: an expert's row blocks are divided evenly, because a tile of few blocks waits for W longer
  // than it computes. f8e4m3: all but the last are full, because the busier warpgroup counts.
  __device__ Tile row_tile(int number, int column) const {
    int first = number * T::kRows, rows = T::kRows;
    if constexpr (!T::kIsF8) {
      const int blocks = (rows_ + T::kBlock - 1) / T::kBlock;
      const int least = blocks / tiles_, taller = blocks - least * tiles_;
      first = (number * least + min(number, taller)) * T::kBlock;
      rows = (least + (number < taller)) * T::kBlock;
    }
    return {expert_, begin_ + first, min(rows, rows_ - first), column};
  }

  const Params& params_;
  const int pairs_;
  int expert_ = 0, begin_ = 0, rows_ = 0, tiles_ = 0;
  int first_ = 0;  // number of the expert's first tile
};

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
  const int blocks = (tile.rows + T::kBlock - 1) / T::kBlock, pack = steps_of_stage<T>(blocks);
  const int stages = (steps + pack - 1) / pack;
  for (int n = 0; n < stages; n++, place.advance()) {
    const int stage = place.stage, count = min(pack, steps - n * pack);
    uint64_t* full = &shared.full[stage];
    barrier_wait(&shared.empty[stage], place.parity ^ 1);
    barrier_arrive_expect(
        full, static_cast<uint32_t>(count * (blocks * T::kBlockBytes + T::kPanelBytes)));
    for (int i = 0; i < count; i++) {
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

template <class T>
using Sums = float[T::kHalves][T::kSums];

// What a consumer warp knows of itself.
struct Consumer {
  int group, warp, lane;  // warpgroup, warp of it, lane

  __device__ Consumer()
      : group(static_cast<int>(threadIdx.x) / 128 - 1),
        warp(static_cast<int>(threadIdx.x) / 32 % 4),
        lane(static_cast<int>(threadIdx.x) % 32) {}
  // The first of the thread's two rows (the other is 8 further) in one of its row blocks.
  __device__ int row(int half) const { return (group + 2 * half) * 64 + warp * 16 + lane / 4; }
};

// The warp reads the stage no more: said to the producers of both CTAs.
template <class T>
__device__ inline void release(SharedStorage<T>& shared, int stage, const Consumer& self) {
  if (self.lane < T::kCtas)
    barrier_signal_remote(&shared.empty[stage], static_cast<uint32_t>(self.lane));
}

// bf16: sums stay in the tensor cores' registers from the first step to the last, and one step is
// always under way.
template <class T, int kActive>
__device__ inline void multiply_bf16(SharedStorage<T>& shared, Sums<T>& sums, int steps,
                                     Place<T>& place, const Consumer& self) {
  int previous = 0;
  for (int step = 0; step < steps; step++, place.advance()) {
    barrier_wait(&shared.full[place.stage], place.parity);
    const uint64_t weight = wgmma_descriptor(weight_of<T>(shared, place.stage, 0));
    const uint64_t x = wgmma_descriptor(x_of<T>(shared, place.stage, self.group, 0));
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < T::kInstructions; k++)
#pragma unroll
      for (int half = 0; half < kActive; half++)
        wgmma_bf16(sums[half], wgmma_advance(x, 2 * half * T::kBlockBytes + 32 * k),
                   wgmma_advance(weight, 32 * k), step > 0 || k > 0);
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

template <class T, int kActive>
__device__ inline void multiply_f8(SharedStorage<T>& shared, Sums<T>& sums, int steps, int pack,
                                   Place<T>& place, const Consumer& self, ScaleSource<T> source) {
#pragma unroll
  for (int half = 0; half < kActive; half++)
#pragma unroll
    for (int i = 0; i < T::kSums; i++) sums[half][i] = 0;
  Scales<T> next = source.next();
  for (int step = 0; step < steps; step += pack, place.advance()) {
    barrier_wait(&shared.full[place.stage], place.parity);
    for (int i = 0; i < pack && step + i < steps; i++) {
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
        const bool last = half + 1 == kActive && (i + 1 == pack || step + i + 1 == steps);
        if (last) release<T>(shared, place.stage, self);
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

// ---- store -------------------------------------------------------------------------------------------

__device__ inline uint32_t pack(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}

// Four lanes hold four words each; lane j of them receives word j of all, in the order of lanes.
__device__ inline uint4 transpose_quad(const uint32_t (&words)[4]) {
  constexpr uint32_t kAll = 0xffffffffu;
  const bool odd = threadIdx.x & 1, upper = threadIdx.x & 2;
  const uint32_t low = __shfl_xor_sync(kAll, odd ? words[0] : words[1], 1);
  const uint32_t high = __shfl_xor_sync(kAll, odd ? words[2] : words[3], 1);
  const uint2 first = odd ? make_uint2(low, words[1]) : make_uint2(words[0], low);
  const uint2 second = odd ? make_uint2(high, words[3]) : make_uint2(words[2], high);
  const uint32_t x = __shfl_xor_sync(kAll, upper ? first.x : second.x, 2);
  const uint32_t y = __shfl_xor_sync(kAll, upper ? first.y : second.y, 2);
  return upper ? make_uint4(x, y, second.x, second.y) : make_uint4(first.x, first.y, x, y);
}

// One of the thread's rows, as vectors of eight bf16: `sums` from the row's first register on.
template <class T>
__device__ inline void store_vectors(const Params& params, const float* sums, int64_t row,
                                     bool exists, int column, int lane) {
  __nv_bfloat16* out = static_cast<__nv_bfloat16*>(params.out) + row * params.out_stride;
#pragma unroll
  for (int i = 0; i < T::kSums; i += 16) {
    const uint32_t words[4] = {pack(sums[i], sums[i + 1]), pack(sums[i + 4], sums[i + 5]),
                               pack(sums[i + 8], sums[i + 9]), pack(sums[i + 12], sums[i + 13])};
    const uint4 vector = transpose_quad(words);
    const int at = column + 2 * i + lane % 4 * 8;
    if (exists && at < params.n) *reinterpret_cast<uint4*>(out + at) = vector;
  }
}

template <class Out>
__device__ inline void store_value(Out* to, float value, bool accumulate) {
  if (accumulate) value += static_cast<float>(*to);
  *to = static_cast<Out>(value);
}

// The same, value by value.
template <class T, class Out>
__device__ inline void store_values(const Params& params, const float* sums, int64_t row,
                                    int column, int lane) {
  Out* out = static_cast<Out*>(params.out) + row * params.out_stride;
#pragma unroll
  for (int i = 0; i < T::kSums; i += 4) {
    const int at = column + 2 * i + lane % 4 * 2;
    if (at < params.n) store_value(out + at, sums[i], params.accumulate);
    if (at + 1 < params.n) store_value(out + at + 1, sums[i + 1], params.accumulate);
  }
}

// Adds in memory, where nobody else adds: one rounding, as if it were loaded, added and stored.
__device__ inline void add_pair(float* to, float low, float high) {
  asm volatile("red.global.add.v2.f32 [%0], {%1, %2};" ::"l"(__cvta_generic_to_global(to)),
               "f"(low), "f"(high)
               : "memory");
}

// f32 in pairs: the four lanes of a row fill a sector.
template <class T>
__device__ inline void store_pairs(const Params& params, const float* sums, int64_t row, int column,
                                   int lane) {
  float* out = static_cast<float*>(params.out) + row * params.out_stride + column + lane % 4 * 2;
#pragma unroll
  for (int i = 0; i < T::kSums / 4; i++) {
    if (column + 8 * i >= params.n) break;
    if (params.accumulate)
      add_pair(out + 8 * i, sums[4 * i], sums[4 * i + 1]);
    else
      *reinterpret_cast<float2*>(out + 8 * i) = make_float2(sums[4 * i], sums[4 * i + 1]);
  }
}

template <class T, int kActive>
__device__ inline void store_tile(const Params& params, const Tile& tile, const Sums<T>& sums,
                                  const Consumer& self) {
#pragma unroll
  for (int half = 0; half < kActive; half++) {
#pragma unroll
    for (int i = 0; i < 2; i++) {
      const int within = self.row(half) + 8 * i;
      const int64_t row = tile.row + within;
      const bool exists = within < tile.rows;
      const float* values = sums[half] + 2 * i;
      if (params.vectors && !params.out_is_f32)
        store_vectors<T>(params, values, row, exists, tile.column, self.lane);
      else if (exists && params.vectors)
        store_pairs<T>(params, values, row, tile.column, self.lane);
      else if (exists && params.out_is_f32)
        store_values<T, float>(params, values, row, tile.column, self.lane);
      else if (exists)
        store_values<T, __nv_bfloat16>(params, values, row, tile.column, self.lane);
    }
  }
}

// ---- kernel ------------------------------------------------------------------------------------------

template <class T, int kActive>
__device__ inline void compute_tile(SharedStorage<T>& shared, const Params& params,
                                    const Tile& tile, int pack, Place<T>& place,
                                    const Consumer& self) {
  Sums<T> sums;
  if constexpr (T::kIsF8)
    multiply_f8<T, kActive>(shared, sums, params.steps, pack, place, self,
                            ScaleSource<T>(params, tile, self));
  else
    multiply_bf16<T, kActive>(shared, sums, params.steps, place, self);
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
    const int blocks = (tile.rows + T::kBlock - 1) / T::kBlock, pack = steps_of_stage<T>(blocks);
    const int active = (blocks - self.group + 1) / T::kConsumers;
    if (active == 0)
      skip<T>(shared, params.steps, pack, place, self);
    else if (active == 1)
      compute_tile<T, 1>(shared, params, tile, pack, place, self);
    else if (T::kHalves == 2 || active == 2)
      compute_tile < T, T::kHalves<2 ? T::kHalves : 2>(shared, params, tile, 1, place, self);
    else
      compute_tile<T, T::kHalves>(shared, params, tile, 1, place, self);
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
