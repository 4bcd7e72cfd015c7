#include "ops/linear_gradient/linear_gradient.h"

#include "cpu/product.h"
#include "ops/cpu_ops.h"

namespace loza {

void LinearInputGradientParams::check(DType act) const {
  expect_weight("linear gradient: weight", weight, 2);
  const int64_t n = weight.dim(0), k = weight.dim(1);
  expect("linear gradient: weight", weight, weight.dtype, n, k);
  expect("linear gradient: dy", dy, act, -1, n);
  expect("linear gradient: dx", dx, dx.dtype == act ? act : DType::kF32, dy.dim(0), k);
  expect_scale("linear gradient: scale", weight, scale);
}

void LinearWeightGradientParams::check(DType act) const {
  expect("linear gradient: dw", dw, DType::kF32, -1, -1);
  expect("linear gradient: dy", dy, act, -1, dw.dim(0));
  expect("linear gradient: x", x, act, dy.dim(0), dw.dim(1));
}

namespace cpu {

void compute(const LinearInputGradientParams& params) { run(product_of(params)); }

void compute(const LinearWeightGradientParams& params) {
  run(product_of(params), "linear gradient");
}

}  // namespace cpu

}  // namespace loza
