#include "ops/head_linear/head_linear.h"

#include "cpu/product.h"
#include "ops/cpu_ops.h"

namespace loza {

void HeadLinearParams::check(DType act) const {
  expect_weight("head_linear: weight", weight, 3);
  loza::check(weight.dtype != DType::kF8E4M3, "head_linear: weight is ", weight);
  const int64_t heads = weight.dim(0), n = weight.dim(1), k = weight.dim(2);
  loza::check(weight.stride(2) == 1 || weight.stride(1) == 1 || n == 1 || k == 1,
              "head_linear: neither n nor k of the weight is contiguous: ", weight);
  expect("head_linear: x", x, act, -1, heads, k);
  expect("head_linear: out", out, out.dtype == act ? act : DType::kF32, x.dim(0), heads, n);
}

namespace cpu {

void compute(const HeadLinearParams& params) { run(product_of(params)); }

}  // namespace cpu

}  // namespace loza
