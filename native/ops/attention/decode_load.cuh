// Absorbed attention with Hopper's matrix instructions: copies of tiles of a bf16 cache.
#pragma once

#include "ops/attention/decode_producer.cuh"

namespace loza::cuda::attention {

template <class Traits>
struct PanelTiles {
  using Maps = TensorMap;  // of the cache: [panels, slots, 64], box [1, 64, 64]
  static constexpr int kAhead = Traits::kFronts < Traits::kBacks ? Traits::kFronts : Traits::kBacks;

  DecodeStorage<Traits>& shared;
  const DecodeLaunch& launch;
  const TensorMap& map;
  CopyShare copies;
  TileRing<Traits> ring;
  bool queries_came = false;

  __device__ void prefetch_maps() const { prefetch(map); }

  // A front's place is for queries, if they are held in registers.
  __device__ void begin_work() {
    if constexpr (Traits::kHeldPanels > 0) ring.front.advance();
  }

  // Loaded by those who make scores. The first must not queue up behind more keys.
  __device__ void load_queries(const Unit&) {
    if (!queries_came) barrier_wait(&shared.q_full, 0);
    queries_came = true;
  }

  // The panels [begin, end) of a tile, divided among the CTAs that share it.
  __device__ void load_panels(bf16 (*to)[kTileKeys * Traits::kPanel], uint64_t* barrier, int begin,
                              int end, int slot) {
    barrier_arrive_expect(barrier, (end - begin) * Traits::kPanelBytes);
    for (int i = begin + copies.group; i < end; i += copies.groups)
      copies.load(to[i - begin], map, barrier, 0, slot, panel_of(i));
  }

  __device__ void load(int slot) {
    constexpr int kFirst = Traits::kFirstPanels;
    const int front = ring.front.index, back = ring.back.index;
    barrier_wait(&shared.front_empty[front], ring.front.parity ^ 1);
    if (launch.whole) barrier_wait(&shared.back_empty[back], ring.back.parity ^ 1);
    if (copies.lane == 0) {
      load_panels(shared.front[front], &shared.front_full[front][0], 0, kFirst, slot);
      load_panels(shared.front[front] + kFirst, &shared.front_full[front][1], kFirst, kFrontPanels,
                  slot);
    }
    barrier_wait(&shared.back_empty[back], ring.back.parity ^ 1);
    if (copies.lane == 0)
      load_panels(shared.back[back], &shared.back_full[back], kFrontPanels, Traits::kPanels, slot);
    ring.advance();
  }
};

}  // namespace loza::cuda::attention
