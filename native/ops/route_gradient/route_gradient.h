#pragma once

#include "core/tensor.h"
#include "ops/route/route.h"

namespace loza {

// The gradient of route through the weights; which experts are chosen is held constant, so the
// correction bias and the groups have no part in it. With p as in route, and S = sum p[ids] + 1e-20:
//   dp[ids[i]] = scale * dweights[i]                                            not normalized
//              = scale / S * (dweights[i] - sum_j dweights[j] * p[ids[j]] / S)  normalized
//   dlogits = p * (dp - sum_e dp[e] * p[e])  softmax,   p * (1 - p) * dp  sigmoid
struct RouteGradientParams {
  Tensor dlogits;   // act | f32 [rows, experts]
  Tensor dweights;  // f32 [rows, top_k]
  Tensor logits;    // f32 [rows, experts], as given to route
  Tensor ids;       // i32 [rows, top_k], from route
  Scoring scoring = Scoring::kSoftmax;
  bool normalize = false;
  float scale = 1;

  void check(DType act) const;
};

}  // namespace loza
