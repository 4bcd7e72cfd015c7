#include "ops/combine_gradient/combine_gradient.h"

#include "cpu/rms.h"
#include "cpu/rows.h"
#include "ops/cpu_ops.h"

namespace loza {

void CombineGradientParams::check(DType act) const {
  expect("combine gradient: weights", weights, DType::kF32, -1, -1);
  const int64_t rows = weights.dim(0), slots = rows * weights.dim(1);
  expect("combine gradient: dweights", dweights, DType::kF32, rows, weights.dim(1));
  expect("combine gradient: place", place, DType::kI32, slots);
  expect("combine gradient: y", y, act, slots, -1);
  expect("combine gradient: dy", dy, act, slots, y.dim(1));
  expect("combine gradient: dout", dout, DType::kF32, rows, y.dim(1));
  loza::check(static_cast<bool>(identity) == static_cast<bool>(didentity),
              "combine gradient: didentity belongs to identity, got ", didentity, " and ",
              identity);
  if (!identity) return;
  expect("combine gradient: identity", identity, act, rows, y.dim(1));
  expect("combine gradient: didentity", didentity, DType::kF32, rows, y.dim(1));
}

namespace cpu {

namespace {

LOZA_MULTIVERSION float dot_row(const float* x, const float* y, int64_t width) {
  float lanes[kSumLanes] = {};
  int64_t i = 0;
  for (; i + kSumLanes <= width; i += kSumLanes)
    for (int64_t lane = 0; lane < kSumLanes; lane++) lanes[lane] += x[i + lane] * y[i + lane];
  double total = 0;
  for (; i < width; i++) total += static_cast<double>(x[i]) * y[i];
  for (const float lane : lanes) total += lane;
  return static_cast<float>(total);
}

LOZA_MULTIVERSION void scale_to(float* out, const float* x, float factor, int64_t width) {
  for (int64_t i = 0; i < width; i++) out[i] = factor * x[i];
}

LOZA_MULTIVERSION void add_scaled(float* sum, const float* x, float factor, int64_t width) {
  for (int64_t i = 0; i < width; i++) sum[i] += factor * x[i];
}

void gradient_of_row(const CombineGradientParams& params, int64_t row) {
  const int64_t top_k = params.weights.dim(1), width = params.y.dim(1);
  const auto* weights = row_of<const float>(params.weights, row);
  const auto* dout = row_of<const float>(params.dout, row);
  auto* dweights = row_of<float>(params.dweights, row);
  for (int64_t i = 0; i < top_k; i++) {
    const int32_t place = params.place.as<const int32_t>()[row * top_k + i];
    check(place < params.y.dim(0), "combine gradient: place ", place, " is outside ", params.y);
    if (place >= 0) {
      dweights[i] = dot_row(dout, row_of<const float>(params.y, place), width);
      scale_to(row_of<float>(params.dy, place), dout, weights[i], width);
      continue;
    }
    check(static_cast<bool>(params.identity),
          "combine gradient: a zero expert was chosen, but identity is absent");
    dweights[i] = dot_row(dout, row_of<const float>(params.identity, row), width);
    add_scaled(row_of<float>(params.didentity, row), dout, weights[i], width);
  }
}

}  // namespace

void compute(const CombineGradientParams& params) {
  for_each_row(params.weights.dim(0), 2 * params.y.dim(1) * params.weights.dim(1),
               [&](int64_t row) { gradient_of_row(params, row); });
}

}  // namespace cpu

}  // namespace loza
