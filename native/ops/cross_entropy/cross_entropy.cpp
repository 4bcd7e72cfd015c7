#include "ops/cross_entropy/cross_entropy.h"

#include <cmath>

#include "cpu/rows.h"
#include "cpu/simd.h"
#include "ops/cpu_ops.h"

namespace loza {

void CrossEntropyParams::check(DType act) const {
  expect("cross_entropy logits", logits, DType::kF32, -1, -1);
  const int64_t rows = logits.dim(0);
  expect("cross_entropy loss", loss, DType::kF32, rows);
  expect("cross_entropy targets", targets, DType::kI32, rows);
  expect("cross_entropy weights", weights, DType::kF32, rows);
  if (dlogits)
    expect("cross_entropy dlogits", dlogits, dlogits.dtype == act ? act : DType::kF32, rows,
           logits.dim(1));
}

namespace cpu {

namespace {

using simd::f32x8;
using simd::kWidth;

LOZA_MULTIVERSION float largest_of(const float* x, int64_t width) {
  f32x8 most = simd::splat(x[0]);
  int64_t i = 0;
  for (; i + kWidth <= width; i += kWidth) most = simd::max(most, simd::load(x + i));
  float largest = simd::max_lane(most);
  for (; i < width; i++) largest = std::max(largest, x[i]);
  return largest;
}

// Sum of exp(x - largest). The eight lanes become float64 every so often, so that long rows lose
// nothing.
LOZA_MULTIVERSION double sum_of_exp(const float* x, float largest, int64_t width) {
  constexpr int64_t kRun = 1024;
  double total = 0;
  for (int64_t begin = 0; begin < width; begin += kRun) {
    const int64_t end = std::min(width, begin + kRun);
    f32x8 lanes = {};
    int64_t i = begin;
    for (; i + kWidth <= end; i += kWidth) lanes += simd::exp(simd::load(x + i) - largest);
    total += simd::sum(lanes);
    for (; i < end; i++) total += std::exp(x[i] - largest);
  }
  return total;
}

// out = factor * exp(x - largest); `out` may be `x`.
LOZA_MULTIVERSION void scaled_exp(float* out, const float* x, float largest, float factor,
                                  int64_t width) {
  int64_t i = 0;
  for (; i + kWidth <= width; i += kWidth)
    simd::store(out + i, simd::exp(simd::load(x + i) - largest) * factor);
  for (; i < width; i++) out[i] = std::exp(x[i] - largest) * factor;
}

void cross_entropy_row(const CrossEntropyParams& params, int64_t row) {
  const int64_t vocabulary = params.logits.dim(1);
  const float weight = params.weights.as<const float>()[row];
  float& loss = params.loss.as<float>()[row];
  auto* gradient = params.dlogits ? row_of<float>(params.dlogits, row) : nullptr;
  if (weight == 0) {
    loss = 0;
    if (gradient) std::fill_n(gradient, vocabulary, 0.0f);
    return;
  }
  const int32_t target = params.targets.as<const int32_t>()[row];
  if (target < 0 || target >= vocabulary)
    fail(code::kInvalidArg, "target ", target, " is outside a vocabulary of ", vocabulary);
  const auto* logits = row_of<const float>(params.logits, row);
  const float largest = largest_of(logits, vocabulary), at_target = logits[target];
  const double sum = sum_of_exp(logits, largest, vocabulary);
  loss = static_cast<float>(weight * (std::log(sum) + (double{largest} - at_target)));
  if (!gradient) return;
  const double probability = std::exp(double{at_target} - largest) / sum;
  scaled_exp(gradient, logits, largest, static_cast<float>(weight / sum), vocabulary);
  gradient[target] = static_cast<float>(weight * (probability - 1));
}

// A logit costs about as much as this many element copies.
constexpr int64_t kLogitCost = 8;

}  // namespace

void compute(const CrossEntropyParams& params) {
  for_each_row(params.logits.dim(0), params.logits.dim(1) * kLogitCost,
               [&](int64_t row) { cross_entropy_row(params, row); });
}

}  // namespace cpu

}  // namespace loza
