// Ops: every operation, as one interface that each backend implements. An operation call checks its
// shapes and enqueues work on the stream it belongs to; it never waits.
// "act" in the contracts is the stream's type of activations: f32 on the CPU, bf16 or f32 on CUDA.
// The residual stream is f32 everywhere: it sums up all layers.
#pragma once

#include "ops/absorb_query/absorb_query.h"
#include "ops/adamw/adamw.h"
#include "ops/attention/attention.h"
#include "ops/attention_backward/attention_backward.h"
#include "ops/blend/blend.h"
#include "ops/cast/cast.h"
#include "ops/clock/clock.h"
#include "ops/combine/combine.h"
#include "ops/combine_gradient/combine_gradient.h"
#include "ops/cross_entropy/cross_entropy.h"
#include "ops/dot/dot.h"
#include "ops/expert_plan/expert_plan.h"
#include "ops/fill/fill.h"
#include "ops/fill_random/fill_random.h"
#include "ops/gather_rows/gather_rows.h"
#include "ops/gather_rows_gradient/gather_rows_gradient.h"
#include "ops/grouped_linear/grouped_linear.h"
#include "ops/grouped_linear_gradient/grouped_linear_gradient.h"
#include "ops/head_linear/head_linear.h"
#include "ops/latent_store/latent_store.h"
#include "ops/linear/linear.h"
#include "ops/linear_gradient/linear_gradient.h"
#include "ops/mix_attention/mix_attention.h"
#include "ops/rms_norm/rms_norm.h"
#include "ops/rms_norm_gradient/rms_norm_gradient.h"
#include "ops/rope/rope.h"
#include "ops/route/route.h"
#include "ops/route_gradient/route_gradient.h"
#include "ops/sample/sample.h"
#include "ops/squared_difference/squared_difference.h"
#include "ops/sum_slots/sum_slots.h"
#include "ops/swiglu/swiglu.h"
#include "ops/swiglu_gradient/swiglu_gradient.h"

// The list of operations, one line each; a backend that lacks one does not link.
#define LOZA_FOR_EACH_OP(X)      \
  X(AbsorbQuery)                 \
  X(Adamw)                       \
  X(AttentionBackward)           \
  X(AttentionDecode)             \
  X(AttentionPlan)               \
  X(AttentionPrefill)            \
  X(Blend)                       \
  X(Cast)                        \
  X(ClipFactor)                  \
  X(Clock)                       \
  X(Combine)                     \
  X(CombineGradient)             \
  X(CrossEntropy)                \
  X(Dot)                         \
  X(ExpertPlan)                  \
  X(Fill)                        \
  X(FillRandom)                  \
  X(GatherRows)                  \
  X(GatherRowsGradient)          \
  X(GroupedLinear)               \
  X(GroupedLinearInputGradient)  \
  X(GroupedLinearWeightGradient) \
  X(HeadLinear)                  \
  X(LatentStore)                 \
  X(Linear)                      \
  X(LinearInputGradient)         \
  X(LinearWeightGradient)        \
  X(MixAttention)                \
  X(MixAttentionBackward)        \
  X(RmsNorm)                     \
  X(RmsNormGradient)             \
  X(Rope)                        \
  X(RopeTable)                   \
  X(Route)                       \
  X(RouteGradient)               \
  X(Sample)                      \
  X(SquaredDifference)           \
  X(SumSlots)                    \
  X(Swiglu)                      \
  X(SwigluGradient)

namespace loza {

class Ops {
 public:
  virtual ~Ops() = default;
  virtual DType activation() const = 0;
#define LOZA_DECLARE(Op) virtual void run(const Op##Params& params) = 0;
  LOZA_FOR_EACH_OP(LOZA_DECLARE)
#undef LOZA_DECLARE
};

}  // namespace loza
