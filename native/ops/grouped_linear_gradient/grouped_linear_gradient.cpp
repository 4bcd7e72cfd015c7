#include "ops/grouped_linear_gradient/grouped_linear_gradient.h"

#include <vector>

#include "core/parallel.h"
#include "cpu/axpy.h"
#include "cpu/outer.h"
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
namespace {

LOZA_MULTIVERSION void run_axpy(const gemm::AxpyTask& task) { gemm::run_axpy(task); }
LOZA_MULTIVERSION void run_outer(const gemm::OuterTask& task) { gemm::run_outer(task); }

// Some rows of one expert.
struct RowBlock {
  int64_t expert, first, count;
};

void check_starts(const Tensor& starts, int64_t slots) {
  const int32_t* from = starts.as<int32_t>();
  for (int64_t expert = 0; expert + 1 < starts.dim(0); expert++)
    check(from[expert] >= 0 && from[expert] <= from[expert + 1] && from[expert + 1] <= slots,
          "grouped_linear gradient: expert ", expert, " has rows ", from[expert], " to ",
          from[expert + 1], " of ", slots);
}

void list_blocks(const GroupedLinearInputGradientParams& params, std::vector<RowBlock>& blocks) {
  const int32_t* starts = params.starts.as<int32_t>();
  blocks.clear();
  for (int64_t expert = 0; expert < params.weight.dim(0); expert++)
    for (int64_t first = starts[expert]; first < starts[expert + 1]; first += gemm::kRowBlock)
      blocks.push_back(
          {expert, first, std::min<int64_t>(gemm::kRowBlock, starts[expert + 1] - first)});
}

void check_order(const GroupedLinearWeightGradientParams& params) {
  const int64_t used = params.starts.as<int32_t>()[params.dw.dim(0)], rows = params.x.dim(0);
  for (int64_t slot = 0; slot < used; slot++) {
    const int64_t source = params.order ? params.order.as<int32_t>()[slot] / params.top_k : slot;
    check(source >= 0 && source < rows, "grouped_linear gradient: slot ", slot, " reads row ",
          source, " of ", params.x);
  }
}

}  // namespace

void compute(const GroupedLinearInputGradientParams& params) {
  const auto& [dx, dy, weight, starts, accumulate] = params;
  check_starts(starts, dy.dim(0));
  thread_local std::vector<RowBlock> listed;
  std::vector<RowBlock>& blocks = listed;  // the lambda runs on other threads too
  list_blocks(params, blocks);
  const int64_t n = weight.dim(1), k = weight.dim(2);
  const int64_t panels = (k + gemm::kPanel - 1) / gemm::kPanel;
  const int64_t work = std::min(k, gemm::kPanel) * n;
  const auto run = [&](int64_t begin, int64_t end) {
    const float* rows_in[gemm::kRowBlock];
    float* rows_out[gemm::kRowBlock];
    for (int64_t item = begin; item < end; item++) {
      const RowBlock& block = blocks[item / panels];
      for (int64_t r = 0; r < block.count; r++) {
        rows_in[r] = params.dy.as<float>() + (block.first + r) * params.dy.stride(0);
        rows_out[r] = params.dx.as<float>() + (block.first + r) * params.dx.stride(0);
      }
      const int64_t column = item % panels * gemm::kPanel;
      const Tensor& matrices = params.weight;
      run_axpy({.x = rows_in,
                .out = rows_out,
                .rows = block.count,
                .n_begin = column,
                .n_end = std::min(k, column + gemm::kPanel),
                .k = n,
                .weight = matrices.as<char>() +
                          block.expert * matrices.stride(0) * size_of(matrices.dtype),
                .dtype = matrices.dtype,
                .weight_stride = matrices.stride(1),
                .accumulate = params.accumulate});
    }
  };
  parallel_for(static_cast<int64_t>(blocks.size()) * panels, gemm::grain_of(work), run);
}

void compute(const GroupedLinearWeightGradientParams& params) {
  check_starts(params.starts, params.dy.dim(0));
  check_order(params);
  const Tensor& dw = params.dw;
  const int64_t n = dw.dim(1), k = dw.dim(2);
  const int64_t across = (n + gemm::kOuterPanel - 1) / gemm::kOuterPanel;
  const int64_t along = (k + gemm::kOuterPanel - 1) / gemm::kOuterPanel;
  parallel_for(dw.dim(0) * across * along, 1, [&](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; item++) {
      const int64_t expert = item / along / across;
      const int64_t first = params.starts.as<int32_t>()[expert];
      const int64_t first_n = item / along % across * gemm::kOuterPanel;
      const int64_t first_k = item % along * gemm::kOuterPanel;
      const int32_t* order = params.order.as<int32_t>();
      run_outer({.out = dw.as<float>() + expert * dw.stride(0),
                 .y = params.dy.as<float>() + first * params.dy.stride(0),
                 .x = params.x.as<float>() + (order ? 0 : first * params.x.stride(0)),
                 .order = order ? order + first : nullptr,
                 .top_k = params.top_k,
                 .out_stride = dw.stride(1),
                 .y_stride = params.dy.stride(0),
                 .x_stride = params.x.stride(0),
                 .rows = params.starts.as<int32_t>()[expert + 1] - first,
                 .n_begin = first_n,
                 .n_end = std::min(n, first_n + gemm::kOuterPanel),
                 .k_begin = first_k,
                 .k_end = std::min(k, first_k + gemm::kOuterPanel)});
    }
  });
}

}  // namespace cpu
}  // namespace loza
