// Absorbed attention with Hopper's matrix instructions: latent 512, rope 64, bf16 cache.
//
// A CTA has three warpgroups and a warp that copies:
//   producer  reads the CTA's work from the plan (decode_records.cuh) and brings queries and tiles of 64
//             keys to shared memory with bulk tensor copies, ahead of the others by what fits;
//   scores    q k^T of a tile, mask, online softmax; writes the numerators p and by how much the
//             sums so far shrink;
//   values    two warpgroups, 256 latent columns each: sums += p k[:, :512] in registers, while the
//             scores of the next tile are made.
// Rows (pairs of query and head) are the M side of the instructions, 64 at a time; or (`kSwapped`) the
// N side with keys and latent columns on M, so that 8 or 16 rows need no padding.
#pragma once

#include <cuda_fp16.h>

#include "cuda/tma.cuh"
#include "cuda/wgmma.cuh"
#include "ops/attention/decode_records.cuh"

namespace loza::cuda::attention {

// A tile is copied and given back in two parts, each in a ring of its own. The front: the rope panel
// and the first half of either values warpgroup's columns; the back: their second half. So the front
// is on its way again while the values of the back are summed up.
constexpr int kFrontPanels = 5, kBackPanels = 4;
// The panel (64 columns of a cache row) that is i-th in a tile: 8, 0, 1, 4, 5 | 2, 3, 6, 7.
__host__ __device__ constexpr int panel_of(int i) {
  if (i == 0) return kFrontPanels + kBackPanels - 1;
  const bool back = i >= kFrontPanels;
  const int of_part = back ? i - kFrontPanels : i - 1;
  return (back ? 2 : 0) + of_part % 2 + of_part / 2 * 4;
}

template <int kRows_, bool kSwapped_, int kFronts_, int kBacks_>
struct DecodeTraits {
  static constexpr int kRows = kRows_;  // pairs of query and head
  static constexpr bool kSwapped = kSwapped_;
  static constexpr int kFronts = kFronts_, kBacks = kBacks_;  // parts of tiles in shared memory
  static constexpr int kWidth = 576, kLatent = 512;
  static constexpr int kPanel = 64;  // columns of 128 bytes, which the copies permute
  static constexpr int kPanels = kWidth / kPanel, kLatentPanels = kLatent / kPanel;
  static constexpr int kFirstPanels = 3;  // of a front: they arrive first, and scores begin
  // Panels of queries that stay in registers, those that meet a front. They come through a front's place
  // in the ring, before the first tile of a work.
  static constexpr int kHeldPanels = kSwapped || kFronts == kBacks ? 0 : kFrontPanels;
  static constexpr int kQueryBox = kHeldPanels > 0 ? 1 : kPanels;  // panels that a copy brings
  static constexpr int kPanelBytes = kTileKeys * kPanel * 2;
  static constexpr int kScores = kRows * kTileKeys / 128;      // of a thread
  static constexpr int kScoreRows = kSwapped ? kRows / 4 : 2;  // rows that a thread has scores of
  static constexpr int kColumns = kLatent / 2;                 // of a values warpgroup
  static constexpr int kChainColumns = kSwapped ? 64 : 128;    // of one instruction
  static constexpr int kChains = kColumns / kChainColumns;
  static constexpr int kSums = kRows * kColumns / 128 / kChains;  // of a thread and chain
  // Of staged results, padded so that a warp's threads write to different banks.
  static constexpr int kStagedRow = kLatent + 8;
  static constexpr int kScoreThreads = 128, kMergeThreads = 384;
  // With few rows, 96 registers a thread are enough: CTAs of the merge, of this call and the one before,
  // then fit beside this one. Else warpgroups hand registers to each other, and copies take one too.
  static constexpr bool kLight = kRows <= 32;
  static constexpr int kThreads = kLight ? 416 : 512, kRegisterThreads = kLight ? 640 : 512;
  static constexpr int kCopyRegisters = kHeldPanels > 0 ? 40 : 64,
                       kScoreRegisters = kHeldPanels > 0 ? 152 : 112,
                       kValueRegisters = kHeldPanels > 0 ? 160 : 168;
};

enum DecodeBarrier : uint32_t { kScoresBarrier = 1, kValuesBarrier = 2, kMergeBarrier = 3 };

// Of partial sums: the highest score in powers of two, and the total of the numerators.
struct alignas(8) Stats {
  float highest, total;
};

template <class Traits>
struct DecodeStorage {
  union {
    struct {
      alignas(1024) bf16 front[Traits::kFronts][kFrontPanels][kTileKeys * Traits::kPanel];
      bf16 back[Traits::kBacks][kBackPanels][kTileKeys * Traits::kPanel];
    };
    // At the end of the CTA's work: results, bf16, or partial ones, f16.
    uint16_t staged[Traits::kRows * Traits::kStagedRow];
  };
  alignas(1024) bf16 q[Traits::kPanels - Traits::kHeldPanels][Traits::kRows * Traits::kPanel];
  alignas(1024) bf16 p[Traits::kRows * kTileKeys];
  float exchange[Traits::kSwapped ? 2 : 1][4][Traits::kSwapped ? Traits::kRows : 1];
  float shrink[Traits::kRows];
  float highest[Traits::kRows], total[Traits::kRows];  // of the work's end
  int32_t peak[Traits::kRows];                         // highest magnitude of sums, its bits
  int32_t limit[Traits::kRows], local[Traits::kRows];  // last and first local position a row sees
  Work work;
  bool last_work;
  uint64_t front_full[Traits::kFronts][2], front_empty[Traits::kFronts];
  uint64_t back_full[Traits::kBacks], back_empty[Traits::kBacks];
  uint64_t q_full, p_full, p_empty, work_full, work_empty;
  // Last, because only where a cluster merges: stats of its shares, for rows that this CTA merges.
  Stats parts[Traits::kRows + 2];
};

struct DecodeScratch {
  uint16_t* sums;  // [kRows, 2, CTAs, latent], f16: those of a row lie together
  Stats* stats;    // [kRows, 2, CTAs]
  int32_t ctas;

  __device__ int64_t place(int row, int slot) const {
    return (int64_t{2} * row + slot % 2) * ctas + slot / 2;
  }
};

struct DecodeLaunch {
  const Record* records;
  DecodeScratch scratch;
  int32_t parts;   // lined up: clusters; 0: clustered
  int32_t groups;  // CTAs that share tiles
  int32_t shares;  // clustered: of a unit
  bool read_once;  // no other unit reads the same keys
  bool whole;      // both parts of a tile at a time, as they lie together in memory
};

// Counts uses of a ring of buffers: which one, and the parity of its barriers' phase.
template <int kCount>
struct Ring {
  int32_t index = 0;
  uint32_t parity = 0;
  __device__ void advance() {
    if (++index == kCount) index = 0, parity ^= 1;
  }
};

template <class Traits>
struct TileRing {
  Ring<Traits::kFronts> front;
  Ring<Traits::kBacks> back;
  __device__ void advance() { front.advance(), back.advance(); }
};

template <class Traits>
__device__ void init_barriers(DecodeStorage<Traits>& shared, int groups) {
  for (int s = 0; s < Traits::kFronts; s++) {
    for (auto& barrier : shared.front_full[s]) barrier_init(&barrier, 1);
    barrier_init(&shared.front_empty[s], 8 * groups);
  }
  for (int s = 0; s < Traits::kBacks; s++) {
    barrier_init(&shared.back_full[s], 1);
    barrier_init(&shared.back_empty[s], 8 * groups);
  }
  barrier_init(&shared.q_full, 1);
  barrier_init(&shared.p_full, 4);
  barrier_init(&shared.p_empty, 8);
  barrier_init(&shared.work_full, 1);
  barrier_init(&shared.work_empty, 12 * groups);
  barrier_init_fence();
}

// All of the warp's accesses so far, then one arrival.
__device__ __forceinline__ void warp_arrive(uint64_t* barrier, int lane) {
  __syncwarp();
  if (lane == 0) barrier_arrive(barrier);
}

// The warp has read a part of a tile: one arrival at each CTA that shares tiles with this one. Nothing
// was written that others read, so that it need not wait for writes.
__device__ __forceinline__ void warp_give_back(uint64_t* barrier, int lane, int groups) {
  __syncwarp();
  if (groups == 1) {
    if (lane == 0) barrier_arrive(barrier);
  } else if (lane < groups) {
    barrier_signal_remote(barrier, cluster_rank() / groups * groups + lane);
  }
}

// All of the warp's accesses so far, writes too.
__device__ __forceinline__ void warp_arrive_all(uint64_t* barrier, int lane, int groups) {
  __syncwarp();
  if (groups == 1) {
    if (lane == 0) barrier_arrive(barrier);
  } else if (lane < groups) {
    barrier_arrive_remote(barrier, cluster_rank() / groups * groups + lane);
  }
}

__device__ __forceinline__ uint32_t pack_half(float low, float high) {
  uint32_t packed;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}

// The rows of a thread's scores and sums: row 16 warp + g (+ 8), or all columns 8 i + 2 j (+ 1) if swapped.
template <class Traits>
__device__ int score_row(int warp, int lane, int index) {
  if constexpr (Traits::kSwapped) return index / 2 * 8 + lane % 4 * 2 + index % 2;
  return warp * 16 + lane / 4 + index * 8;
}

}  // namespace loza::cuda::attention
