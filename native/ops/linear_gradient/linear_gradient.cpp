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
  const bool quantised = weight.dtype == DType::kF8E4M3;
  loza::check(quantised == static_cast<bool>(scale),
              "linear gradient: a scale belongs to f8e4m3 weights, got weight ", weight, " and ",
              scale);
  if (!quantised) return;
  expect("linear gradient: scale", scale, DType::kF32, (n + kScaleBlock - 1) / kScaleBlock,
         (k + kScaleBlock - 1) / kScaleBlock);
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
