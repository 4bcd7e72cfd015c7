#include "ops/squared_difference/squared_difference.h"

#include "cpu/rms.h"
#include "cpu/rows.h"
#include "ops/cpu_ops.h"

namespace loza {

void SquaredDifferenceParams::check(DType act) const {
  const auto either = [act](const Tensor& tensor) {
    return tensor.dtype == act ? act : DType::kF32;
  };
  expect("squared_difference x", x, either(x), -1, -1);
  expect("squared_difference target", target, either(target), x.dim(0), x.dim(1));
  expect("squared_difference loss", loss, DType::kF32, x.dim(0));
  expect("squared_difference weights", weights, DType::kF32, x.dim(0));
  if (dx) expect("squared_difference dx", dx, either(dx), x.dim(0), x.dim(1));
}

namespace cpu {

namespace {

LOZA_MULTIVERSION double sum_of_squared_differences(const float* x, const float* y, int64_t width) {
  float lanes[kSumLanes] = {};
  int64_t i = 0;
  for (; i + kSumLanes <= width; i += kSumLanes)
    for (int64_t lane = 0; lane < kSumLanes; lane++) {
      const float difference = x[i + lane] - y[i + lane];
      lanes[lane] += difference * difference;
    }
  double total = 0;
  for (; i < width; i++) total += static_cast<double>(x[i] - y[i]) * (x[i] - y[i]);
  for (const float lane : lanes) total += lane;
  return total;
}

LOZA_MULTIVERSION void scaled_difference(float* out, const float* x, const float* y, float factor,
                                         int64_t width) {
#pragma GCC ivdep
  for (int64_t i = 0; i < width; i++) out[i] = factor * (x[i] - y[i]);
}

}  // namespace

void compute(const SquaredDifferenceParams& params) {
  const int64_t width = params.x.dim(1);
  for_each_row(params.x.dim(0), 2 * width, [&](int64_t row) {
    const auto* x = row_of<const float>(params.x, row);
    const auto* target = row_of<const float>(params.target, row);
    const double factor =
        double{params.weights.as<const float>()[row]} / static_cast<double>(width);
    params.loss.as<float>()[row] =
        static_cast<float>(factor * sum_of_squared_differences(x, target, width));
    if (params.dx)
      scaled_difference(row_of<float>(params.dx, row), x, target, static_cast<float>(2 * factor),
                        width);
  });
}

}  // namespace cpu

}  // namespace loza
