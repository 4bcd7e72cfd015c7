// Sizes and shared memory of the wgmma kernel of expanded attention (prefill_wgmma.cu).
#pragma once

#include "cuda/tensor_map.h"
#include "ops/attention/prefill_plan.cuh"

namespace loza::cuda::attention {

template <int kNope_, int kRope_, int kValue_, int kKeyTile_>
struct PrefillTraits {
  static constexpr int kNope = kNope_, kRope = kRope_, kValue = kValue_;
  static constexpr int kDepth = kNope + kRope;
  static constexpr int kPanel = 64;           // columns of 128 bytes, what a swizzled row holds
  static constexpr int kKeyTile = kKeyTile_;  // divides a block
  static constexpr int kConsumers = 2;        // warpgroups that compute, besides the one that loads
  static constexpr int kConsumerRows = 64;
  static constexpr int kQueryTile = kConsumers * kConsumerRows;
  static constexpr int kStages = 2;
  static constexpr int kWarpgroup = 128;
  static constexpr int kWarps = kWarpgroup / 32;  // of 16 rows each
  static constexpr int kThreads = (1 + kConsumers) * kWarpgroup;
  static constexpr int kProducerRegisters = 40, kConsumerRegisters = 232;
  static constexpr uint32_t kQueryBytes = kConsumerRows * kDepth * 2;
  static constexpr uint32_t kKeyBytes = kKeyTile * kDepth * 2;
  static constexpr uint32_t kValueBytes = kKeyTile * kValue * 2;
  static_assert(kQueryTile == kBlockTokens && kBlockTokens % kKeyTile == 0);
  static_assert(kNope % kPanel == 0 && kRope % kPanel == 0 && kValue % kPanel == 0);
};

// What the producer tells a consumer about a query tile.
struct Work {
  int32_t head;        // -1: there is no more work
  int32_t row;         // the global row of the tile's row 0; may be negative
  int32_t first, end;  // the tile's rows that belong to the run
};

// And about a tile of keys: row r of the query tile sees those below min(keys, r + offset + 1).
struct KeyTile {
  int32_t keys;
  int32_t offset;
  int32_t last;  // of the query tile
};

// Tiles are panels of 64 columns whose 128-byte rows are swizzled.
template <class Traits>
struct PrefillStorage {
  using bf16 = __nv_bfloat16;
  static constexpr int kPanel = Traits::kPanel;
  alignas(1024) bf16 q[Traits::kConsumers][Traits::kDepth / kPanel][Traits::kConsumerRows * kPanel];
  alignas(1024) bf16 k[Traits::kStages][Traits::kDepth / kPanel][Traits::kKeyTile * kPanel];
  alignas(1024) bf16 v[Traits::kStages][Traits::kValue / kPanel][Traits::kKeyTile * kPanel];
  alignas(1024) bf16 out[Traits::kConsumers][Traits::kWarps][16 * kPanel];  // on its way out
  // full: the copies have arrived; empty: every warp that reads it is done.
  uint64_t q_full[Traits::kConsumers], q_empty[Traits::kConsumers];
  uint64_t k_full[Traits::kStages], k_empty[Traits::kStages];
  uint64_t v_full[Traits::kStages], v_empty[Traits::kStages];
  Work work[Traits::kConsumers];      // valid with q_full
  KeyTile key_tile[Traits::kStages];  // valid with k_full
};

struct PrefillMaps {
  TensorMap q;       // [rows, heads, depth], boxes of 64 rows of one head
  TensorMap kv;      // [keys, heads, nope + value], boxes of one key tile of one head
  TensorMap k_rope;  // [keys, rope], boxes of one key tile
  TensorMap out;  // [rows, heads, value]; f32: boxes of 64 rows, to read; bf16: panels of 16 rows
};

}  // namespace loza::cuda::attention
