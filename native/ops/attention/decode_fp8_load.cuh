// Absorbed attention over an FP8 latent cache: copies of queries and of tiles of codes.
//
// The planes of a block (ops/latent_cache.h) are rows of 512, 128 and 128 bytes, and a block is 161 and
// 644 such rows: so one view a plane, which begins at the cache's first byte, has all blocks in it.
#pragma once

#include "ops/attention/decode_fp8_tensor.cuh"
#include "ops/attention/decode_producer.cuh"

namespace loza::cuda::attention {

struct Fp8Maps {
  const TensorMap* q;       // bf16 [panels, rows x heads, 64], box [panels, kRows, 64]
  const TensorMap* codes;   // bytes [4, blocks * 161, 128], box [1, 64, 128]
  const TensorMap* rope;    // bf16 [blocks * 644, 64], box [64, 64]
  const TensorMap* scales;  // f32 [blocks * 644, 32], box [2, 32]
};

template <class Traits>
struct Fp8Tiles {
  using Maps = Fp8Maps;
  static constexpr int kAhead = Traits::kStages;

  DecodeStorage<Traits>& shared;
  const DecodeLaunch& launch;
  const Fp8Maps& maps;
  CopyShare copies;
  Ring<Traits::kStages> stage;

  __device__ void prefetch_maps() const {
    prefetch(*maps.q), prefetch(*maps.codes), prefetch(*maps.rope);
  }

  __device__ void begin_work() {}

  __device__ void load_queries(const Unit& unit) {
    if (copies.lane != 0) return;
    barrier_arrive_expect(&shared.q_full, sizeof(shared.q));
    tma_load(shared.q, *maps.q, &shared.q_full, 0, unit.flat, 0, kEvictNormal);
  }

  // A tile's parts, divided among the CTAs that share it.
  __device__ void load(int slot) {
    constexpr int kCodeRows = Traits::kRowBytes / 4, kRows = Traits::kRowBytes;  // of a block
    const int block = slot / kBlockTokens, offset = slot % kBlockTokens;
    uint64_t* barrier = &shared.k_full[stage.index];
    Fp8Tile& tile = shared.tiles[stage.index];
    barrier_wait(&shared.k_empty[stage.index], stage.parity ^ 1);
    stage.advance();
    if (copies.lane != 0) return;
    barrier_arrive_expect(barrier, Fp8Tile::kBytes);
    if (copies.group == copies.groups - 1) {
      copies.load(tile.scales, *maps.scales, barrier, 0, block * kRows + 640 + offset / 32);
      copies.load(tile.rope, *maps.rope, barrier, 0, block * kRows + 512 + offset);
    }
    for (int panel = copies.group; panel < Traits::kCodePanels; panel += copies.groups)
      copies.load(tile.codes[panel], *maps.codes, barrier, 0, block * kCodeRows + offset, panel);
  }
};

}  // namespace loza::cuda::attention
