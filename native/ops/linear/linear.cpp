#include "ops/linear/linear.h"

#include "core/parallel.h"
#include "cpu/gemm.h"
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
namespace {

LOZA_MULTIVERSION void run_task(const gemm::Task& task) { gemm::run_task(task); }

}  // namespace

void compute(const LinearParams& params) {
  const int64_t rows = params.x.dim(0), n = params.weight.dim(0), k = params.weight.dim(1);
  const int64_t blocks = (rows + gemm::kRowBlock - 1) / gemm::kRowBlock;
  const int64_t panels = (n + gemm::kPanel - 1) / gemm::kPanel;
  const int64_t work = std::min(rows, gemm::kRowBlock) * std::min(n, gemm::kPanel) * k;
  parallel_for(panels * blocks, gemm::grain_of(work), [&](int64_t begin, int64_t end) {
    const float* x[gemm::kRowBlock];
    float* out[gemm::kRowBlock];
    for (int64_t item = begin; item < end; item++) {
      const int64_t first = item % blocks * gemm::kRowBlock;
      const int64_t count = std::min(gemm::kRowBlock, rows - first);
      for (int64_t r = 0; r < count; r++) {
        x[r] = params.x.as<float>() + (first + r) * params.x.stride(0);
        out[r] = params.out.as<float>() + (first + r) * params.out.stride(0);
      }
      const int64_t column = item / blocks * gemm::kPanel;
      run_task({.x = x,
                .out = out,
                .rows = count,
                .n_begin = column,
                .n_end = std::min(n, column + gemm::kPanel),
                .k = k,
                .weight = params.weight.data,
                .dtype = params.weight.dtype,
                .weight_stride = params.weight.stride(0),
                .scale = params.scale.as<float>(),
                .scale_stride = params.scale ? params.scale.stride(0) : 0,
                .accumulate = params.accumulate});
    }
  });
}

}  // namespace cpu
}  // namespace loza
