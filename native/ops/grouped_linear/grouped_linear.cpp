#include "ops/grouped_linear/grouped_linear.h"

#include <vector>

#include "core/parallel.h"
#include "cpu/gemm.h"
#include "ops/cpu_ops.h"

namespace loza {

void GroupedLinearParams::check(DType act) const {
  expect_weight("grouped_linear: weight", weight, 3);
  const int64_t experts = weight.dim(0), n = weight.dim(1), k = weight.dim(2);
  expect("grouped_linear: weight", weight, weight.dtype, experts, n, k);
  expect("grouped_linear: x", x, act, -1, k);
  expect("grouped_linear: out", out, act, -1, n);
  expect("grouped_linear: starts", starts, DType::kI32, experts + 1);
  if (order) expect("grouped_linear: order", order, DType::kI32, out.dim(0));
  loza::check(top_k >= 1, "grouped_linear: top_k is ", top_k);
  const bool quantised = weight.dtype == DType::kF8E4M3;
  loza::check(quantised == static_cast<bool>(scale),
              "grouped_linear: a scale belongs to f8e4m3 weights, got weight ", weight, " and ",
              scale);
  if (!quantised) return;
  expect("grouped_linear: scale", scale, DType::kF32, experts, (n + kScaleBlock - 1) / kScaleBlock,
         (k + kScaleBlock - 1) / kScaleBlock);
}

namespace cpu {
namespace {

// Some rows of one expert.
struct RowBlock {
  int64_t expert, first, count;
};

LOZA_MULTIVERSION void run_task(const gemm::Task& task) { gemm::run_task(task); }

void list_blocks(const GroupedLinearParams& params, std::vector<RowBlock>& blocks) {
  const int32_t* starts = params.starts.as<int32_t>();
  const int64_t experts = params.weight.dim(0), slots = params.out.dim(0);
  blocks.clear();
  for (int64_t expert = 0; expert < experts; expert++) {
    const int64_t begin = starts[expert], end = starts[expert + 1];
    check(begin >= 0 && begin <= end && end <= slots, "grouped_linear: expert ", expert,
          " has rows ", begin, " to ", end, " of ", slots);
    for (int64_t first = begin; first < end; first += gemm::kRowBlock)
      blocks.push_back({expert, first, std::min(gemm::kRowBlock, end - first)});
  }
}

int64_t source_of(const GroupedLinearParams& params, int64_t slot) {
  const int64_t source = params.order ? params.order.as<int32_t>()[slot] / params.top_k : slot;
  check(source >= 0 && source < params.x.dim(0), "grouped_linear: slot ", slot, " reads row ",
        source, " of ", params.x);
  return source;
}

}  // namespace

void compute(const GroupedLinearParams& params) {
  thread_local std::vector<RowBlock> listed;
  std::vector<RowBlock>& blocks = listed;  // the lambda runs on other threads too
  list_blocks(params, blocks);
  const Tensor &weight = params.weight, &scale = params.scale;
  const int64_t n = weight.dim(1), k = weight.dim(2);
  const int64_t panels = (n + gemm::kPanel - 1) / gemm::kPanel;
  const int64_t work = std::min(n, gemm::kPanel) * k;
  parallel_for(
      static_cast<int64_t>(blocks.size()) * panels, gemm::grain_of(work),
      [&](int64_t begin, int64_t end) {
        const float* x[gemm::kRowBlock];
        float* out[gemm::kRowBlock];
        for (int64_t item = begin; item < end; item++) {
          const RowBlock& block = blocks[item / panels];
          for (int64_t r = 0; r < block.count; r++) {
            const int64_t slot = block.first + r;
            x[r] = params.x.as<float>() + source_of(params, slot) * params.x.stride(0);
            out[r] = params.out.as<float>() + slot * params.out.stride(0);
          }
          const int64_t column = item % panels * gemm::kPanel;
          run_task({.x = x,
                    .out = out,
                    .rows = block.count,
                    .n_begin = column,
                    .n_end = std::min(n, column + gemm::kPanel),
                    .k = k,
                    .weight =
                        weight.as<char>() + block.expert * weight.stride(0) * size_of(weight.dtype),
                    .dtype = weight.dtype,
                    .weight_stride = weight.stride(1),
                    .scale = scale ? scale.as<float>() + block.expert * scale.stride(0) : nullptr,
                    .scale_stride = scale ? scale.stride(1) : 0});
        }
      });
}

}  // namespace cpu
}  // namespace loza
