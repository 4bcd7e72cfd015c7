#include "ops/rope/rope.h"

#include <cmath>

#include "cpu/rope.h"
#include "cpu/rows.h"
#include "ops/cpu_ops.h"

namespace loza {

void RopeTableParams::check(DType /*act*/) const {
  expect("rope_table inverse_frequencies", inverse_frequencies, DType::kF32, 2, -1);
  expect("rope_table positions", positions, DType::kI32, -1);
  expect("rope_table table", table, DType::kF32, positions.dim(0), 2 * inverse_frequencies.dim(1));
}

void RopeParams::check(DType act) const {
  expect("rope table", table, DType::kF32, -1, -1);
  expect("rope x", x, act, table.dim(0), -1, table.dim(1));
  expect("rope out", out, act, x.dim(0), x.dim(1), x.dim(2));
  loza::check(table.dim(1) % 2 == 0, "rope rotates pairs, but its width is ", table.dim(1));
}

namespace cpu {

namespace {

// A cosine and a sine in float64 cost about as much as this many element copies.
constexpr int64_t kTrigonometryCost = 32;

}  // namespace

void compute(const RopeTableParams& params) {
  const int64_t pairs = params.inverse_frequencies.dim(1);
  const auto* high = row_of<const float>(params.inverse_frequencies, 0);
  const auto* low = row_of<const float>(params.inverse_frequencies, 1);
  for_each_row(params.positions.dim(0), pairs * kTrigonometryCost, [&](int64_t row) {
    const int32_t position = params.positions.as<const int32_t>()[row];
    auto* out = row_of<float>(params.table, row);
    for (int64_t p = 0; p < pairs; p++) {
      const double exact = position * (static_cast<double>(high[p]) + low[p]);
      const float rounded = static_cast<float>(position) * high[p];
      const double angle = params.exact_angles ? exact : rounded;
      out[2 * p] = static_cast<float>(params.attention_scale * std::cos(angle));
      out[2 * p + 1] = static_cast<float>(params.attention_scale * std::sin(angle));
    }
  });
}

void compute(const RopeParams& params) {
  const int64_t heads = params.x.dim(1);
  const int64_t pairs = params.x.dim(2) / 2;
  for_each_row(params.x.dim(0), heads * 2 * pairs, [&](int64_t row) {
    const auto* table = row_of<const float>(params.table, row);
    for (int64_t head = 0; head < heads; head++) {
      const auto* x = row_of<const float>(params.x, row) + head * params.x.stride(1);
      rotate_row(row_of<float>(params.out, row) + head * params.out.stride(1), x, table, pairs);
    }
  });
}

}  // namespace cpu

}  // namespace loza
