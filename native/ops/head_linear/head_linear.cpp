#include "ops/head_linear/head_linear.h"

#include "core/parallel.h"
#include "cpu/axpy.h"
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
namespace {

LOZA_MULTIVERSION void run_axpy(const gemm::AxpyTask& task) { gemm::run_axpy(task); }

LOZA_MULTIVERSION void run_task(const gemm::Task& task) { gemm::run_task(task); }

struct Block {
  int64_t head, first_row, rows, n_begin, n_end;
};

void run_block(const HeadLinearParams& params, const Block& block) {
  const float* x[gemm::kRowBlock];
  float* out[gemm::kRowBlock];
  for (int64_t r = 0; r < block.rows; r++) {
    const int64_t row = block.first_row + r;
    x[r] = params.x.as<float>() + row * params.x.stride(0) + block.head * params.x.stride(1);
    out[r] =
        params.out.as<float>() + row * params.out.stride(0) + block.head * params.out.stride(1);
  }
  const Tensor& weight = params.weight;
  const int64_t k = weight.dim(2);
  const void* matrix = weight.as<char>() + block.head * weight.stride(0) * size_of(weight.dtype);
  if (weight.stride(2) == 1 || k == 1) {
    run_task({.x = x,
              .out = out,
              .rows = block.rows,
              .n_begin = block.n_begin,
              .n_end = block.n_end,
              .k = k,
              .weight = matrix,
              .dtype = weight.dtype,
              .weight_stride = weight.stride(1)});
  } else {
    run_axpy({.x = x,
              .out = out,
              .rows = block.rows,
              .n_begin = block.n_begin,
              .n_end = block.n_end,
              .k = k,
              .weight = matrix,
              .dtype = weight.dtype,
              .weight_stride = weight.stride(2)});
  }
}

}  // namespace

void compute(const HeadLinearParams& params) {
  const int64_t rows = params.x.dim(0), heads = params.weight.dim(0);
  const int64_t n = params.weight.dim(1), k = params.weight.dim(2);
  const int64_t blocks = (rows + gemm::kRowBlock - 1) / gemm::kRowBlock;
  const int64_t panels = (n + gemm::kPanel - 1) / gemm::kPanel;
  const int64_t work = std::min(rows, gemm::kRowBlock) * std::min(n, gemm::kPanel) * k;
  parallel_for(heads * panels * blocks, gemm::grain_of(work), [&](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; item++) {
      const int64_t first = item % blocks * gemm::kRowBlock;
      const int64_t column = item / blocks % panels * gemm::kPanel;
      run_block(params, {item / blocks / panels, first, std::min(gemm::kRowBlock, rows - first),
                         column, std::min(n, column + gemm::kPanel)});
    }
  });
}

}  // namespace cpu
}  // namespace loza
