// Which form of the tensor-core kernel a call takes. From the call's shapes only, so that a captured
// graph keeps it.
#pragma once

#include <algorithm>
#include <span>

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

// Forms of a sequence's few tiles, by their clocks on an H100 (2026-11-22).
struct FormCost {
  int rows, tile, exchange;  // clocks a tile, and to merge the shares
};
struct CacheCosts {  // of a type of cache
  int64_t tile_bytes;
  std::span<const FormCost> forms;
};
constexpr int64_t kCopyRate = 3200;  // bytes a clock from the L2

// `resident(ctas)`: how many clusters of so many CTAs the device runs at a time.
template <class Resident>
DecodeShape choose_clustered(int sequences, int pairs, int tiles, const CacheCosts& costs,
                             const Resident& resident) {
  DecodeShape best{.rows = 64};
  int64_t least = INT64_MAX;
  for (const FormCost& form : costs.forms) {
    if (form.rows == 56 && pairs > 56) continue;
    const int units = sequences * ((pairs + form.rows - 1) / form.rows);  // equal sequences'
    int shares = 1;
    for (const int more : {2, 3, 4, 8})
      if (units <= resident(form.rows, more)) shares = more;
    const int waves = (units + resident(form.rows, 1) - 1) / resident(form.rows, 1);
    const int64_t copies = int64_t{units} * tiles * costs.tile_bytes / kCopyRate;
    const int64_t cost =
        std::max(int64_t{waves} * ((tiles + shares - 1) / shares) * form.tile, copies) +
        (shares > 1 ? form.exchange : 0);
    if (cost >= least) continue;
    least = cost;
    best = {.rows = form.rows, .shares = shares};
  }
  return best;
}

template <class Resident>
DecodeShape choose_shape(const DecodeProblem& problem, const CacheCosts& costs,
                         const Resident& resident) {
  constexpr int kFewBlocks = 12;  // of a sequence: a cluster can have them all
  const int sequences = std::max(1, std::min(problem.sequences, problem.rows));
  const int pairs = (problem.rows + sequences - 1) / sequences * problem.heads;
  const auto blocks = static_cast<int>(std::min<int64_t>(
      problem.entries, int64_t{problem.range.sink_blocks} + problem.range.local_blocks));
  if (blocks <= kFewBlocks) return choose_clustered(sequences, pairs, 2 * blocks, costs, resident);
  const int rows = pairs <= 8 ? 8 : pairs <= 16 ? 16 : pairs <= 32 ? 32 : pairs <= 56 ? 56 : 64;
  // Little work for all SMs: fewer pairs a CTA leave a half or a quarter of the partial results.
  constexpr int kMostGroups = 4, kShortBlocks = 80, kMediumBlocks = 512;
  const int64_t all_blocks = int64_t{sequences} * problem.entries;
  if (rows == 64 && pairs <= 64 && all_blocks <= kMediumBlocks)
    return all_blocks <= kShortBlocks ? DecodeShape{.rows = 16, .groups = 4, .lined_up = true}
                                      : DecodeShape{.rows = 32, .groups = 2, .lined_up = true};
  return {.rows = rows,
          .groups = std::clamp((pairs + rows - 1) / rows, 1, kMostGroups),
          .lined_up = true};
}

DecodeShape choose_shape(const DecodeProblem& problem);

// The kernels in one form, whatever choose_shape says. `plan` is what launch_plan wrote for the same
// form and tables, or null: then the call makes its own.
void launch_shape(const DecodeProblem& problem, const DecodeShape& shape, void* plan,
                  CudaStream& stream);
void launch_plan(const DecodeProblem& problem, const DecodeShape& shape, void* plan,
                 CudaStream& stream);

}  // namespace loza::cuda::attention
