// What the parts of gemm_wgmma.cuh share: its shapes, its shared memory, and which tile is which.
#pragma once

#include "core/tensor.h"
#include "cuda/barrier.cuh"

namespace loza::cuda::wgmma_gemm {

// ---- Traits ----------------------------------------------------------------------------------------

template <DType kType_, int kRowBlocks_, int kStages_>
struct Traits {
  static constexpr DType kType = kType_;
  static constexpr bool kIsF8 = kType == DType::kF8E4M3;
  static constexpr int kBlock = 64;  // rows of a wgmma
  static constexpr int kRowBlocks = kRowBlocks_, kRows = kBlock * kRowBlocks;
  static constexpr int kColumns = 128, kStages = kStages_;
  static constexpr int kStepBytes = 128;  // of a row of x or W: what the swizzle covers
  static constexpr int kDepth = kIsF8 ? 128 : 64;
  static constexpr int kInstructions = 4;  // of 32 bytes of k each
  static constexpr int kConsumers = 2, kHalves = (kRowBlocks + 1) / kConsumers;
  static constexpr int kThreads = 128 * (kConsumers + 1);
  static constexpr int kCtas = 2;   // of a cluster
  static constexpr int kGroup = 8;  // row tiles that walk the columns together
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

// Where the operands of a stage lie. A tile of one row block leaves room in it: there a stage is two
// steps of k, because so small a step is computed faster than the next one comes.
template <class T>
__device__ inline int steps_of_stage(int blocks, int steps) {
  return T::kRowBlocks >= 4 && blocks == 1 && steps % 2 == 0 ? 2 : 1;
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

  __device__ int blocks() const { return (rows + 63) / 64; }
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

  // f8e4m3: all tiles but the last are full, because the busier warpgroup counts. bf16: the last two
  // share what is left, because a tile of few rows races ahead of its neighbours through W, and what
  // it read has left L2 when they come.
  __device__ Tile row_tile(int number, int column) const {
    int first = number * T::kRows, rows = T::kRows;
    const int before = tiles_ - 2;  // tiles that are full
    if (!T::kIsF8 && before >= 0 && number >= before) {
      const int blocks = (rows_ + T::kBlock - 1) / T::kBlock - before * T::kRowBlocks;
      const int upper = (blocks + 1) / 2 * T::kBlock;
      first = before * T::kRows + (number > before ? upper : 0);
      rows = number > before ? T::kRows : upper;
    }
    return {expert_, begin_ + first, min(rows, rows_ - first), column};
  }

  const Params& params_;
  const int pairs_;
  int expert_ = 0, begin_ = 0, rows_ = 0, tiles_ = 0;
  int first_ = 0;  // number of the expert's first tile
};

// ---- Consumers ---------------------------------------------------------------------------------------

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

}  // namespace loza::cuda::wgmma_gemm
