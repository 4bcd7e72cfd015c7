#include "ops/linear_gradient/linear_gradient.h"

#include "core/parallel.h"
#include "cpu/axpy.h"
#include "cpu/outer.h"
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
namespace {

LOZA_MULTIVERSION void run_axpy(const gemm::AxpyTask& task) { gemm::run_axpy(task); }
LOZA_MULTIVERSION void run_outer(const gemm::OuterTask& task) { gemm::run_outer(task); }

}  // namespace

void compute(const LinearInputGradientParams& params) {
  const int64_t rows = params.dy.dim(0), n = params.weight.dim(0), k = params.weight.dim(1);
  const int64_t blocks = (rows + gemm::kRowBlock - 1) / gemm::kRowBlock;
  const int64_t panels = (k + gemm::kPanel - 1) / gemm::kPanel;
  const int64_t work = std::min(rows, gemm::kRowBlock) * std::min(k, gemm::kPanel) * n;
  parallel_for(panels * blocks, gemm::grain_of(work), [&](int64_t begin, int64_t end) {
    const float* dy[gemm::kRowBlock];
    float* dx[gemm::kRowBlock];
    for (int64_t item = begin; item < end; item++) {
      const int64_t first = item % blocks * gemm::kRowBlock;
      const int64_t count = std::min(gemm::kRowBlock, rows - first);
      for (int64_t r = 0; r < count; r++) {
        dy[r] = params.dy.as<float>() + (first + r) * params.dy.stride(0);
        dx[r] = params.dx.as<float>() + (first + r) * params.dx.stride(0);
      }
      const int64_t column = item / blocks * gemm::kPanel;
      run_axpy({.x = dy,
                .out = dx,
                .rows = count,
                .n_begin = column,
                .n_end = std::min(k, column + gemm::kPanel),
                .k = n,
                .weight = params.weight.data,
                .dtype = params.weight.dtype,
                .weight_stride = params.weight.stride(0),
                .scale = params.scale.as<float>(),
                .scale_stride = params.scale ? params.scale.stride(0) : 0,
                .accumulate = params.accumulate});
    }
  });
}

void compute(const LinearWeightGradientParams& params) {
  const int64_t rows = params.dy.dim(0), n = params.dw.dim(0), k = params.dw.dim(1);
  const int64_t across = (n + gemm::kOuterPanel - 1) / gemm::kOuterPanel;
  const int64_t along = (k + gemm::kOuterPanel - 1) / gemm::kOuterPanel;
  const int64_t work = rows * std::min(n, gemm::kOuterPanel) * std::min(k, gemm::kOuterPanel);
  parallel_for(across * along, gemm::grain_of(work), [&](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; item++) {
      const int64_t first_n = item / along * gemm::kOuterPanel;
      const int64_t first_k = item % along * gemm::kOuterPanel;
      run_outer({.out = params.dw.as<float>(),
                 .y = params.dy.as<float>(),
                 .x = params.x.as<float>(),
                 .out_stride = params.dw.stride(0),
                 .y_stride = params.dy.stride(0),
                 .x_stride = params.x.stride(0),
                 .rows = rows,
                 .n_begin = first_n,
                 .n_end = std::min(n, first_n + gemm::kOuterPanel),
                 .k_begin = first_k,
                 .k_end = std::min(k, first_k + gemm::kOuterPanel)});
    }
  });
}

}  // namespace cpu
}  // namespace loza
