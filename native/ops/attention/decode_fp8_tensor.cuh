// Absorbed attention with Hopper's matrix instructions over an FP8 latent cache: latent 512, rope 64.
//
// The division of labour is that of decode_tensor.cuh, with keys and latent columns on the M side. Codes
// stay codes in shared memory: each warpgroup makes bf16 operands of them in registers, keys by latent
// columns for the scores, latent columns by keys for the values.
//
// Codes as operands. Every e4m3 is an f16, and one instruction converts two: so codes, and what they are
// multiplied by, are f16. Scales are powers of two and stay outside: score j is
//   scale(j) ([codes(j) | rope(j)] . q)
// and p is taken with its scale, p'(j) = scale(j) 2^(score(j) - base): the base is the highest of
// score(j) + log2 scale(j), so that p' is at most 1. Queries lie in f16 as 2^-5 of what they are.
//
// Turns. The values of a tile are summed up when the next tile's scores have been multiplied: the matrix
// units then work while these scores become numerators. So there are two p.
//
// Orders. M row 16 w + 8 h + g of the scores is key 16 w + 8 h + shuffled(g) of the tile; so are the
// positions of p along k. M row 16 w + 8 h + g of chain m is latent column 64 w + 8 g + 2 m + h of the
// warpgroup's 256. Columns of q are permuted within each 64, so that 16 neighbouring bytes of a key are one
// thread's part of four instructions. All reads of codes are then free of bank conflicts.
#pragma once

#include "ops/attention/decode_tensor.cuh"

namespace loza::cuda::attention {

template <int kRows_>
struct Fp8Traits {
  static constexpr int kRows = kRows_;  // pairs of query and head
  static constexpr bool kSwapped = true;
  static constexpr int kStages = 3;
  static constexpr int kLatent = 512, kRope = 64;
  static constexpr int kRowBytes = kLatent + 2 * kRope + 4;
  static constexpr int kCodePanel = 128,
                       kCodePanels = kLatent / kCodePanel;             // columns of 128 bytes
  static constexpr int kPanel = 64, kLatentPanels = kLatent / kPanel;  // the same of q
  static constexpr int kPanels = kLatentPanels + 1, kQueryBox = kPanels;
  static constexpr int kScores = kRows * kTileKeys / 128;  // of a thread
  static constexpr int kScoreRows = kRows / 4;             // pairs that a thread has scores of
  static constexpr int kColumns = kLatent / 2;             // of a values warpgroup
  static constexpr int kChains = kColumns / 64;
  static constexpr int kSums = kRows * 64 / 128;  // of a thread and chain
  static constexpr int kStagedRow = kLatent + 8;
  static constexpr int kScoreThreads = 128, kMergeThreads = 384, kThreads = 512;
};

inline constexpr float kQueryUnit = 0x1p-5f;  // f16 then holds queries of up to 2^21

struct Fp8Tile {
  alignas(1024) uint8_t codes[4][kTileKeys * 128];
  alignas(1024) bf16 rope[kTileKeys * 64];
  alignas(128) float scales[kTileKeys];
  static constexpr int kBytes = kTileKeys * 644;
};

// Of two neighbouring pairs, as of the last tile that was made.
struct alignas(16) Softmax {
  float base[2];    // what scores are measured from, in powers of two
  float shrink[2];  // what the sums so far are to be multiplied by
};

template <int kRows>
struct DecodeStorage<Fp8Traits<kRows>> {
  using Traits = Fp8Traits<kRows>;
  union {
    Fp8Tile tiles[Traits::kStages];
    uint16_t staged[kRows * Traits::kStagedRow];  // at the end of the CTA's work
  };
  alignas(1024) bf16 q[Traits::kPanels][kRows * Traits::kPanel];
  alignas(1024) bf16 p[2][kRows * kTileKeys];  // f16
  float exchange[4][kRows];
  Softmax softmax[2][kRows / 2];
  float highest[kRows], total[kRows];  // highest: of the tiles so far, total: of the work's end
  int32_t peak[kRows];                 // highest magnitude of sums, its bits
  int32_t limit[kRows], local[kRows];  // last and first local position a row sees
  Work work;
  bool last_work;
  uint64_t k_full[Traits::kStages], k_empty[Traits::kStages];
  uint64_t p_full[2], p_empty[2], scored[2];
  uint64_t q_full, q_ready, work_full, work_empty;
  Stats parts[kRows + 2];  // last, as in decode_tensor.cuh
};

template <int kRows>
__device__ void init_barriers(DecodeStorage<Fp8Traits<kRows>>& shared, int groups) {
  for (auto& barrier : shared.k_full) barrier_init(&barrier, 1);
  for (auto& barrier : shared.k_empty) barrier_init(&barrier, 8 * groups);
  barrier_init(&shared.q_full, 1);
  barrier_init(&shared.q_ready, 8);
  for (auto& barrier : shared.p_full) barrier_init(&barrier, 4);
  for (auto& barrier : shared.p_empty) barrier_init(&barrier, 8);
  for (auto& barrier : shared.scored) barrier_init(&barrier, 4);
  barrier_init(&shared.work_full, 1);
  barrier_init(&shared.work_empty, 12 * groups);
  barrier_init_fence();
}

// Which of eight keys the g-th M row is: an order in which reads along and across keys both spread
// over all banks.
__device__ __forceinline__ int shuffled(int g) { return g ^ (g & 1) << 2; }

// Four codes as f16.
__device__ __forceinline__ void widen_codes(uint32_t codes, uint32_t& low, uint32_t& high) {
  asm("{\n.reg .b16 l, h;\nmov.b32 {l, h}, %2;\n"
      "cvt.rn.f16x2.e4m3x2 %0, l;\ncvt.rn.f16x2.e4m3x2 %1, h;\n}"
      : "=r"(low), "=r"(high)
      : "r"(codes));
}

// Keeps the compiler from making operands later than here, between the instructions that read them.
template <int kCount>
__device__ __forceinline__ void pin_operands(uint32_t (&operands)[kCount][4]) {
#pragma unroll
  for (auto& operand : operands)
    asm volatile("" : "+r"(operand[0]), "+r"(operand[1]), "+r"(operand[2]), "+r"(operand[3]));
}

// Where a 16-byte chunk of a row of 128 bytes lies, as the copies permute them.
__device__ __forceinline__ uint32_t chunk_offset(int row, int chunk) {
  return static_cast<uint32_t>(row * 128 + ((chunk ^ (row & 7)) << 4));
}

}  // namespace loza::cuda::attention
