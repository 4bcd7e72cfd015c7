#include "ops/linear/linear.h"

#include "cpu/product.h"
#include "ops/cpu_ops.h"

namespace loza {

void LinearParams::check(DType act) const {
  expect_weight("linear: weight", weight, 2);
  const int64_t n = weight.dim(0), k = weight.dim(1);
  expect("linear: weight", weight, weight.dtype, n, k);
  expect("linear: x", x, act, -1, k);
  expect("linear: out", out, out.dtype == act ? act : DType::kF32, x.dim(0), n);
  expect_scale("linear: scale", weight, scale);
}

namespace cpu {

void compute(const LinearParams& params) { run(product_of(params)); }

}  // namespace cpu

}  // namespace loza
