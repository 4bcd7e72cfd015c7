#include "ops/rms_norm/rms_norm.h"

#include "cpu/rms.h"
#include "cpu/rows.h"
#include "ops/cpu_ops.h"

namespace loza {

void RmsNormParams::check(DType act) const {
  expect("rms_norm x", x, x.dtype == act ? act : DType::kF32, -1, -1);
  expect("rms_norm out", out, act, x.dim(0), x.dim(1));
  cpu::expect_float("rms_norm weight", weight, x.dim(1));
}

namespace cpu {

void compute(const RmsNormParams& params) {
  const int64_t width = params.x.dim(1);
  with_float_type(params.weight.dtype, [&]<class T>(T) {
    for_each_row(params.x.dim(0), width, [&](int64_t row) {
      rms_norm_row(row_of<float>(params.out, row), row_of<const float>(params.x, row),
                   params.weight.as<const T>(), width, params.eps, params.scale);
    });
  });
}

}  // namespace cpu

}  // namespace loza
