#include "ops/expert_plan/expert_plan.h"

#include <numeric>
#include <vector>

#include "cpu/convert.h"
#include "ops/cpu_ops.h"

namespace loza {

void ExpertPlanParams::check(DType /*act*/) const {
  expect("expert_plan ids", ids, DType::kI32, -1, -1);
  const int64_t slots = ids.dim(0) * ids.dim(1);
  expect("expert_plan order", order, DType::kI32, slots);
  expect("expert_plan place", place, DType::kI32, slots);
  expect("expert_plan starts", starts, DType::kI32, -1);
  loza::check(starts.dim(0) >= 1, "expert_plan starts: expected one entry more than experts");
}

namespace cpu {

// A counting sort; the slots are few, so one thread does it.
void compute(const ExpertPlanParams& params) {
  const int64_t rows = params.ids.dim(0), top_k = params.ids.dim(1);
  const int64_t experts = params.starts.dim(0) - 1;
  auto* order = params.order.as<int32_t>();
  auto* place = params.place.as<int32_t>();
  auto* starts = params.starts.as<int32_t>();

  std::fill(starts, starts + experts + 1, 0);
  for (int64_t row = 0; row < rows; row++) {
    const auto* ids = row_of<const int32_t>(params.ids, row);
    for (int64_t i = 0; i < top_k; i++) {
      check(ids[i] >= 0, "expert_plan: ", ids[i], " is no expert");
      if (ids[i] < experts) starts[ids[i] + 1]++;
    }
  }
  std::partial_sum(starts, starts + experts + 1, starts);

  std::vector<int32_t> next(starts, starts + experts);
  for (int64_t row = 0; row < rows; row++) {
    const auto* ids = row_of<const int32_t>(params.ids, row);
    for (int64_t i = 0; i < top_k; i++) {
      const auto slot = static_cast<int32_t>(row * top_k + i);
      place[slot] = ids[i] < experts ? next[ids[i]]++ : -1;
      if (place[slot] >= 0) order[place[slot]] = slot;
    }
  }
}

}  // namespace cpu

}  // namespace loza
