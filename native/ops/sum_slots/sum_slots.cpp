#include "ops/sum_slots/sum_slots.h"

#include "cpu/rows.h"
#include "ops/cpu_ops.h"

namespace loza {

void SumSlotsParams::check(DType act) const {
  expect("sum_slots out", out, DType::kF32, -1, -1);
  expect("sum_slots y", y, y.dtype == act ? act : DType::kF32, -1, out.dim(1));
  expect("sum_slots place", place, DType::kI32, y.dim(0));
  const bool whole = out.dim(0) == 0 ? y.dim(0) == 0 : y.dim(0) % out.dim(0) == 0;
  loza::check(whole, "sum_slots: ", y, " has no whole number of slots for each row of ", out);
}

namespace cpu {

namespace {

LOZA_MULTIVERSION void add(float* sum, const float* x, int64_t width) {
  for (int64_t i = 0; i < width; i++) sum[i] += x[i];
}

}  // namespace

void compute(const SumSlotsParams& params) {
  const int64_t rows = params.out.dim(0), width = params.out.dim(1);
  if (rows == 0) return;
  const int64_t top_k = params.y.dim(0) / rows;
  for_each_row(rows, width * top_k, [&](int64_t row) {
    for (int64_t slot = row * top_k; slot < (row + 1) * top_k; slot++) {
      const int32_t place = params.place.as<const int32_t>()[slot];
      check(place < params.y.dim(0), "sum_slots: place ", place, " is outside ", params.y);
      if (place >= 0)
        add(row_of<float>(params.out, row), row_of<const float>(params.y, place), width);
    }
  });
}

}  // namespace cpu

}  // namespace loza
