#include "ops/combine/combine.h"

#include "cpu/convert.h"
#include "cpu/rows.h"
#include "cpu/simd.h"
#include "ops/cpu_ops.h"

namespace loza {

void CombineParams::check(DType act) const {
  expect("combine weights", weights, DType::kF32, -1, -1);
  const int64_t rows = weights.dim(0), slots = rows * weights.dim(1);
  expect("combine place", place, DType::kI32, slots);
  expect("combine y", y, act, slots, -1);
  expect("combine out", out, DType::kF32, rows, y.dim(1));
  if (identity) expect("combine identity", identity, act, rows, y.dim(1));
}

namespace cpu {

namespace {

// Columns summed at a time: the sum stays in the first-level cache while the slots pass by.
constexpr int64_t kColumns = 512;

LOZA_MULTIVERSION void add_scaled(float* sum, const float* source, float weight, int64_t width) {
  for (int64_t i = 0; i < width; i++) sum[i] += weight * source[i];
}

// The vector that slot `slot` of row `row` chose: an expert's result, or what zero experts return.
const float* source_of(const CombineParams& params, int64_t row, int64_t slot) {
  const int32_t place = params.place.as<const int32_t>()[slot];
  check(place < params.y.dim(0), "combine: place ", place, " is outside ", params.y);
  if (place >= 0) return row_of<const float>(params.y, place);
  check(static_cast<bool>(params.identity),
        "combine: a zero expert was chosen, but identity is absent");
  return row_of<const float>(params.identity, row);
}

void combine_row(const CombineParams& params, int64_t row) {
  const int64_t top_k = params.weights.dim(1), width = params.out.dim(1);
  const auto* weights = row_of<const float>(params.weights, row);
  auto* out = row_of<float>(params.out, row);
  for (int64_t begin = 0; begin < width; begin += kColumns) {
    const int64_t columns = std::min(kColumns, width - begin);
    float sum[kColumns] = {};
    for (int64_t i = 0; i < top_k; i++)
      add_scaled(sum, source_of(params, row, row * top_k + i) + begin, weights[i], columns);
    add_scaled(out + begin, sum, 1.0f, columns);
  }
}

}  // namespace

void compute(const CombineParams& params) {
  for_each_row(params.weights.dim(0), params.out.dim(1) * params.weights.dim(1),
               [&](int64_t row) { combine_row(params, row); });
}

}  // namespace cpu

}  // namespace loza
