// LoZA's mask, the whole of it, shared by every attention kernel.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define LOZA_HOST_DEVICE __host__ __device__
#else
#define LOZA_HOST_DEVICE
#endif

namespace loza {

// One KV block and one sparse block are the same thing: 128 tokens.
inline constexpr int32_t kBlockTokens = 128;

// The keys a query may see. Query at absolute position t, key at j:
//   allowed(t, j) = j <= t and (j / 128 < sink_blocks or j / 128 > t / 128 - local_blocks)
// The partly filled current block counts among the local blocks. Full attention is the range with
// more local blocks than any sequence has.
struct KeyRange {
  int32_t sink_blocks = 0;
  int32_t local_blocks = INT32_MAX;

  // First block of the local part for a query in block `query_block`; never below the sinks.
  LOZA_HOST_DEVICE int32_t first_local_block(int32_t query_block) const {
    const int32_t first = local_blocks > query_block ? 0 : query_block - local_blocks + 1;
    return first > sink_blocks ? first : sink_blocks;
  }

  LOZA_HOST_DEVICE bool allows(int32_t t, int32_t j) const {
    const int32_t block = j / kBlockTokens;
    return j <= t && (block < sink_blocks || block >= first_local_block(t / kBlockTokens));
  }
};

}  // namespace loza
