#pragma once

#include "core/tensor.h"

namespace loza {

enum class Scoring : int32_t { kSoftmax = 0, kSigmoid = 1 };
// How a group of experts is scored when only `top_groups` of them may be chosen from.
enum class GroupScore : int32_t { kMax = 0, kTopTwoSum = 1 };

// Chooses top_k experts a token (model-spec sections 1.4 and 4.2):
//   p = softmax(logits) or sigmoid(logits); choice = p + bias;
//   with groups > 1, experts outside the top_groups best groups are not chosen (kMax: their choice
//   becomes 0; kTopTwoSum: -inf, as in DeepSeek V2 and V3);
//   ids = the top_k largest choices, ties to the lower id, best first;
//   weights = p[ids], divided by (their sum + 1e-20) if normalize, times scale.
struct RouteParams {
  Tensor ids;      // i32 [rows, top_k]
  Tensor weights;  // f32 [rows, top_k]
  Tensor logits;   // f32 [rows, experts], zero experts included
  Tensor bias;     // f32 [experts]; may be absent
  Scoring scoring = Scoring::kSoftmax;
  GroupScore group_score = GroupScore::kMax;
  int32_t groups = 1;
  int32_t top_groups = 1;
  bool normalize = false;
  float scale = 1;

  void check(DType act) const;
};

}  // namespace loza
