#include "ops/absorb_query/absorb_query.h"

#include "ops/absorb_query/parts.h"
#include "ops/cpu_ops.h"

namespace loza {

void AbsorbQueryParams::check(DType act) const {
  expect_weight("absorb_query weight", weight, 3);
  expect("absorb_query rope_table", rope_table, DType::kF32, -1, -1);
  const int64_t rows = rope_table.dim(0), rope = rope_table.dim(1), heads = weight.dim(0);
  expect("absorb_query q", q, act, rows, heads, weight.dim(2) + rope);
  expect("absorb_query out", out, act, rows, heads, weight.dim(1) + rope);
  head_linear_of(*this).check(act);
  rope_of(*this).check(act);
}

namespace cpu {

void compute(const AbsorbQueryParams& params) {
  compute(head_linear_of(params));
  compute(rope_of(params));
}

}  // namespace cpu

}  // namespace loza
