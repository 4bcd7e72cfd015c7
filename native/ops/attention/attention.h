#pragma once

#include "core/tensor.h"
#include "ops/attention/key_range.h"

namespace loza {

// Expanded attention of new tokens over a workspace of expanded keys. A segment pairs a run of query
// rows with a run of workspace rows:
//   [query_row, query_count, query_position, key_row, key_count, key_position]
// Row r of the run has absolute position query_position + r, key row r key_position + r.
//   score(t, j) = softmax_scale * (q_nope . k_nope + q_rope . k_rope), range.allows(t, j)
// A call is one round. Where `out` is f32, rounds are merged into it by log-sum-exp; where it is the
// narrower type of activations, a row's keys all come in one call, which writes the row. Before the
// first round `lse` is -inf; a row that sees no key stays as it was.
// Segments of one call that share a query row share its whole run (same query_row and query_count)
// and are merged in the order they are listed.
struct AttentionPrefillParams {
  Tensor out;       // f32 | act [rows, heads, value]
  Tensor lse;       // f32 [rows, heads]
  Tensor q;         // act [rows, heads, nope + rope]
  Tensor kv;        // act [keys, heads, nope + value], kv_b_proj of the latents
  Tensor k_rope;    // act [keys, rope], rows may be strided
  Tensor segments;  // i32 [segments, 6]
  float softmax_scale = 1;
  KeyRange range;

  void check(DType act) const;
};

// A plan of decode attention: who does what, made once a step for all calls that share tables,
// positions, heads, range and type of cache. Until the calls that use it only the rows of the step's own positions may
// be written in the cache: a call reads the others before the operations right before it have ended.
inline constexpr int64_t kRecordInts = 32, kSplitsInts = 4;  // of the parts of a plan
inline constexpr int64_t kMostParts = 256;                   // into which all keys are divided

inline int64_t plan_records(int64_t rows, int64_t heads, int64_t sequences) {
  return 2 * kMostParts + sequences + rows * heads / 8 + 1;
}
inline int64_t plan_ints(int64_t rows, int64_t heads, int64_t sequences) {
  return plan_records(rows, heads, sequences) * kRecordInts + rows * heads * kSplitsInts;
}

struct AttentionPlanParams {
  Tensor plan;          // i32 [plan_ints or more]
  Tensor cache;         // any of the type of the calls' caches: they divide work differently
  Tensor block_table;   // i32 [sequences, entries]
  Tensor first_local;   // i32 [sequences]
  Tensor query_starts;  // i32 [sequences + 1]
  Tensor positions;     // i32 [rows]
  int32_t heads = 0;
  KeyRange range;

  void check(DType act) const;
};

// Absorbed attention of a few new tokens a sequence over the paged latent cache.
// Query row t of sequence b (query_starts[b] <= t < query_starts[b + 1]) has absolute position
// positions[t] and sees range.allows(positions[t], j). Entry i of a sequence's table is the block
// of absolute index i below range.sink_blocks and first_local[b] + i - sink_blocks above: streaming
// layers get a short table. Rows with position -1 are padding: their output is zero.
//   score(t, j) = softmax_scale * q . cache[slot(j)],  out = sum softmax(score) cache[slot(j)][0:latent]
//   lse = log sum exp(score); -inf for padding
struct AttentionDecodeParams {
  Tensor out;           // act [rows, heads, latent]
  Tensor lse;           // f32 [rows, heads], optional
  Tensor q;             // act [rows, heads, latent + rope]
  Tensor cache;         // f32 | bf16 [slots, latent + rope] or an FP8 latent cache
                        // (ops/latent_cache.h); slot = block * 128 + offset
  Tensor block_table;   // i32 [sequences, entries]
  Tensor first_local;   // i32 [sequences]
  Tensor query_starts;  // i32 [sequences + 1]
  Tensor positions;     // i32 [rows]
  Tensor plan;  // i32, optional: what AttentionPlan made for the same tables, heads, range and
                // type of cache
  float softmax_scale = 1;
  KeyRange range;

  void check(DType act) const;
};

}  // namespace loza
