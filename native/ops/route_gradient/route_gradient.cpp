#include "ops/route_gradient/route_gradient.h"

#include <cmath>
#include <vector>

#include "cpu/rows.h"
#include "ops/cpu_ops.h"

namespace loza {

void RouteGradientParams::check(DType act) const {
  expect("route gradient: logits", logits, DType::kF32, -1, -1);
  const int64_t rows = logits.dim(0), experts = logits.dim(1);
  expect("route gradient: ids", ids, DType::kI32, rows, -1);
  expect("route gradient: dweights", dweights, DType::kF32, rows, ids.dim(1));
  expect("route gradient: dlogits", dlogits, dlogits.dtype == act ? act : DType::kF32, rows,
         experts);
}

namespace cpu {

namespace {

// p of every expert, in float64: a row is small.
void score_row(const RouteGradientParams& params, const float* logits, std::vector<double>& p) {
  const auto experts = static_cast<int64_t>(p.size());
  if (params.scoring == Scoring::kSigmoid) {
    for (int64_t e = 0; e < experts; e++) p[e] = 1 / (1 + std::exp(-double{logits[e]}));
    return;
  }
  const double largest = *std::max_element(logits, logits + experts);
  double total = 0;
  for (int64_t e = 0; e < experts; e++) total += p[e] = std::exp(logits[e] - largest);
  for (double& value : p) value /= total;
}

void route_gradient_row(const RouteGradientParams& params, int64_t row, std::vector<double>& p) {
  const int64_t experts = params.logits.dim(1), top_k = params.ids.dim(1);
  const auto* ids = row_of<const int32_t>(params.ids, row);
  const auto* dweights = row_of<const float>(params.dweights, row);
  auto* dlogits = row_of<float>(params.dlogits, row);
  p.resize(experts);
  score_row(params, row_of<const float>(params.logits, row), p);
  double sum = 1e-20, weighted = 0;
  for (int64_t i = 0; i < top_k; i++) {
    check(ids[i] >= 0 && ids[i] < experts, "route gradient: ", ids[i], " is no expert of ",
          params.logits);
    sum += p[ids[i]];
    weighted += dweights[i] * p[ids[i]];
  }
  const double factor = params.normalize ? params.scale / sum : double{params.scale};
  const double shift = params.normalize ? weighted / sum : 0.0;
  const bool softmax = params.scoring == Scoring::kSoftmax;
  const double mean = softmax ? factor * (weighted - shift * (sum - 1e-20)) : 0.0;
  for (int64_t e = 0; e < experts; e++) dlogits[e] = static_cast<float>(-p[e] * mean);
  for (int64_t i = 0; i < top_k; i++) {
    const double dp = factor * (dweights[i] - shift), score = p[ids[i]];
    dlogits[ids[i]] = static_cast<float>(softmax ? score * (dp - mean) : score * (1 - score) * dp);
  }
}

// A logit costs about as much as this many element copies.
constexpr int64_t kLogitCost = 8;

}  // namespace

void compute(const RouteGradientParams& params) {
  for_each_row(params.logits.dim(0), params.logits.dim(1) * kLogitCost, [&](int64_t row) {
    thread_local std::vector<double> scores;
    route_gradient_row(params, row, scores);
  });
}

}  // namespace cpu

}  // namespace loza
