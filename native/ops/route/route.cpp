#include "ops/route/route.h"

#include <cmath>
#include <vector>

#include "cpu/convert.h"
#include "cpu/rows.h"
#include "ops/cpu_ops.h"

namespace loza {

void RouteParams::check(DType /*act*/) const {
  expect("route ids", ids, DType::kI32, -1, -1);
  const int64_t rows = ids.dim(0), top_k = ids.dim(1);
  expect("route weights", weights, DType::kF32, rows, top_k);
  expect("route logits", logits, DType::kF32, rows, -1);
  const int64_t experts = logits.dim(1);
  if (bias) expect("route bias", bias, DType::kF32, experts);
  loza::check(groups >= 1 && experts % groups == 0, "route: ", groups, " groups do not divide ",
              experts, " experts");
  loza::check(top_groups >= 1 && top_groups <= groups, "route: top_groups is ", top_groups, " of ",
              groups);
  const int64_t group_size = experts / groups;
  loza::check(top_k >= 1 && top_k <= top_groups * group_size, "route: cannot choose ", top_k,
              " experts out of ", top_groups * group_size);
  loza::check(groups == 1 || group_score == GroupScore::kMax || group_size >= 2,
              "route: the two best of a group of ", group_size);
}

namespace cpu {

namespace {

// Working memory of one thread.
struct Scratch {
  std::vector<float> scores;   // p
  std::vector<float> choices;  // p + bias, then masked by group
  TopList groups;
  TopList chosen;
};

void softmax(std::vector<float>& scores, const float* logits) {
  const auto experts = static_cast<int64_t>(scores.size());
  const float largest = *std::max_element(logits, logits + experts);
  double total = 0;
  for (int64_t e = 0; e < experts; e++) total += scores[e] = std::exp(logits[e] - largest);
  const float factor = static_cast<float>(1 / total);
  for (float& score : scores) score *= factor;
}

void sigmoid(std::vector<float>& scores, const float* logits) {
  for (size_t e = 0; e < scores.size(); e++) scores[e] = 1.0f / (1.0f + std::exp(-logits[e]));
}

float score_of_group(GroupScore kind, const float* choices, int64_t size) {
  float first = -INFINITY, second = -INFINITY;
  for (int64_t i = 0; i < size; i++) {
    // In this order of arguments, NaN loses.
    second = std::max(second, std::min(choices[i], first));
    first = std::max(first, choices[i]);
  }
  return kind == GroupScore::kMax ? first : first + second;
}

// Masks the choices of every group but the best ones.
void mask_groups(const RouteParams& params, Scratch& scratch) {
  auto& choices = scratch.choices;
  const int64_t size = static_cast<int64_t>(choices.size()) / params.groups;
  TopList& best = scratch.groups;
  best.reset(params.top_groups);
  for (int32_t group = 0; group < params.groups; group++)
    best.offer(score_of_group(params.group_score, &choices[group * size], size), group);
  const auto is_kept = [&](int32_t group) {
    const auto& entries = best.entries();
    return std::any_of(entries.begin(), entries.end(),
                       [&](const auto& entry) { return entry.id == group; });
  };
  const float masked = params.group_score == GroupScore::kMax ? 0.0f : -INFINITY;
  for (int32_t group = 0; group < params.groups; group++)
    if (!is_kept(group)) std::fill_n(choices.begin() + group * size, size, masked);
}

void route_row(const RouteParams& params, int64_t row, Scratch& scratch) {
  const int64_t experts = params.logits.dim(1), top_k = params.ids.dim(1);
  const auto* logits = row_of<const float>(params.logits, row);
  scratch.scores.resize(experts);
  if (params.scoring == Scoring::kSoftmax)
    softmax(scratch.scores, logits);
  else
    sigmoid(scratch.scores, logits);

  scratch.choices = scratch.scores;
  if (params.bias)
    for (int64_t e = 0; e < experts; e++) scratch.choices[e] += params.bias.as<const float>()[e];
  if (params.groups > 1) mask_groups(params, scratch);

  TopList& chosen = scratch.chosen;
  chosen.reset(top_k);
  for (int64_t e = 0; e < experts; e++) chosen.offer(scratch.choices[e], static_cast<int32_t>(e));
  auto* ids = row_of<int32_t>(params.ids, row);
  auto* weights = row_of<float>(params.weights, row);
  float sum = 0;
  for (int64_t i = 0; i < top_k; i++) {
    ids[i] = chosen.entries()[i].id;
    weights[i] = scratch.scores[ids[i]];
    sum += weights[i];
  }
  const float factor = params.normalize ? params.scale / (sum + 1e-20f) : params.scale;
  for (int64_t i = 0; i < top_k; i++) weights[i] *= factor;
}

// A logit costs about as much as this many element copies.
constexpr int64_t kLogitCost = 8;

}  // namespace

void compute(const RouteParams& params) {
  const int64_t rows = params.logits.dim(0), experts = params.logits.dim(1);
  for_each_row(rows, experts * kLogitCost, [&](int64_t row) {
    thread_local Scratch scratch;
    route_row(params, row, scratch);
  });
}

}  // namespace cpu

}  // namespace loza
