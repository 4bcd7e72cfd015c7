// Products of few rows with large matrices, limited by reading the matrices once:
//   out[rows, n] = x[rows, k] W[n, k]^T, or out += ..., for one matrix or for the experts that have
// rows. W is bf16 and x bf16, or W is f8e4m3 with a scale a block of 128 x 128 and x f8e4m3 with a
// scale a row and 128 values of k.
//
// Operands are swapped: W's rows are the side of 64 of wgmma, x's rows the other (8 to 64). A unit of
// work is kTile rows of W, shared along k by the CTAs of a cluster (`split`), each of which streams
// its share through a ring of stages: one warp starts the bulk copies, the others multiply. At the
// end each CTA sends its sums to the CTAs that own them, which add them in the order of k. Without a
// split the grid is persistent: CTA c takes units c, c + CTAs, ..., and loads run ahead into the next
// unit.
//
// Sums depend on n, k and the row alone: neither on the other rows nor on how many there are.
#pragma once

#include <algorithm>

#include "cuda/barrier.cuh"
#include "cuda/gemm_tile.cuh"
#include "cuda/reduce.cuh"
#include "cuda/tma.cuh"
#include "cuda/types.cuh"
#include "cuda/wgmma.cuh"

namespace loza::cuda {

// ---- Traits --------------------------------------------------------------------------------------

template <class Weight_, int kRows_, int kTile_>
struct StreamTraits {
  using Weight = Weight_;
  static constexpr bool kQuantised = std::is_same_v<Weight, F8>;
  static constexpr int kRows = kRows_;  // of x, at most
  static constexpr int kTile = kTile_;  // rows of W of a CTA
  // Pieces of 128 bytes of each row, a stage: few and large stages, where two of them fit.
  static constexpr int kBoxes = kRows * kTile <= 2048 ? 2 : 1;
  static constexpr int kDepth = 128 / static_cast<int>(sizeof(Weight));  // values of k a box
  static constexpr int kWarps = kTile / 16, kConsumers = 32 * kWarps;
  static constexpr int kThreads = kConsumers + 32;
  static constexpr int kWeightBytes = kTile * 128, kXBytes = kRows * 128;  // of a box
  static constexpr int kStageBytes = kBoxes * (kWeightBytes + kXBytes);
  static constexpr int kSums = kRows / 2;    // a thread
  static constexpr int kChunks = kRows / 8;  // of four sums
  static constexpr int kPartialBytes = 512 * kRows;
};

// The CTAs of a cluster share k in pieces of so many boxes, whatever a stage holds.
inline constexpr int kShareBoxes = 2;

inline constexpr int kMostStages = 16;

// What lies in shared memory before the stages (each: weights, then x) and the partial sums.
template <class T>
struct alignas(1024) StreamStorage {
  uint64_t full[kMostStages], empty[kMostStages];
  uint64_t partials;  // those that come to this CTA
  alignas(8) float x_scales[T::kQuantised ? kMostStages : 1][T::kBoxes][T::kRows];
};

struct StreamParams {
  void* out;                  // bf16 | f32 [rows, n]
  const float* weight_scale;  // f32 [experts, ceil(n / 128), ceil(k / 128)]; f8e4m3 only
  const float* x_scale;       // f32 [rows of x, ceil(k / 128)], by strides; f8e4m3 only
  const int32_t* starts;      // [experts + 1], or null: one matrix, all rows
  const int32_t* order;       // [slots], or null: rows of x as they lie
  int64_t out_stride, weight_scale_stride, weight_scale_expert_stride;
  int64_t x_scale_row_stride, x_scale_block_stride;
  int rows, n, experts, top_k;
  int boxes;  // pieces of 128 bytes of k
  int split, stages;
  bool out_is_f32, accumulate;
};

// Rows `first` to `first + count` of out (count 0: no such unit), tile `column` of the expert's W.
struct StreamUnit {
  int expert, column, first, count;
};

template <class T>
struct StreamTask {
  const TensorMap& weight;  // [experts, n, k], boxes of kTile x 128 bytes
  const TensorMap& x;       // [rows, k], boxes of kRows x 128 bytes, or of one row where gathered
  const StreamParams& params;
  unsigned char* memory;

  __device__ StreamStorage<T>& storage() const {
    return *reinterpret_cast<StreamStorage<T>*>(memory);
  }
  __device__ unsigned char* stage(int slot) const {
    return memory + sizeof(StreamStorage<T>) + slot * T::kStageBytes;
  }
  __device__ unsigned char* partials() const { return stage(params.stages); }
  // Two rows of x each.
  __device__ const float2* x_scales(int slot, int box) const {
    return reinterpret_cast<const float2*>(storage().x_scales[slot][box]);
  }
  __device__ int rank() const { return static_cast<int>(blockIdx.x) % params.split; }
  __device__ int first_unit() const { return static_cast<int>(blockIdx.x) / params.split; }
  __device__ int clusters() const { return static_cast<int>(gridDim.x) / params.split; }
  // The stages' worth of k of this CTA: from first_step() to before last_step().
  __device__ int first_step() const { return first_box(rank()) / T::kBoxes; }
  __device__ int last_step() const {
    return (min(first_box(rank() + 1), params.boxes) + T::kBoxes - 1) / T::kBoxes;
  }
  __device__ int first_box(int rank) const {
    const int shares = (params.boxes + kShareBoxes - 1) / kShareBoxes;
    return rank * shares / params.split * kShareBoxes;
  }
};

// A place in the ring of stages.
struct RingPlace {
  int slot = 0;
  uint32_t parity = 0;

  __device__ void advance(int stages) {
    if (++slot < stages) return;
    slot = 0;
    parity ^= 1;
  }
};

// ---- schedule ------------------------------------------------------------------------------------

// How far a warp has come in the list of units: it only goes forward.
struct StreamWalk {
  int expert = 0;  // a multiple of 32
  int before = 0;  // units of the experts before it
};

// Unit `index`: experts ascending, then tiles of W, then tiles of the expert's rows, so that what
// reads the same weights does it at the same time. All lanes of a warp; no index is below an earlier
// one.
template <class T>
__device__ inline StreamUnit find_unit(const StreamParams& params, StreamWalk& walk, int index) {
  const int columns = (params.n + T::kTile - 1) / T::kTile;
  if (params.starts == nullptr) return {0, index, 0, index < columns ? params.rows : 0};
  const int lane = static_cast<int>(threadIdx.x) % 32;
  for (; walk.expert < params.experts; walk.expert += 32) {
    const int expert = walk.expert + lane;
    const int begin = expert < params.experts ? params.starts[expert] : 0;
    const int end = expert < params.experts ? params.starts[expert + 1] : 0;
    const int tiles = (end - begin + T::kRows - 1) / T::kRows;
    const int upto = walk.before + warp_inclusive_sum(tiles * columns);
    const uint32_t later = __ballot_sync(kFullWarp, index < upto);
    if (later != 0) {
      const int owner = __ffs(static_cast<int>(later)) - 1;
      const int own_tiles = __shfl_sync(kFullWarp, tiles, owner);
      const int local = index - __shfl_sync(kFullWarp, upto, owner) + own_tiles * columns;
      const int first = __shfl_sync(kFullWarp, begin, owner) + local % own_tiles * T::kRows;
      const int count = min(T::kRows, __shfl_sync(kFullWarp, end, owner) - first);
      return {walk.expert + owner, local / own_tiles, first, count};
    }
    walk.before = __shfl_sync(kFullWarp, upto, 31);
  }
  return {0, 0, 0, 0};
}

// The row of x behind a row of the unit; past the unit's end, its last one.
__device__ inline int source_row(const StreamParams& params, const StreamUnit& unit, int row) {
  const int slot = unit.first + min(row, unit.count - 1);
  return params.order ? params.order[slot] / params.top_k : slot;
}

// ---- load ----------------------------------------------------------------------------------------

template <class T>
__device__ inline void load_weights(const StreamTask<T>& task, const StreamUnit& unit, int step,
                                    int slot) {
  uint64_t* full = &task.storage().full[slot];
  const int rows = task.params.order ? unit.count : T::kRows;
  barrier_arrive_expect(full, static_cast<uint32_t>(T::kBoxes * (T::kWeightBytes + rows * 128)));
#pragma unroll
  for (int box = 0; box < T::kBoxes; box++)
    tma_load(task.stage(slot) + box * T::kWeightBytes, task.weight, full,
             (step * T::kBoxes + box) * T::kDepth, unit.column * T::kTile, unit.expert,
             kEvictFirst);
}

// Each lane those of its rows.
template <class T>
__device__ inline void load_scales(const StreamTask<T>& task, const int (&sources)[2], int step,
                                   int slot) {
  const StreamParams& params = task.params;
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int box = 0; box < T::kBoxes; box++) {
    const int block = min(step * T::kBoxes + box, params.boxes - 1);
#pragma unroll
    for (int i = 0; i < (T::kRows + 31) / 32; i++)
      if (lane + 32 * i < T::kRows)
        cp_async_4(&task.storage().x_scales[slot][box][lane + 32 * i],
                   params.x_scale + sources[i] * params.x_scale_row_stride +
                       block * params.x_scale_block_stride);
  }
  barrier_arrive_after_copies(&task.storage().full[slot]);
}

// Rows that are gathered come one by one: where a row of 128 bytes lies decides how it is swizzled,
// so that together they look like one box.
template <class T>
__device__ inline void load_x(const StreamTask<T>& task, const StreamUnit& unit,
                              const int (&sources)[2], int step, int slot) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  uint64_t* full = &task.storage().full[slot];
  unsigned char* to = task.stage(slot) + T::kBoxes * T::kWeightBytes;
#pragma unroll
  for (int box = 0; box < T::kBoxes; box++, to += T::kXBytes) {
    const int k = (step * T::kBoxes + box) * T::kDepth;
    if (task.params.order == nullptr) {
      if (lane == 0) tma_load(to, task.x, full, k, unit.first, kEvictLast);
    } else {
#pragma unroll
      for (int i = 0; i < (T::kRows + 31) / 32; i++) {
        const int row = lane + 32 * i;
        if (row < unit.count) tma_load(to + row * 128, task.x, full, k, sources[i], kEvictLast);
      }
    }
  }
  if constexpr (T::kQuantised) load_scales(task, sources, step, slot);
}

// The first weights of a single matrix are known, and loaded, before the kernels before this one have
// ended. Returns how many stages that fills.
template <class T>
__device__ inline int load_early(const StreamTask<T>& task) {
  if (task.params.starts != nullptr) return 0;
  StreamWalk walk;
  const StreamUnit unit = find_unit<T>(task.params, walk, task.first_unit());
  if (unit.count == 0) return 0;
  const int first = task.first_step();
  const int count = min(task.params.stages, task.last_step() - first);
  if (threadIdx.x % 32 == 0)
    for (int i = 0; i < count; i++) load_weights(task, unit, first + i, i);
  return count;
}

template <class T>
__device__ inline void produce(const StreamTask<T>& task) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  int early = load_early(task);
  if (task.params.split > 1) cluster_wait();
  wait_for_prerequisites();
  RingPlace place;
  StreamWalk walk;
  for (int index = task.first_unit();; index += task.clusters()) {
    const StreamUnit unit = find_unit<T>(task.params, walk, index);
    if (unit.count == 0) break;
    const int sources[2] = {source_row(task.params, unit, lane),
                            source_row(task.params, unit, lane + 32)};
    for (int step = task.first_step(); step < task.last_step(); step++) {
      if (early > 0) {
        early--;
      } else {
        barrier_wait(&task.storage().empty[place.slot], place.parity ^ 1);
        if (lane == 0) load_weights(task, unit, step, place.slot);
      }
      load_x(task, unit, sources, step, place.slot);
      place.advance(task.params.stages);
    }
  }
}

// ---- multiply ------------------------------------------------------------------------------------
// Of D[64 rows of W, kRows of x], see wgmma.cuh, thread t holds x's rows 8 i + 2 (t % 4), + 1.

template <class T>
using StreamSums = float[T::kSums];

// Once all lanes of the warp have read what they want of the stage.
template <class T>
__device__ inline void release_stage(const StreamTask<T>& task, int slot) {
  __syncwarp();
  if (threadIdx.x % 32 == 0) barrier_arrive(&task.storage().empty[slot]);
}

template <class T>
struct StreamOperands {
  uint64_t weight, x;  // descriptors

  __device__ StreamOperands(const StreamTask<T>& task, int slot, int box) {
    const int group = static_cast<int>(threadIdx.x) / 128;
    const unsigned char* stage = task.stage(slot);
    weight = wgmma_descriptor(stage + box * T::kWeightBytes + group * 64 * 128);
    x = wgmma_descriptor(stage + T::kBoxes * T::kWeightBytes + box * T::kXBytes);
  }
};

// bf16: one chain of products, of which one stage's are under way while the next one is waited for.
template <class T>
__device__ inline void multiply_plain(StreamSums<T>& sums, const StreamTask<T>& task,
                                      RingPlace& place) {
  int before = -1;
  for (int step = task.first_step(); step < task.last_step(); step++) {
    barrier_wait(&task.storage().full[place.slot], place.parity);
    wgmma_fence();
#pragma unroll
    for (int box = 0; box < T::kBoxes; box++) {
      const StreamOperands<T> from(task, place.slot, box);
#pragma unroll
      for (uint32_t part = 0; part < 128; part += 32)
        wgmma_bf16(sums, wgmma_advance(from.weight, part), wgmma_advance(from.x, part), true);
    }
    wgmma_commit();
    wgmma_wait<1>();
    if (before >= 0) release_stage(task, before);
    before = place.slot;
    place.advance(task.params.stages);
  }
  wgmma_wait<0>();
  wgmma_pin(sums);
  release_stage(task, before);
}

// f8e4m3: a box is 128 values of k; its sums are scaled and added to the total by fp32 additions.
template <class T>
__device__ inline void multiply_scaled(StreamSums<T>& sums, const StreamTask<T>& task,
                                       const StreamUnit& unit, RingPlace& place) {
  const StreamParams& params = task.params;
  const int row = unit.column * T::kTile + static_cast<int>(threadIdx.x) / 128 * 64;
  const float* weight_scales = params.weight_scale +
                               unit.expert * params.weight_scale_expert_stride +
                               row / kScaleBlock * params.weight_scale_stride;
  for (int step = task.first_step(); step < task.last_step(); step++) {
#pragma unroll
    for (int box = 0; box < T::kBoxes; box++) {
      const float scale = __ldg(weight_scales + min(step * T::kBoxes + box, params.boxes - 1));
      if (box == 0) barrier_wait(&task.storage().full[place.slot], place.parity);
      StreamSums<T> products;
      const StreamOperands<T> from(task, place.slot, box);
      wgmma_fence();
#pragma unroll
      for (uint32_t part = 0; part < 128; part += 32)
        wgmma_e4m3(products, wgmma_advance(from.weight, part), wgmma_advance(from.x, part),
                   part > 0);
      wgmma_commit();
      wgmma_wait<0>();
      wgmma_pin(products);
#pragma unroll
      for (int i = 0; i < T::kChunks; i++) {
        const float2 pair = task.x_scales(place.slot, box)[4 * i + threadIdx.x % 4];
        const float scales[2] = {pair.x * scale, pair.y * scale};
#pragma unroll
        for (int j = 0; j < 4; j++) sums[4 * i + j] += products[4 * i + j] * scales[j % 2];
      }
      if (box == T::kBoxes - 1) release_stage(task, place.slot);
    }
    place.advance(params.stages);
  }
}

// ---- store ---------------------------------------------------------------------------------------

__device__ inline void store_value(const StreamParams& params, int row, int column, float value) {
  const int64_t offset = row * params.out_stride + column;
  if (params.out_is_f32) {
    float* out = static_cast<float*>(params.out) + offset;
    *out = params.accumulate ? *out + value : value;
  } else {
    Bf16* out = static_cast<Bf16*>(params.out) + offset;
    *out = __float2bfloat16_rn(params.accumulate ? __bfloat162float(*out) + value : value);
  }
}

// Four sums of a thread as wgmma leaves them: two rows of x at column g of the warp's 16, then at
// column g + 8.
template <class T>
__device__ inline void store_chunk(const StreamParams& params, const StreamUnit& unit, int warp,
                                   int chunk, int lane, const float4& sums) {
  const int column = unit.column * T::kTile + warp * 16 + lane / 4;
  const int row = chunk * 8 + lane % 4 * 2;
  const float values[4] = {sums.x, sums.y, sums.z, sums.w};
#pragma unroll
  for (int i = 0; i < 4; i++)
    if (row + i % 2 < unit.count && column + i / 2 * 8 < params.n)
      store_value(params, unit.first + row + i % 2, column + i / 2 * 8, values[i]);
}

// Which CTA of a cluster adds up the sums of which warps' columns.
template <class T>
struct Ownership {
  int split;
  __device__ int owner(int warp) const { return warp * split / T::kWarps; }
  __device__ int owners() const { return min(split, T::kWarps); }
  __device__ int warps() const { return T::kWarps / owners(); }  // of one owner
  __device__ bool owns(int rank) const { return rank % (split / owners()) == 0; }
  __device__ int first_warp(int rank) const { return rank * T::kWarps / split; }
};

// Partial sums lie [split][warp of the owner][chunk][lane], four sums an item.
template <class T>
__device__ inline void send_partials(const StreamSums<T>& sums, const StreamTask<T>& task) {
  const Ownership<T> share{task.params.split};
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int owner = share.owner(warp);
  const int block = task.rank() * share.warps() + warp - share.first_warp(owner);
  const auto cta = static_cast<uint32_t>(owner);
  const uint32_t to =
      cluster_address(shared_address(task.partials() + (block * T::kChunks * 32 + lane) * 16), cta);
  const uint32_t barrier = cluster_address(shared_address(&task.storage().partials), cta);
#pragma unroll
  for (int i = 0; i < T::kChunks; i++) {
    const float values[4] = {sums[4 * i], sums[4 * i + 1], sums[4 * i + 2], sums[4 * i + 3]};
    cluster_store(to + static_cast<uint32_t>(i * 32 * 16), values, barrier);
  }
}

// Adds up what the cluster sent here, if anything, and stores it.
template <class T>
__device__ inline void add_partials(const StreamTask<T>& task, const StreamUnit& unit) {
  const Ownership<T> share{task.params.split};
  if (!share.owns(task.rank())) return;
  const int items = share.warps() * T::kChunks * 32;
  const auto* partials = reinterpret_cast<const float4*>(task.partials());
  if (threadIdx.x == 0)
    barrier_arrive_expect(&task.storage().partials,
                          static_cast<uint32_t>(task.params.split * items * 16));
  barrier_wait(&task.storage().partials, 0);
  for (int item = static_cast<int>(threadIdx.x); item < items; item += T::kConsumers) {
    float4 sum = partials[item];
    for (int i = 1; i < task.params.split; i++) {
      const float4 next = partials[i * items + item];
      sum = make_float4(sum.x + next.x, sum.y + next.y, sum.z + next.z, sum.w + next.w);
    }
    store_chunk<T>(task.params, unit, share.first_warp(task.rank()) + item / (T::kChunks * 32),
                   item / 32 % T::kChunks, item % 32, sum);
  }
}

template <class T>
__device__ inline void consume(const StreamTask<T>& task) {
  if (task.params.split > 1) cluster_wait();
  wait_for_prerequisites();
  RingPlace place;
  StreamWalk walk;
  for (int index = task.first_unit();; index += task.clusters()) {
    const StreamUnit unit = find_unit<T>(task.params, walk, index);
    if (unit.count == 0) return;
    StreamSums<T> sums = {};
    if constexpr (T::kQuantised)
      multiply_scaled(sums, task, unit, place);
    else
      multiply_plain(sums, task, place);
    if (task.params.split > 1) {  // then this was the cluster's only unit
      send_partials(sums, task);
      return add_partials(task, unit);
    }
#pragma unroll
    for (int i = 0; i < T::kChunks; i++)
      store_chunk<T>(task.params, unit, static_cast<int>(threadIdx.x) / 32, i,
                     static_cast<int>(threadIdx.x) % 32,
                     make_float4(sums[4 * i], sums[4 * i + 1], sums[4 * i + 2], sums[4 * i + 3]));
  }
}

// ---- kernel --------------------------------------------------------------------------------------

template <class T>
__device__ inline void init_barriers(const StreamTask<T>& task) {
  StreamStorage<T>& storage = task.storage();
  for (int i = 0; i < task.params.stages; i++) {
    barrier_init(&storage.full[i], T::kQuantised ? 33 : 1);  // with scales, each lane arrives too
    barrier_init(&storage.empty[i], T::kWarps);
  }
  barrier_init(&storage.partials, 1);
  barrier_init_fence();
}

template <class T>
__global__ void __launch_bounds__(T::kThreads, 2)
    stream_kernel(const __grid_constant__ TensorMap weight, const __grid_constant__ TensorMap x,
                  const __grid_constant__ StreamParams params) {
  extern __shared__ __align__(1024) unsigned char stream_memory[];
  const StreamTask<T> task{weight, x, params, stream_memory};
  if (threadIdx.x == 0) init_barriers(task);
  __syncthreads();
  launch_dependents();
  if (params.split > 1) cluster_arrive();  // waited for before anything is sent
  if (threadIdx.x >= T::kConsumers)
    produce(task);
  else
    consume(task);
}

}  // namespace loza::cuda
