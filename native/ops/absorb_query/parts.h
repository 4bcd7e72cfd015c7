// absorb_query as the two operations that it joins.
#pragma once

#include "ops/absorb_query/absorb_query.h"
#include "ops/head_linear/head_linear.h"
#include "ops/rope/rope.h"

namespace loza {

inline HeadLinearParams head_linear_of(const AbsorbQueryParams& params) {
  const int64_t latent = params.weight.dim(1), nope = params.weight.dim(2);
  return {.out = params.out.columns(0, latent),
          .x = params.q.columns(0, nope),
          .weight = params.weight};
}

inline RopeParams rope_of(const AbsorbQueryParams& params) {
  const int64_t latent = params.weight.dim(1), nope = params.weight.dim(2);
  return {.out = params.out.columns(latent, params.out.dim(2)),
          .x = params.q.columns(nope, params.q.dim(2)),
          .table = params.rope_table};
}

}  // namespace loza
