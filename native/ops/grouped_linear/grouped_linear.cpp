#include "ops/grouped_linear/grouped_linear.h"

#include "cpu/product.h"
#include "ops/cpu_ops.h"

namespace loza {

void GroupedLinearParams::check(DType act) const {
  expect_weight("grouped_linear: weight", weight, 3);
  const int64_t experts = weight.dim(0), n = weight.dim(1), k = weight.dim(2);
  expect("grouped_linear: weight", weight, weight.dtype, experts, n, k);
  expect("grouped_linear: x", x, act, -1, k);
  expect("grouped_linear: out", out, act, -1, n);
  expect("grouped_linear: starts", starts, DType::kI32, experts + 1);
  if (order) expect("grouped_linear: order", order, DType::kI32, out.dim(0));
  loza::check(top_k >= 1, "grouped_linear: top_k is ", top_k);
  expect_scale("grouped_linear: scale", weight, scale);
}

namespace cpu {

void compute(const GroupedLinearParams& params) { run(product_of(params), "grouped_linear"); }

}  // namespace cpu

}  // namespace loza
