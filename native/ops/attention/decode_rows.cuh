// Rows, blocks and slots of absorbed attention on CUDA, shared by its kernels.
//
// A row sees `blocks` visible blocks, counted from 0: its sinks, then its locals.
#pragma once

#include "cuda/attention_mma.cuh"
#include "ops/attention/attention.h"

namespace loza::cuda::attention {

// Strides are in elements; the last dimension of everything is contiguous.
struct DecodeProblem {
  bf16* out;                    // [rows, heads, latent]
  float* lse;                   // [rows, heads], or null
  const bf16* q;                // [rows, heads, width]
  const void* cache;            // [slots, width]
  const int32_t* block_table;   // [sequences, entries]
  const int32_t* first_local;   // [sequences]
  const int32_t* query_starts;  // [sequences + 1]
  const int32_t* positions;     // [rows]
  int64_t out_row, out_head, q_row, q_head, cache_row, table_row, slots;
  int64_t first_local_step, starts_step, positions_step, lse_row, lse_head;
  int32_t rows, heads, latent, width, sequences, entries;
  float scale;  // softmax_scale log2(e): exponentials are powers of two
  KeyRange range;
};

struct Row {
  int32_t position = -1;
  int32_t blocks = 0;  // visible ones; 0: the row becomes `nothing`
  int32_t sinks = 0;   // visible sinks
  int32_t first = 0;   // first visible local block
  int64_t shift = 0;   // from a local block to its entry
  const int32_t* table = nullptr;
  float nothing = 0;
};

// ---- Rows, blocks, slots ----

// The last sequence that starts at or before the row, or -1.
__device__ inline int find_sequence(const DecodeProblem& problem, int64_t row) {
  int begin = 0, end = problem.sequences + 1;  // the first start behind the row
  while (begin < end) {
    const int middle = (begin + end) / 2;
    if (problem.query_starts[middle * problem.starts_step] <= row)
      begin = middle + 1;
    else
      end = middle;
  }
  return begin - 1;
}

__device__ inline Row describe_row(const DecodeProblem& problem, int64_t index) {
  Row row;
  row.position = problem.positions[index * problem.positions_step];
  if (row.position < 0) return row;
  row.nothing = not_a_number();
  const int sequence = find_sequence(problem, index);
  if (sequence < 0 || sequence >= problem.sequences) return row;
  const int block = row.position / kBlockTokens, sink_blocks = problem.range.sink_blocks;
  const int first = problem.range.first_local_block(block);
  const int sinks = min(sink_blocks, block + 1), locals = max(0, block + 1 - first);
  const int64_t shift =
      int64_t{sink_blocks} - problem.first_local[sequence * problem.first_local_step];
  const bool fits =
      sinks <= problem.entries &&
      (locals == 0 || (first + shift >= sink_blocks && block + shift < problem.entries));
  if (!fits) return row;
  row.sinks = sinks, row.first = first, row.shift = shift;
  row.table = problem.block_table + sequence * problem.table_row;
  row.blocks = sinks + locals;
  return row;
}

__device__ inline int64_t absolute_block(const Row& row, int visible) {
  return visible < row.sinks ? visible : row.first + visible - row.sinks;
}

// How many keys of a visible block the row sees: a prefix.
__device__ inline int keys_of(const Row& row, int visible) {
  const int64_t behind = int64_t{row.position} + 1 - absolute_block(row, visible) * kBlockTokens;
  return static_cast<int>(min(int64_t{kBlockTokens}, behind));
}

// The cache row of a visible block, or -1 where the table names none.
__device__ inline int64_t slot_of(const DecodeProblem& problem, const Row& row, int visible) {
  const int64_t entry = visible < row.sinks ? visible : absolute_block(row, visible) + row.shift;
  const int64_t slot = int64_t{row.table[entry]} * kBlockTokens;
  return slot >= 0 && slot + keys_of(row, visible) <= problem.slots ? slot : -1;
}

inline DecodeProblem describe(const AttentionDecodeParams& params) {
  const Tensor &out = params.out, &q = params.q, &cache = params.cache;
  DecodeProblem problem{};
  problem.out = out.as<bf16>(), problem.out_row = out.stride(0), problem.out_head = out.stride(1);
  problem.q = q.as<bf16>(), problem.q_row = q.stride(0), problem.q_head = q.stride(1);
  problem.cache = cache.data, problem.cache_row = cache.stride(0), problem.slots = cache.dim(0);
  problem.block_table = params.block_table.as<int32_t>();
  problem.table_row = params.block_table.stride(0);
  problem.first_local = params.first_local.as<int32_t>();
  problem.first_local_step = params.first_local.stride(0);
  problem.query_starts = params.query_starts.as<int32_t>();
  problem.starts_step = params.query_starts.stride(0);
  problem.positions = params.positions.as<int32_t>();
  problem.positions_step = params.positions.stride(0);
  if (params.lse) {
    problem.lse = params.lse.as<float>();
    problem.lse_row = params.lse.stride(0), problem.lse_head = params.lse.stride(1);
  }
  problem.rows = static_cast<int32_t>(q.dim(0));
  problem.heads = static_cast<int32_t>(q.dim(1));
  problem.latent = static_cast<int32_t>(out.dim(2));
  problem.width = static_cast<int32_t>(q.dim(2));
  problem.sequences = static_cast<int32_t>(params.block_table.dim(0));
  problem.entries = static_cast<int32_t>(params.block_table.dim(1));
  problem.scale = params.softmax_scale * kLog2e;
  problem.range = params.range;
  return problem;
}

// What a plan needs to know.
inline DecodeProblem describe(const AttentionPlanParams& params) {
  DecodeProblem problem{};
  problem.block_table = params.block_table.as<int32_t>();
  problem.table_row = params.block_table.stride(0);
  problem.first_local = params.first_local.as<int32_t>();
  problem.first_local_step = params.first_local.stride(0);
  problem.query_starts = params.query_starts.as<int32_t>();
  problem.starts_step = params.query_starts.stride(0);
  problem.positions = params.positions.as<int32_t>();
  problem.positions_step = params.positions.stride(0);
  problem.rows = static_cast<int32_t>(params.positions.dim(0));
  problem.heads = params.heads;
  problem.sequences = static_cast<int32_t>(params.block_table.dim(0));
  problem.entries = static_cast<int32_t>(params.block_table.dim(1));
  problem.range = params.range;
  return problem;
}

}  // namespace loza::cuda::attention
