#include "ops/grouped_linear_gradient/grouped_linear_gradient.h"

#include "cpu/product.h"
#include "ops/cpu_ops.h"

namespace loza {

void GroupedLinearInputGradientParams::check(DType act) const {
  expect_weight("grouped_linear gradient: weight", weight, 3);
  loza::check(weight.dtype != DType::kF8E4M3,
              "grouped_linear gradient: f8e4m3 experts have none; dequantise the checkpoint to "
              "bf16, got ",
              weight);
  const int64_t experts = weight.dim(0), n = weight.dim(1), k = weight.dim(2);
  expect("grouped_linear gradient: weight", weight, weight.dtype, experts, n, k);
  expect("grouped_linear gradient: dy", dy, act, -1, n);
  expect("grouped_linear gradient: dx", dx, dx.dtype == act ? act : DType::kF32, dy.dim(0), k);
  expect("grouped_linear gradient: starts", starts, DType::kI32, experts + 1);
}

void GroupedLinearWeightGradientParams::check(DType act) const {
  expect("grouped_linear gradient: dw", dw, DType::kF32, -1, -1, -1);
  expect("grouped_linear gradient: dy", dy, act, -1, dw.dim(1));
  expect("grouped_linear gradient: x", x, act, -1, dw.dim(2));
  expect("grouped_linear gradient: starts", starts, DType::kI32, dw.dim(0) + 1);
  if (order) expect("grouped_linear gradient: order", order, DType::kI32, dy.dim(0));
  loza::check(top_k >= 1, "grouped_linear gradient: top_k is ", top_k);
}

namespace cpu {

void compute(const GroupedLinearInputGradientParams& params) {
  run(product_of(params), "grouped_linear gradient");
}

void compute(const GroupedLinearWeightGradientParams& params) {
  run(product_of(params), "grouped_linear gradient");
}

}  // namespace cpu

}  // namespace loza
