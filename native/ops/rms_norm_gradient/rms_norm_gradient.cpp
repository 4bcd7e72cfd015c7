#include "ops/rms_norm_gradient/rms_norm_gradient.h"

#include <vector>

#include "cpu/rms.h"
#include "cpu/rows.h"
#include "ops/cpu_ops.h"

namespace loza {

void RmsNormGradientParams::check(DType act) const {
  const auto either = [act](const Tensor& tensor) {
    return tensor.dtype == act ? act : DType::kF32;
  };
  expect("rms_norm gradient: x", x, either(x), -1, -1);
  expect("rms_norm gradient: dy", dy, either(dy), x.dim(0), x.dim(1));
  expect("rms_norm gradient: dx", dx, either(dx), x.dim(0), x.dim(1));
  cpu::expect_float("rms_norm gradient: weight", weight, x.dim(1));
  if (dweight) expect("rms_norm gradient: dweight", dweight, DType::kF32, x.dim(1));
}

namespace cpu {

namespace {

// Columns of dweight that one thread owns.
constexpr int64_t kColumns = 64;

template <class Weight>
LOZA_MULTIVERSION float sum_of_products(const float* dy, const float* x, const Weight* weight,
                                        int64_t width) {
  float lanes[kSumLanes] = {};
  int64_t i = 0;
  for (; i + kSumLanes <= width; i += kSumLanes)
    for (int64_t lane = 0; lane < kSumLanes; lane++)
      lanes[lane] += dy[i + lane] * x[i + lane] * widen(weight[i + lane]);
  double total = 0;
  for (; i < width; i++) total += static_cast<double>(dy[i]) * x[i] * widen(weight[i]);
  for (const float lane : lanes) total += lane;
  return static_cast<float>(total);
}

struct RowFactors {
  float of_dy, of_x;
  bool accumulate;
};

// dx (+)= of_dy * weight * dy - of_x * x; `dx` may be `dy`.
template <class Weight>
LOZA_MULTIVERSION void gradient_row(float* dx, const float* dy, const float* x,
                                    const Weight* weight, int64_t width, RowFactors factors) {
  const float keep = factors.accumulate ? 1.0f : 0.0f;
#pragma GCC ivdep
  for (int64_t i = 0; i < width; i++) {
    const float value = factors.of_dy * widen(weight[i]) * dy[i] - factors.of_x * x[i];
    dx[i] = factors.accumulate ? keep * dx[i] + value : value;
  }
}

LOZA_MULTIVERSION void add_products(float* sum, const float* dy, const float* x, float factor,
                                    int64_t width) {
#pragma GCC ivdep
  for (int64_t i = 0; i < width; i++) sum[i] += dy[i] * (x[i] * factor);
}

// One over the root mean square of each row.
void measure_rows(const RmsNormGradientParams& params, std::vector<float>& inverse) {
  const int64_t rows = params.x.dim(0), width = params.x.dim(1);
  inverse.resize(rows);
  for_each_row(rows, width, [&](int64_t row) {
    const float mean =
        sum_of_squares(row_of<const float>(params.x, row), width) / static_cast<float>(width);
    inverse[row] = 1 / std::sqrt(mean + params.eps);
  });
}

// Each thread owns some columns, and adds up their rows in ascending order.
void add_weight_gradient(const RmsNormGradientParams& params, const std::vector<float>& inverse) {
  const int64_t rows = params.x.dim(0), width = params.x.dim(1);
  for_each_row((width + kColumns - 1) / kColumns, rows * kColumns, [&](int64_t block) {
    const int64_t first = block * kColumns, columns = std::min(kColumns, width - first);
    for (int64_t row = 0; row < rows; row++)
      add_products(params.dweight.as<float>() + first, row_of<const float>(params.dy, row) + first,
                   row_of<const float>(params.x, row) + first, params.scale * inverse[row],
                   columns);
  });
}

}  // namespace

void compute(const RmsNormGradientParams& params) {
  thread_local std::vector<float> kept;
  std::vector<float>& inverse = kept;  // the lambdas run on other threads too
  const int64_t rows = params.x.dim(0), width = params.x.dim(1);
  measure_rows(params, inverse);
  if (params.dweight) add_weight_gradient(params, inverse);  // first: dx may overwrite dy
  with_float_type(params.weight.dtype, [&]<class T>(T) {
    const auto* weight = params.weight.as<const T>();
    for_each_row(rows, 2 * width, [&](int64_t row) {
      const auto* dy = row_of<const float>(params.dy, row);
      const auto* x = row_of<const float>(params.x, row);
      const float r = inverse[row], factor = params.scale * r;
      const float mean = sum_of_products(dy, x, weight, width) / static_cast<float>(width);
      gradient_row(row_of<float>(params.dx, row), dy, x, weight, width,
                   {factor, factor * mean * r * r, params.accumulate});
    });
  });
}

}  // namespace cpu

}  // namespace loza
