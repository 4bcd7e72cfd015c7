// Which form of the tensor-core kernel a call takes. From the call's shapes only, so that a captured
// graph keeps it.
#pragma once

#include <algorithm>

#include "ops/attention/decode_rows.cuh"

namespace loza {
class CudaStream;
}

namespace loza::cuda::attention {

struct DecodeShape {
  int rows;               // of a CTA: 8, 16, 32, 56 (keys on M) or 64 (rows on M)
  int groups = 1;         // CTAs that share tiles: a unit has groups * rows pairs
  bool lined_up = false;  // else clustered
  int shares = 1;         // clustered: of a unit's tiles
};

// Units of a call have `rows` pairs of query and head; a sequence's last may have fewer.
inline int units_at_most(const DecodeProblem& problem, int rows) {
  const int pairs = problem.rows * problem.heads;
  if (problem.heads % rows == 0) return pairs / rows;
  return (pairs + std::min(problem.sequences, problem.rows) * (rows - 1)) / rows;
}

inline DecodeShape choose_shape(const DecodeProblem& problem, int multiprocessors) {
  constexpr int kFewBlocks = 12;  // of a sequence: a cluster can have them all
  const int sequences = std::max(1, std::min(problem.sequences, problem.rows));
  const int pairs = (problem.rows + sequences - 1) / sequences * problem.heads;
  const int rows = pairs <= 8 ? 8 : pairs <= 16 ? 16 : pairs <= 32 ? 32 : pairs <= 56 ? 56 : 64;
  const int64_t blocks = std::min<int64_t>(
      problem.entries, int64_t{problem.range.sink_blocks} + problem.range.local_blocks + 2);
  if (blocks > kFewBlocks) return {.rows = rows, .lined_up = true};
  DecodeShape shape{.rows = rows};
  const int units = units_at_most(problem, shape.rows);
  while (shape.shares < 8 && units * shape.shares * 2 <= multiprocessors) shape.shares *= 2;
  return shape;
}

// The kernel in one form, whatever choose_shape says.
void launch_shape(const DecodeProblem& problem, const DecodeShape& shape, CudaStream& stream);

}  // namespace loza::cuda::attention
