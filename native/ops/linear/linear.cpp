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
  const bool quantised = weight.dtype == DType::kF8E4M3;
  loza::check(quantised == static_cast<bool>(scale),
              "linear: a scale belongs to f8e4m3 weights, got weight ", weight, " and ", scale);
  if (!quantised) return;
  expect("linear: scale", scale, DType::kF32, (n + kScaleBlock - 1) / kScaleBlock,
         (k + kScaleBlock - 1) / kScaleBlock);
}

namespace cpu {

void compute(const LinearParams& params) { run(product_of(params)); }

}  // namespace cpu

}  // namespace loza
